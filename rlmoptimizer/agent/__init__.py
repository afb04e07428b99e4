"""The agent: the `dspy.RLM`, the tools that it calls, and what it is told."""
