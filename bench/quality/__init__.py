"""What optimizers make of the same programs with the same number of metric calls. See README.md beside this file."""
