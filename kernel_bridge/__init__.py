"""A confined Jupyter kernel that can call tools of its host."""
