"""The two files of a checkpoint, which are written in turns: one stays whole while the other is written.

The host makes both before a kernel starts. Nothing is made, renamed or removed beside them, so that a kernel needs no
directory of the host's in which it may do that. Host and kernel both read them.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

_HEAD = struct.Struct(">16sQQB")  # magic, turn, bytes of what follows, whether it is set aside
_FOOT = struct.Struct(">Q")  # the last bytes: how many before them tell what the others hold
_MAGIC = b"kernel_bridge ck"
_PIECE = 2**20  # bytes that are compared or written at once
_TURNS = 2**64  # after the last one comes 0: a head may hold any turn, for the agent's code can write it
_PLAIN = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_CLOEXEC", 0)
)


@dataclass(frozen=True)
class Slot:
    """What is in one of the files."""

    path: str
    turn: int
    size: int  # bytes
    aside: bool  # a newer one was begun, and never finished

    def packed(self) -> bytes:
        """Its head."""
        return _HEAD.pack(_MAGIC, self.turn, self.size, self.aside)


def slot_paths(path: str) -> tuple[str, str]:
    """The two files of the checkpoint at this path."""
    return f"{path}.0", f"{path}.1"


@contextlib.contextmanager
def open_slot(path: str, flags: int = os.O_RDONLY) -> Generator[int]:
    """Open one of the files, unless something else is in its place. Raises: OSError, ValueError."""
    file = os.open(path, flags | _PLAIN)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise ValueError("it is no plain file with one name")
        yield file
    finally:
        os.close(file)


def newest(path: str) -> Slot | None:
    """The newer checkpoint of those that are whole; None: neither is."""
    found: list[Slot] = []
    for place in slot_paths(path):
        with contextlib.suppress(OSError, ValueError):  # not a file of ours
            if (slot := look(place)) is not None:
                found.append(slot)
    if len(found) == 2 and 0 < (found[1].turn - found[0].turn) % _TURNS < _TURNS // 2:
        return found[1]
    return found[0] if found else None


def look(path: str) -> Slot | None:
    """The checkpoint in one of the files. None: there is no whole one. Raises: OSError, ValueError."""
    with open_slot(path) as file:
        head = os.read(file, _HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            return None
        _, turn, size, aside = _HEAD.unpack(head)
        whole = os.fstat(file).st_size == _HEAD.size + size
        return Slot(path, turn, size, bool(aside)) if whole else None


def skip_head(file: int) -> None:
    """Go to where the checkpoint itself begins."""
    os.lseek(file, _HEAD.size, os.SEEK_SET)


def write_at_start(file: int, head: bytes) -> None:
    """As `os.pwrite` at 0, which Windows has not. Raises: OSError."""
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, head)


def read_slot(slot: Slot) -> tuple[bytes, bytes]:
    """What a checkpoint holds, and the text at its end that tells what that is. Raises: OSError, ValueError."""
    with open_slot(slot.path) as file, open(os.dup(file), "rb") as whole:
        end = _HEAD.size + slot.size - _FOOT.size
        whole.seek(max(end, 0))
        foot = whole.read(_FOOT.size)
        start = end - _FOOT.unpack(foot)[0] if len(foot) == _FOOT.size else -1
        if start < _HEAD.size:
            raise ValueError("its end is damaged")
        whole.seek(start)
        description = whole.read(end - start)
        whole.seek(_HEAD.size)
        return whole.read(start - _HEAD.size), description


class SlotWriter:
    """Writes a checkpoint piece by piece into the file that is not the newest, which it then is.

    As long as it is the same as the newest, nothing is written; if it is to its end, the newest stays.
    Use it as a context manager. All methods raise OSError; then the newest stays, too.

    Attributes:
        failure: why it could not be written, for a caller who cannot tell the error from others; None: it could.
    """

    def __init__(self, path: str) -> None:
        self.failure: OSError | None = None
        self._before = before = newest(path)
        first, second = slot_paths(path)
        self._path = second if before is not None and before.path == first else first
        self._position = 0
        self._differs = before is None
        with contextlib.ExitStack() as opened:
            self._target = opened.enter_context(open_slot(self._path, os.O_RDWR))
            self._source = -1 if before is None else opened.enter_context(open_slot(before.path))
            self.restart()
            self._opened = opened.pop_all()

    def __enter__(self) -> SlotWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def restart(self) -> None:
        """Forget what was written."""
        self._position = 0
        self._differs = self._before is None
        if self._differs:
            self._begin()
        else:
            skip_head(self._source)

    def write(self, data: Any) -> int:
        """Add to the checkpoint."""
        view = memoryview(data).cast("B")
        try:
            for start in range(0, len(view), _PIECE):
                piece = view[start : start + _PIECE]
                if not self._differs and os.read(self._source, len(piece)) != bytes(piece):
                    self._begin()
                if self._differs:
                    write_whole(self._target, piece)
                self._position += len(piece)
        except OSError as error:
            self.failure = error
            raise
        return len(view)

    def _begin(self) -> None:
        """Begin to write, first what was the same so far."""
        os.ftruncate(self._target, 0)  # a checkpoint that is half written does not count
        skip_head(self._target)
        if self._source >= 0:
            skip_head(self._source)
        left = self._position
        while left:
            piece = os.read(self._source, min(left, _PIECE))
            if not piece:
                raise OSError("the last checkpoint was cut while it was read")
            write_whole(self._target, piece)
            left -= len(piece)
        self._differs = True

    def finish(self, description: bytes, *, aside: bool = False) -> Slot:
        """End the checkpoint with the text that `read_slot` gives. Returns the newest."""
        self.write(description + _FOOT.pack(len(description)))
        before = self._before
        if before is not None and not self._differs:
            if before.size == self._position:
                return mark_slot(before, aside=aside)
            self._begin()
        turn = 1 if before is None else (before.turn + 1) % _TURNS
        slot = Slot(self._path, turn, self._position, aside)
        write_at_start(self._target, slot.packed())
        return slot


def write_whole(file: int, data: bytes | memoryview) -> None:
    """Write all of it where the file is. Raises: OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def mark_slot(slot: Slot, *, aside: bool) -> Slot:
    """Say of a checkpoint whether a newer one was begun. Raises: OSError, ValueError."""
    marked = Slot(slot.path, slot.turn, slot.size, aside)
    if marked != slot:
        with open_slot(slot.path, os.O_RDWR) as file:
            write_at_start(file, marked.packed())
    return marked
