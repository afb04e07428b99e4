"""Temporary directories for people's examples. Making one first removes those that killed processes have left."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rlmoptimizer.store.file_lock import FileLock, Held

__all__ = ["temporary_directory"]

_PREFIX: Final = "rlmoptimizer-"
_LOCK: Final = "in-use.lock"  # held by the process as long as the directory is its own


@contextmanager
def temporary_directory() -> Generator[Path]:
    """A directory of this user alone, in the system's place for temporary files; gone at the end of the block.

    Raises OSError when none can be made.
    """
    _sweep()
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    owner = os.getpid()
    try:
        directory.chmod(0o700)  # the umask may deny its own owner
        with FileLock(directory / _LOCK):
            yield directory
    finally:
        if os.getpid() == owner:  # a child of a fork leaves by here too, when it raises
            shutil.rmtree(directory, ignore_errors=True)


def _sweep() -> None:
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError, Held):  # a live process has it, or another one is removing it
            if _is_ours(directory) and (directory / _LOCK).exists():
                with FileLock(directory / _LOCK):
                    shutil.rmtree(directory, ignore_errors=True)


def _is_ours(directory: Path) -> bool:
    """Whether it looks like one that we made: others may have made one of the same name."""
    found = directory.lstat()
    if os.name != "posix":
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == 0o700
