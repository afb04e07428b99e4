"""SIGINT in the kernel: raised as KeyboardInterrupt, but never in the middle of a message. Knows nothing of sockets.

Only Python's main thread runs signal handlers, so only there does holding back mean anything.
"""

from __future__ import annotations

import threading
from types import FrameType, TracebackType


class Interrupts:
    """The SIGINT handler of a running cell, and the two context managers that open and shut it."""

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._held = 0
        self._pending = False

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self._held:
            self._pending = True
        else:
            raise KeyboardInterrupt

    def forget(self) -> None:
        """Drop an interrupt that came too late for its cell."""
        self._pending = False

    def held(self) -> _Switch:
        """Inside, an interrupt waits until the end of the block."""
        return _Switch(self, 1)

    def allowed(self) -> _Switch:
        """Inside a held block, a part that an interrupt may break off."""
        return _Switch(self, -1)

    def shift(self, by: int) -> None:
        if threading.get_ident() != self._main:
            return
        self._held += by
        if self._pending and not self._held:
            self._pending = False
            raise KeyboardInterrupt


class _Switch:
    __slots__ = ("_by", "_interrupts")

    def __init__(self, interrupts: Interrupts, by: int) -> None:
        self._interrupts = interrupts
        self._by = by

    def __enter__(self) -> None:
        try:
            self._interrupts.shift(self._by)
        except KeyboardInterrupt:
            self._interrupts.shift(-self._by)
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        self._interrupts.shift(-self._by)
