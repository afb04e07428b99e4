"""What can be seen of an optimization before it is begun."""
