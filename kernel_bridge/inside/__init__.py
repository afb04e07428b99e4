"""What runs in the kernel's own process. Imports nothing of ours but the wire, and never dspy."""
