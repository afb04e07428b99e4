"""A session's directory: 0700, with a short path, because a unix socket's path holds about 107 bytes.

It holds the connection file, the sockets of each kernel that the session has had, the scratch directory, what outlives
a kernel, and `session.json`, by which other processes of the same user find it.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import stat
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from kernel_bridge.errors import StartupFailed, what_to_do
from kernel_bridge.files.layout import CHECKPOINT, Layout
from kernel_bridge.files.private_files import make_directory, open_new
from kernel_bridge.files.session_facts import CONNECTION, FACTS, write_facts
from kernel_bridge.inside.checkpoint_slots import Slot, newest, open_slot, slot_paths, write_whole
from kernel_bridge.inside.tree_removal import remove_tree

__all__ = ["SessionDirectory", "remove_nameless", "runtime_root"]

_NAME_BYTES = 4
_NAME = re.compile(f"[0-9a-f]{{{2 * _NAME_BYTES}}}")
_MODES = (0o700, 0o711)  # of a session's directory; the second one where another user has to pass through
_NAMELESS_SECONDS = 600.0  # a host writes at once who it is, where it is not stopped
_REMOVING_DESCRIPTORS = 4
_CHUNK = 2**20
_LONGEST_ROOT = 70  # characters; the rest of 107 bytes is for the session's name and the socket's


def runtime_root() -> Path:
    """The directory, private to this user, under which sessions live; made when it is not there.

    Raises:
        StartupFailed: no place for it can be used; says of each why.
    """
    places = (os.environ.get("XDG_RUNTIME_DIR"), _temporary(), "/tmp")
    refused: dict[Path, str] = {}
    for place in filter(None, places):
        root = Path(place) / f"kernel_bridge-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
        reason = _why_unusable(root)
        if reason is None:
            return root
        refused[root] = reason
    reasons = "; ".join(f"{root}: {reason}" for root, reason in refused.items())
    raise StartupFailed(
        f"there is no private directory with a short path for the kernel's sockets: {reasons}. Pass "
        f"runtime_dir=, a directory of yours with mode 0700 and a path of at most {_LONGEST_ROOT} bytes"
    )


def _temporary() -> str | None:
    try:
        return tempfile.gettempdir()
    except OSError:  # there is none that can be written
        return None


def _why_unusable(root: Path) -> str | None:
    """Why sessions cannot live below a directory, which is made if it can be; None: they can."""
    if not root.is_absolute():
        return "the path is relative"
    if os.name == "posix" and len(os.fsencode(root)) > _LONGEST_ROOT:
        return f"the path has more than {_LONGEST_ROOT} bytes"
    try:
        with contextlib.suppress(FileExistsError):
            make_directory(root)
        if not _is_private(root):
            return "it is there already and is not a directory of this user alone"
    except OSError as error:
        return error.strerror or str(error)
    return None if os.access(root, os.W_OK | os.X_OK) else "it cannot be written"


def _is_private(path: Path) -> bool:
    if os.name != "posix":
        return True
    found = path.lstat()
    # Search by others is allowed: under Landlock a kernel of another user has to pass through.
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o066


@contextlib.contextmanager
def _usable(root: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        text = f"the runtime directory {str(root)!r} cannot be used: {error}"
        raise StartupFailed(text + what_to_do(text)) from error


def _check_descriptors() -> None:
    """See that there are as many as it takes to remove a directory, before one is made. Raises: OSError."""
    with contextlib.ExitStack() as held:
        for _ in range(_REMOVING_DESCRIPTORS):
            held.callback(os.close, os.open(os.devnull, os.O_RDONLY))


class SessionDirectory:
    """The directory of one session; `remove` ends it."""

    def __init__(self, root: Path | None) -> None:
        if root is not None:
            with _usable(root):
                root = Path(os.path.expanduser(root)).absolute()
                make_directory(root, parents=True)
            if os.name == "posix" and len(os.fsencode(root)) > _LONGEST_ROOT:
                raise StartupFailed(
                    f"runtime_dir {str(root)!r} is {len(os.fsencode(root))} bytes long; sockets below it need a path "
                    f"of at most {_LONGEST_ROOT}"
                )
        self.path = (runtime_root() if root is None else root) / secrets.token_hex(_NAME_BYTES)
        with _usable(self.path.parent):
            _check_descriptors()
            make_directory(self.path)
        self.scratch = self.path / "scratch"
        self.keep = self.path / "keep"
        self.connection_file = self.path / CONNECTION
        self._generation = 0
        try:
            with _usable(self.path.parent):
                write_facts(self.path)  # first: by it the rest is found
                for path in (self.scratch, self.keep):
                    make_directory(path)
                self._make_slots()
        except BaseException:
            self.remove()
            raise

    def next_layout(self) -> Layout:
        """The directories of the next kernel of this session: fresh ones for its sockets and its files.

        A predecessor may have been killed for the files it left, and they may belong to a user that it was alone.
        """
        self._generation += 1
        path = self.path / f"k{self._generation}"
        make_directory(path)
        make_directory(self.host_sockets)
        if self._generation > 1:
            remove_tree(self.path / f"k{self._generation - 1}")
            remove_tree(self.path / f"h{self._generation - 1}")
            remove_tree(self.scratch)
            make_directory(self.scratch, parents=True)
            self._take_back_keep()
        return Layout(self.path, self.path / "launch.json", path, self.keep, self.scratch)

    def note_start(self, started: float) -> None:
        """Say when the session began that lives here: seconds since the epoch. Raises: OSError."""
        write_facts(self.path, started)

    def receive_checkpoint(self, left: SessionDirectory, most: int) -> None:
        """Take over the last checkpoint of a kernel that has died in another directory, if there is one.

        The kernel of this directory runs already, so the bytes go into the files that it has.

        Args:
            most: bytes; a larger one is left behind.

        Raises:
            OSError, ValueError: a part of it may have been copied.
        """
        left._take_back_keep()
        left.drop_checkpoint_above(most)
        slot = newest(str(left.keep / CHECKPOINT))
        if slot is not None:
            _copy_slot(slot, slot_paths(str(self.keep / CHECKPOINT))[0])

    def _take_back_keep(self) -> None:
        """Once a kernel has died: what lies there, and who may look at it, was the kernel's own to change."""
        os.chmod(self.keep, 0o700)  # as its owner, it may have shut it
        self._make_slots()

    def _make_slots(self) -> None:
        """See that there are the two files in which checkpoints are kept, and nothing else, whoever wrote there."""
        slots = [Path(slot) for slot in slot_paths(str(self.keep / CHECKPOINT))]
        for path in self.keep.iterdir():
            found = path.lstat()
            if path not in slots or not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
                remove_tree(path)
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        for path in slots:
            with contextlib.suppress(FileExistsError):
                os.close(open_new(path))

    def drop_checkpoint_above(self, most: int) -> None:
        """Empty each of its two files that takes more bytes than this; no kernel made that to have it restored.

        Else the next kernel would be killed for what its predecessor has left.
        """
        for slot in slot_paths(str(self.keep / CHECKPOINT)):
            found = os.lstat(slot)
            if max(found.st_size, getattr(found, "st_blocks", 0) * 512) > most:
                os.close(os.open(slot, os.O_WRONLY | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)))

    @property
    def host_sockets(self) -> Path:
        """Where the host has its own names for the sockets of the present kernel."""
        return self.path / f"h{self._generation}"

    def let_pass(self) -> None:
        """Let another user search the directories above the kernel's own, but not list them."""
        for path in (self.path, self.path.parent):
            os.chmod(path, 0o711)

    def remove(self) -> None:
        """Delete the directory and all in it, whatever modes the agent's code gave its files."""
        remove_tree(self.path, last=FACTS)


def _copy_slot(slot: Slot, target: str) -> None:
    """Copy a file of a checkpoint, as bytes, into one that is there and empty. Raises: OSError, ValueError."""
    with open_slot(slot.path) as source, open_slot(target, os.O_WRONLY) as copy:
        left = os.fstat(source).st_size  # all that wrote it has ended
        while left > 0 and (data := os.read(source, min(left, _CHUNK))):
            left -= len(data)
            write_whole(copy, data)


def remove_nameless(path: Path) -> None:
    """Remove a session's directory that names no host: its host was killed just after making it, or while removing it.

    Only one that is old, and that holds nothing but perhaps an empty description. Anything else is not ours.
    """
    with contextlib.suppress(OSError):
        if _NAME.fullmatch(path.name) and _is_old(path.lstat()):
            facts = path / FACTS
            if facts.exists() and not facts.stat().st_size:
                facts.unlink()
            path.rmdir()


def _is_old(found: os.stat_result) -> bool:
    """Whether it may be a session's directory, and no link, and has been as it is for long."""
    if os.name == "posix" and (found.st_uid != os.getuid() or found.st_mode & 0o777 not in _MODES):
        return False
    return stat.S_ISDIR(found.st_mode) and time.time() - found.st_mtime > _NAMELESS_SECONDS
