"""The two files of a checkpoint, which are written in turns: one stays whole while the other is written.

The host makes both before a kernel starts. Nothing is made, renamed or removed beside them, so that a kernel needs no
directory of the host's in which it may do that. Host and kernel both read them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import struct
from collections.abc import Generator
from dataclasses import dataclass

_HEAD = struct.Struct(">16sQQ32sB")  # magic, turn, bytes of what follows, their digest, whether it is set aside
_MAGIC = b"kernel_bridge ck"
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
    digest: bytes
    aside: bool  # a newer one was begun, and never finished

    def packed(self) -> bytes:
        """Its head."""
        return _HEAD.pack(_MAGIC, self.turn, self.size, self.digest, self.aside)


def slot_paths(path: str) -> tuple[str, str]:
    """The two files of the checkpoint at this path."""
    return f"{path}.0", f"{path}.1"


def digest_of(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=32).digest()


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
            if (slot := _look(place)) is not None:
                found.append(slot)
    if len(found) == 2 and 0 < (found[1].turn - found[0].turn) % _TURNS < _TURNS // 2:
        return found[1]
    return found[0] if found else None


def _look(path: str) -> Slot | None:
    with open_slot(path) as file:
        head = os.read(file, _HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            return None
        _, turn, size, digest, aside = _HEAD.unpack(head)
        whole = os.fstat(file).st_size == _HEAD.size + size
        return Slot(path, turn, size, digest, bool(aside)) if whole else None


def skip_head(file: int) -> None:
    """Go to where the checkpoint itself begins."""
    os.lseek(file, _HEAD.size, os.SEEK_SET)


def write_at_start(file: int, head: bytes) -> None:
    """As `os.pwrite` at 0, which Windows has not. Raises: OSError."""
    os.lseek(file, 0, os.SEEK_SET)
    os.write(file, head)


def read_slot(slot: Slot) -> tuple[bytes, bytes]:
    """The first line of a checkpoint, and the rest. Raises: OSError, ValueError."""
    with open_slot(slot.path) as file:
        skip_head(file)
        with open(os.dup(file), "rb") as whole:
            line = whole.readline(slot.size)
            return line, whole.read(slot.size - len(line))


def write_slot(path: str, data: bytes, *, aside: bool = False) -> Slot:
    """Write a checkpoint into the file that is not the newest, which it then is. Raises: OSError, ValueError."""
    before = newest(path)
    first, second = slot_paths(path)
    turn = 1 if before is None else (before.turn + 1) % _TURNS
    slot = Slot(second if before and before.path == first else first, turn, len(data), digest_of(data), aside)
    with open_slot(slot.path, os.O_RDWR) as file:
        os.ftruncate(file, 0)  # a checkpoint that is half written does not count
        skip_head(file)
        view = memoryview(data)
        while view:
            view = view[os.write(file, view[: 2**30]) :]
        write_at_start(file, slot.packed())
    return slot


def mark_slot(slot: Slot, *, aside: bool) -> Slot:
    """Say of a checkpoint whether a newer one was begun. Raises: OSError, ValueError."""
    marked = Slot(slot.path, slot.turn, slot.size, slot.digest, aside)
    with open_slot(slot.path, os.O_RDWR) as file:
        write_at_start(file, marked.packed())
    return marked
