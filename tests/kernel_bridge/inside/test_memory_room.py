"""The room in memory that is kept for the kernel's own code: it can be had when nothing else can."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Fills all sizes of blocks, the smallest too: what asks for room may then not need one byte to ask.
FILL = """
import resource
hard = 2**28
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
from kernel_bridge.inside.memory import MemoryRoom
room = MemoryRoom()
room.was_used_up = True
room.keep()
held = None
def fill():
    global held
    for size in (2**20, 2**12, 400, 200, 100, 50, 0):
        try:
            while True:
                held = held, bytearray(size), size * 1.5, [], {}, {size}, (size, room), size + 1000
        except MemoryError:
            pass
fill()
room.use()
print(len(bytearray(2**20)))
held = None
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limits")
def test_room_can_be_had_when_not_one_byte_is_left() -> None:
    ran = subprocess.run([sys.executable, "-c", FILL], capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, ran.stdout) == (0, f"{2**20}\n"), ran.stderr[-2000:]
