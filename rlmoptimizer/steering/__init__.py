"""What people ask of an optimization that runs or will: pause, notes, its end, a branch. Imports no dspy."""
