"""The lifeline: a kernel's standard input, where no guardian stands between it and its host, as on Windows.

The host writes the number of the cell that it interrupts. The end of the stream ends the kernel: its host has ended.
"""

from __future__ import annotations

import os
import signal
import struct
import threading

from kernel_bridge.inside.interrupts import Interrupts

CELL = struct.Struct("=Q")  # what the host writes for one interrupt


def hold(interrupts: Interrupts) -> None:
    """Take the standard input over, and watch it from now on."""
    stream = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    threading.Thread(target=_watch, args=(stream, interrupts), name="lifeline", daemon=True).start()


def _watch(stream: int, interrupts: Interrupts) -> None:
    try:
        while len(note := os.read(stream, CELL.size)) == CELL.size:
            interrupts.note(*CELL.unpack(note))
            signal.raise_signal(signal.SIGINT)
    finally:
        os._exit(1)
