"""The command `rlmoptimizer`. Imports no dspy."""
