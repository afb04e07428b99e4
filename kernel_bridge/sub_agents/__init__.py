"""Sub-agents: what agent code may ask of DSPy's facade, checked before any library sees it. Imports no dspy."""
