"""What the agent reads of its kernel: the place where its code runs, and what became of a cell. Knows no DSPy."""
