"""Language models: the root LM, the sub-LM, and how they fail."""
