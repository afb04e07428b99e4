"""What a person sees of a compile. Imports no dspy."""
