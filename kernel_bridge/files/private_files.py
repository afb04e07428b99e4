"""Files and directories whose modes do not depend on the mask that a host has set."""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path

__all__ = ["make_directory", "make_file", "open_new"]


def make_directory(path: Path, mode: int = 0o700, *, parents: bool = False) -> None:
    """Make a directory. With `parents`, those above it too; then it may be there already. Raises: OSError."""
    if parents:
        for above in reversed(path.parents):
            _make_above(above)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not (parents and path.is_dir()):
            raise
    else:
        os.chmod(path, mode)


def _make_above(path: Path) -> None:
    if path.exists():
        return
    with contextlib.suppress(FileExistsError):  # somebody was faster
        os.mkdir(path)
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | 0o700)


def open_new(path: Path, mode: int = 0o600) -> int:
    """A new file, open for reading and writing. Nothing that lies there is followed or opened. Raises: OSError."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_BINARY"):
        flags |= getattr(os, name, 0)
    file = os.open(path, flags, mode)
    try:
        if hasattr(os, "fchmod"):
            os.fchmod(file, mode)
    except BaseException:
        os.close(file)
        raise
    return file


def make_file(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Make a file that holds this, in the place of one of the same name. Raises: OSError."""
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with open(open_new(path, mode), "wb") as file:
        file.write(data)
