"""The kernel's SIGINT handler: it raises KeyboardInterrupt in the agent's code, never in the middle of our own work.

A signal carries no data, and it may arrive before the cell it is for begins or after that has ended. So before the host
sends one, it writes a note into a file that both sides hold open: how many interrupts it has sent, and for which cell
the last one is. A signal without a new note comes from the agent's own code or from a console, and concerns whatever
runs; unless it follows the host's so closely that it must be the host's.

Jupyter's `interrupt_request` cannot take its place: the control thread would have to run, and it cannot while C code
holds the interpreter lock, such as a regular expression or the arithmetic of very large numbers. A signal reaches both.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from types import FrameType, TracebackType

NOTE = struct.Struct("=QQ")  # how many interrupts the host has sent, and the cell that the last one is for

_LATE_SECONDS = 1.0  # after a note was read: signals that come meanwhile belong to it
_OWED_SECONDS = 10.0  # the same for the first signal when the note was read before it came: its sender may be held up

HELD, _ONCE, OPEN = 0, 1, 2


class Interrupts:
    """Whether an interrupt waits or is raised now, as `mode` says. Only the main thread runs signal handlers.

    Args:
        note_file: the host's note; None where `note` takes its place.
    """

    def __init__(self, note_file: str | None) -> None:
        self._main = threading.main_thread().ident
        self._file = -1 if note_file is None else os.open(note_file, os.O_RDONLY | os.O_CLOEXEC)
        self._noted = 0, 0
        self._seen = 0
        self._late_until = 0.0
        self._owed_until = 0.0
        self._cell = 0
        self._pending = False
        self.mode = HELD

    def begin(self, cell: int) -> None:
        """A cell begins; 0 is a console's. Drops what came too late for an earlier cell, finds what is for this one."""
        self._cell = cell
        self._pending = False
        count, meant = self._read_note()
        if count != self._seen and meant <= cell:
            self._note_seen(count)
            self._owed_until = time.monotonic() + _OWED_SECONDS
            self._pending = meant == cell

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if not self.concerns_this_cell():
            return
        if self.mode == HELD:
            self._pending = True
            return
        if self.mode == _ONCE:
            self.mode = HELD
        raise KeyboardInterrupt

    def concerns_this_cell(self) -> bool:
        """Whether the signal that just came is for the running cell. Ask once for each signal."""
        count, meant = self._read_note()
        if count == self._seen:
            now = time.monotonic()
            owed, self._owed_until = now < self._owed_until, 0.0
            return not owed and now > self._late_until
        if meant > self._cell:
            return False  # for a cell that has not begun; `begin` will find it
        self._note_seen(count)
        return meant == self._cell

    def _note_seen(self, count: int) -> None:
        self._seen = count
        self._owed_until = 0.0
        self._late_until = time.monotonic() + _LATE_SECONDS

    def note(self, cell: int) -> None:
        """An interrupt for this cell comes now. From another thread than the main one."""
        self._noted = self._noted[0] + 1, cell

    def _read_note(self) -> tuple[int, int]:
        if self._file < 0:
            return self._noted
        try:
            data = os.pread(self._file, NOTE.size, 0)
        except OSError:  # the agent's code closed it
            return self._seen, 0
        return NOTE.unpack(data) if len(data) == NOTE.size else (self._seen, 0)

    def open(self) -> None:
        """From now on an interrupt is raised; one that waits is raised now.

        End it with the plain assignment `mode = HELD`: during a call the handler may run and raise, and would leave
        the mode as it is.
        """
        self.mode = OPEN
        self.deliver()

    def deliver(self) -> None:
        """Raise the interrupt that waits, if there is one."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def held(self) -> _Switch:
        """A block in which interrupts wait until its end."""
        return _Switch(self, HELD)

    def allowed(self) -> _Switch:
        """A part of a held block that an interrupt may break off, once."""
        return _Switch(self, _ONCE)

    def on_main_thread(self) -> bool:
        return threading.get_ident() == self._main


class _Switch:
    """Sets the mode and puts the earlier one back."""

    __slots__ = ("_before", "_interrupts", "_mode")

    def __init__(self, interrupts: Interrupts, mode: int) -> None:
        self._interrupts = interrupts
        self._mode = mode
        self._before: int | None = None

    def __enter__(self) -> None:
        interrupts = self._interrupts
        if not interrupts.on_main_thread():
            return
        before = interrupts.mode
        try:
            self._before = before
            interrupts.mode = self._mode
            if self._mode != HELD:
                interrupts.deliver()
        except BaseException:
            interrupts.mode = before
            raise

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        before = self._before
        if before is None:
            return
        self._interrupts.mode = before
        if before != HELD:
            self._interrupts.deliver()
