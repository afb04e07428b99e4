"""What came of an optimization, read from its run store: what is given back, how much better it is, and how sure."""
