"""One running kernel, seen from its host: requests, replies and tool calls."""
