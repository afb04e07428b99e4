"""The run store: one SQLite file that holds all that happened."""
