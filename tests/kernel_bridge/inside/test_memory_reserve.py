"""The room in memory that is kept for the kernel's own code: it can be had when nothing else can."""

from __future__ import annotations

import sys

import pytest
from child_process import fresh, output_of

# Fills all sizes of blocks, the smallest too: what asks for room may then not need one byte to ask.
FILL = """
import resource
hard = 2**28
resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
from kernel_bridge.inside.memory_reserve import MemoryReserve
room = MemoryReserve()
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
    assert output_of(fresh(FILL)) == f"{2**20}\n"
