"""The files that a kernel and its host share: what a cell has printed, what an interrupt is for, what has been kept.

Knows no process, and nothing of when they are written or read.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from kernel_bridge.files.layout import INTERRUPT, PROGRESS, TRANSCRIPT
from kernel_bridge.files.private_files import open_new
from kernel_bridge.inside import KEEPING, KEPT, UNWRITTEN
from kernel_bridge.inside.interrupts import NOTE

__all__ = ["SharedFiles"]

_NOTE_BYTES = 21  # of the progress file


class SharedFiles:
    """The host's side of the files of one kernel. They outlive it, until they are closed.

    All are opened before the agent's code can put something else in their place, and never by name again.
    """

    def __init__(self, directory: Path) -> None:
        self._interrupts = 0
        self._lock = threading.Lock()  # guards the note and the progress
        self._transcript = self._note = self._progress = -1
        try:
            self._transcript = open_new(directory / TRANSCRIPT)
            self._note = open_new(directory / INTERRUPT)
            self._progress = open_new(directory / PROGRESS)
        except BaseException:
            self.close()
            raise

    def take_transcript(self, limit: int) -> bytes:
        """What the kernel's running cell has printed so far, at most so many bytes; the next call finds nothing of it.

        Read through the descriptor under which the host made the file: under its name the agent's code may have put a
        link to a file of the host, or a pipe that never ends.
        """
        if self._transcript < 0:
            return b""
        # Never mapped here: a file that is cut short under a mapping ends the process that touches it.
        os.lseek(self._transcript, 0, os.SEEK_SET)
        data = os.read(self._transcript, limit)
        with contextlib.suppress(OSError):
            os.ftruncate(self._transcript, 0)
        return data.partition(UNWRITTEN)[0]

    def note_interrupt(self, cell: int) -> None:
        """Write down for which cell the interrupt is that comes now. Raises OSError when the files are closed."""
        with self._lock:
            self._interrupts += 1
            os.pwrite(self._note, NOTE.pack(self._interrupts, cell), 0)

    def was_keeping(self) -> int | None:
        """The cell after which the kernel died while it made a checkpoint; None: it was making none.

        Self-reported: use it in messages only.
        """
        note = self._read_progress()
        return int(note[1:]) if note.startswith(KEEPING) and note[1:].isdigit() else None

    def has_kept(self, cell: int) -> bool:
        """Whether the kernel has made its checkpoint after this cell. Self-reported."""
        note = self._read_progress()
        return note.startswith(KEPT) and note[1:].isdigit() and int(note[1:]) >= cell

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            for fd in (self._transcript, self._note, self._progress):
                if fd >= 0:
                    os.close(fd)
            self._transcript = self._note = self._progress = -1

    def leave_to_parent(self) -> None:
        """In the child of a fork: close this process's own descriptors."""
        self._lock = threading.Lock()  # a thread that is not here may have held it
        self.close()

    def _read_progress(self) -> bytes:
        with self._lock:
            if self._progress < 0:
                return b""
            os.lseek(self._progress, 0, os.SEEK_SET)
            return os.read(self._progress, _NOTE_BYTES)
