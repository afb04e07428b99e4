"""One running kernel, seen from its host: requests, replies and tool calls. Knows no successor and no DSPy."""
