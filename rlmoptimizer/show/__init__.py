"""What people see of an optimization, while it runs and afterwards. Imports no dspy."""
