"""A file that is made of a run store: whole or not there, and its owner's alone."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlmoptimizer.errors import InvalidSetup

__all__ = ["write_whole"]


def write_whole(pieces: Iterable[str], path: Path, store: Path, what: str, example: str) -> None:
    """Write pieces of text to a file, as they come; a file of this name is replaced once the new one is whole.

    Only its owner may read it: what is made of the store at `store` holds examples of train.

    Args:
        what: it is, for an error.
        example: a name that such a file may have.

    Raises:
        InvalidSetup: no file can be written there, or it is the store itself. What making a piece raises comes through;
            what the first raises, before a file is made.
    """
    if path.is_dir():
        raise InvalidSetup(f"{path} is a directory; name a file, such as {path / example}")
    if path.exists() and os.path.samefile(path, store):
        raise InvalidSetup(f"{path} is the run store itself; name another file, such as {example}")
    _check_replaceable(path)
    rest = iter(pieces)
    first = next(rest, "")
    try:
        descriptor, new_name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".new")
        _write(Path(new_name), descriptor, first, rest, path)
    except OSError as error:
        reason = error.strerror or error
        raise InvalidSetup(f"no {what} can be written to {path}: {reason}; name another file") from error


def _check_replaceable(path: Path) -> None:
    """Raise `InvalidSetup` where something else than a plain file lies: it would be replaced, also a device by root."""
    with contextlib.suppress(OSError):  # nothing is there, or what writes there says why it cannot
        if not stat.S_ISREG(path.lstat().st_mode):
            raise InvalidSetup(f"{path} is a link, a device or a pipe, which is not replaced; name a plain file")


def _write(new: Path, descriptor: int, first: str, rest: Iterator[str], path: Path) -> None:
    try:
        with open(descriptor, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            file.write(first)
            file.writelines(rest)
        new.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise
