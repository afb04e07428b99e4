"""A prompt optimizer for DSPy whose search is an LLM agent at work in its own Jupyter kernel."""
