"""What a compile writes on stderr and in a notebook cell."""
