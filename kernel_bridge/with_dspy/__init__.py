"""The parts of this package, besides the interpreter, that need DSPy."""
