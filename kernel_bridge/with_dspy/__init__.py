"""What of this package needs DSPy, beside the interpreter itself."""
