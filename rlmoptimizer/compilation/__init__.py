"""One compile, from its setup to its result."""
