"""One optimization as a Jupyter notebook, and the tools that replay it from the run store."""
