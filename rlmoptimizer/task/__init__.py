"""The task: the program, its instructions and the data sets."""
