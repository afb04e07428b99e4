"""What runs in the kernel's own process. Imports nothing of ours but the wire, and never dspy."""

KEEPING = b"k"
KEPT = b"-"
"""How a kernel's progress file begins while it makes a checkpoint, and after; the number of its cell follows."""

DAMAGED_STATUS = 70
DAMAGED = "kernel_bridge: the kernel cannot go on:"
"""How a kernel exits that cannot go on, and how the last line begins that it writes then."""

UNWRITTEN = b"\xff"
"""What fills the rest of a kernel's transcript file: a byte that no UTF-8 text has."""
