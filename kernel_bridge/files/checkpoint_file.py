"""The checkpoint file: a session's last namespace in a place of the caller's, for a session of another process.

Only kernels read or load what is in it. The kernel writes into two files of its own,
and the host copies from there: through a descriptor of a plain file with no other name, at most so many bytes, to a
new file that replaces the old one at once. So nothing that the kernel's code does to its files reaches another place.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from kernel_bridge.files.private_files import open_new
from kernel_bridge.inside.checkpoint_slots import Slot, look, newest, open_slot, skip_head, slot_paths, write_at_start
from kernel_bridge.threads.due_tasks import DueTasks

__all__ = ["DESCRIPTION_BYTES", "CheckpointKeeper", "FetchedCheckpoint", "fetch_checkpoint"]

logger = logging.getLogger(__name__)

# magic, version, number of the cell, bytes of the checkpoint, their digest, the caller's label
_HEAD: Final = struct.Struct(">16sIQQ32s64s")
_MAGIC: Final = b"kernel_bridge ns"
_VERSION: Final = 2
_CHUNK: Final = 2**20
DESCRIPTION_BYTES: Final = 16 * 2**20  # that a kernel may add to a checkpoint: names, reasons, the sources of cells
_CLOSE_SECONDS = 30.0  # for the last checkpoint to be copied, to a disk that may be slow
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.05  # seconds between two looks whether a kernel has made its checkpoint

_NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


_looks = DueTasks("kernel checkpoints")  # of the whole process: a thread for each session is what it saves
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_looks.leave_to_parent)


@dataclass(frozen=True, slots=True)
class FetchedCheckpoint:
    """What was found in a checkpoint file."""

    label: str  # of the moment it is from
    cell: int  # number of the last cell before it
    problem: str | None  # why it cannot be used; None: it lies where the first kernel finds it


@dataclass(frozen=True, slots=True)
class _Wanted:
    cell: int
    label: str
    is_made: Callable[[int], bool | None]


class CheckpointKeeper:
    """Copies each checkpoint of one session as soon as the kernel has made it, on a thread that all sessions share.

    Args:
        file: the caller's; replaced, never written in place but for its head.
        source: where the kernel puts its checkpoints.
        limit_bytes: of one checkpoint's data; larger ones are not copied.
    """

    def __init__(self, file: Path, source: Path, limit_bytes: int) -> None:
        self._file = file
        self._source = source
        self._limit_bytes = limit_bytes + DESCRIPTION_BYTES
        self._changed = threading.Condition()
        self._copying = threading.Lock()
        self._wanted: _Wanted | None = None
        self._closed = False
        self._copied: tuple[tuple[int, int], tuple[int, int]] | None = None  # what was copied last, and to which file
        self._pause = _FIRST_LOOK

    def expect(self, cell: int, label: str, is_made: Callable[[int], bool | None]) -> None:
        """The kernel is making its checkpoint after this cell; `is_made(cell)` tells when. None: it never will."""
        with self._changed:
            if self._closed:
                return
            self._wanted = _Wanted(cell, label, is_made)
            self._pause = _FIRST_LOOK
        try:
            _looks.add(self, _FIRST_LOOK)
        except OSError as error:
            with self._changed:
                self._wanted = None
            logger.warning("The variables of a kernel could not be kept in %s: %s", self._file, error)

    def follow(self, source: Path) -> None:
        """From now on another kernel puts its checkpoints there, which may begin to count its turns anew."""
        with self._copying:
            self._source = source
            self._copied = None

    def look(self) -> None:
        """Copy now what has been made, if it was not copied yet."""
        with self._changed:
            wanted = self._wanted
            if wanted is None or not wanted.is_made(wanted.cell):
                return
            self._wanted = None
        self._copy(wanted)

    def wait(self, seconds: float) -> None:
        """Wait until the kernel has made what is expected of it, but not longer than this."""
        with self._changed:
            self._changed.wait_for(lambda: self._wanted is None or self._closed, seconds)

    def close(self) -> None:
        """Copy what is there already, and no more. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        _looks.make_due(self)
        with self._changed:
            copied = self._changed.wait_for(lambda: self._wanted is None, _CLOSE_SECONDS)
        ended = _looks.cancel(self, _CLOSE_SECONDS if copied else 0.0)
        if not copied or not ended:
            logger.warning("The last variables of a kernel are not in %s yet; they are not waited for", self._file)

    def run(self) -> float | None:
        """Look whether the kernel has made what is expected of it, and copy that. Returns the seconds until the next.

        Called by the thread that all sessions share.
        """
        with self._changed:
            wanted = self._wanted
            if wanted is None:
                return None
            made = wanted.is_made(wanted.cell)
            if made is False and not self._closed:
                pause = self._pause
                self._pause = min(2 * pause, _LAST_LOOK)
                return pause
            self._wanted = None
            self._changed.notify_all()
        if made:
            self._copy(wanted)
        return None

    def _copy(self, wanted: _Wanted) -> None:
        with self._copying:
            self._copy_one(wanted)

    def _copy_one(self, wanted: _Wanted) -> None:
        try:
            slot = newest(str(self._source))
            if slot is None or slot.aside:
                return  # the kernel could not make one; the last one stays
            mark = (slot.turn, slot.size)
            if self._copied is None or self._copied[0] != mark or not self._relabel(wanted, self._copied[1]):
                made = self._replace(slot, wanted)
                self._copied = None if made is None else (mark, made)
        except (OSError, ValueError) as error:
            self._copied = None
            logger.warning("The variables of a kernel could not be kept in %s: %s", self._file, error)

    def _relabel(self, wanted: _Wanted, known: tuple[int, int]) -> bool:
        """The same checkpoint is now that of a later moment. False: the file is no longer the one we wrote."""
        try:
            file = os.open(self._file, os.O_RDWR | _NO_LINK)
        except OSError:
            return False
        try:
            found = os.fstat(file)
            if (found.st_dev, found.st_ino) != known:
                return False
            magic, version, _, size, digest, _ = _HEAD.unpack(os.read(file, _HEAD.size))
            head = _HEAD.pack(magic, version, wanted.cell, size, digest, _label(wanted.label))
            write_at_start(file, head)
            os.fsync(file)
            return True
        finally:
            os.close(file)

    def _replace(self, slot: Slot, wanted: _Wanted) -> tuple[int, int] | None:
        """Copy a checkpoint. None: it was overwritten meanwhile, so that a later one is to come."""
        new = self._file.with_name(self._file.name + ".new")
        new.unlink(missing_ok=True)
        file = open_new(new)
        made = None
        mark = (slot.turn, slot.size)
        try:
            os.write(file, b"\0" * _HEAD.size)
            with open_slot(slot.path) as source:
                skip_head(source)
                size, digest = _copy_bytes(source, file, self._limit_bytes)
            after = look(slot.path)  # whoever overwrites it cuts it first
            if size == slot.size and after is not None and (after.turn, after.size) == mark:
                head = _HEAD.pack(_MAGIC, _VERSION, wanted.cell, size, digest, _label(wanted.label))
                write_at_start(file, head)
                os.fsync(file)
                made = os.fstat(file)
        finally:
            os.close(file)
            if made is None:
                with contextlib.suppress(OSError):
                    new.unlink()
        if made is None:
            return None
        new.replace(self._file)
        return made.st_dev, made.st_ino


def fetch_checkpoint(file: Path, target: Path, limit_bytes: int) -> FetchedCheckpoint | None:
    """Put the checkpoint in `file` where the first kernel of a session finds it. None: there is no file."""
    try:
        source = open(_open_plain(file), "rb", buffering=0)  # noqa: SIM115 - it may not be there, which is no error
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        return FetchedCheckpoint("", 0, f"it cannot be read: {error}")
    with source:
        owner = os.fstat(source.fileno()).st_uid
        if os.name == "posix" and owner not in (os.geteuid(), file.absolute().parent.stat().st_uid):
            return FetchedCheckpoint("", 0, f"it belongs to another user (number {owner})")
        head = source.read(_HEAD.size)
        if len(head) < _HEAD.size or not head.startswith(_MAGIC):
            return FetchedCheckpoint("", 0, "it is no checkpoint of a kernel")
        _, version, cell, size, digest, label = _HEAD.unpack(head)
        if version != _VERSION:
            return FetchedCheckpoint("", 0, f"its format has version {version}, this is version {_VERSION}")
        label_text = label.rstrip(b"\0").decode("utf-8", "replace")
        if size > limit_bytes + DESCRIPTION_BYTES:
            too_large = f"it has {size:,} bytes, and checkpoint_bytes allows {limit_bytes:,}"
            return FetchedCheckpoint(label_text, cell, too_large)
        try:
            with open(os.open(slot_paths(str(target))[0], os.O_WRONLY | os.O_CREAT | _NO_LINK, 0o600), "wb") as copy:
                skip_head(copy.fileno())
                found = _copy_bytes(source.fileno(), copy.fileno(), size)
                if found == (size, digest):
                    write_at_start(copy.fileno(), Slot("", 1, size, False).packed())
        except (OSError, ValueError) as error:
            return FetchedCheckpoint(label_text, cell, f"it cannot be copied: {error}")
        if found != (size, digest):
            return FetchedCheckpoint(label_text, cell, "it is damaged")
    return FetchedCheckpoint(label_text, cell, None)


def _open_plain(path: Path) -> int:
    """Open a file for reading, unless it is a link or no file. Raises: OSError, ValueError."""
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | _NO_LINK)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise ValueError("it is no plain file")


def _copy_bytes(source: int, target: int, most: int) -> tuple[int, bytes]:
    """Copy what is left of one file to another. Gives the bytes and their digest. Raises: OSError, ValueError."""
    digest = hashlib.blake2b(digest_size=32)
    size = 0
    while data := os.read(source, _CHUNK):
        size += len(data)
        if size > most:
            raise ValueError(f"it is longer than {most:,} bytes")
        digest.update(data)
        view = memoryview(data)
        while view:
            view = view[os.write(target, view) :]
    return size, digest.digest()


def _label(label: str) -> bytes:
    return label.encode("utf-8", "replace")[:64]
