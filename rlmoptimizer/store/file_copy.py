"""Private copies of a store's file, for readers that cannot work on the file itself. Knows no tables and no locks."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

from rlmoptimizer.store.temporary_directory import temporary_directory

__all__ = ["copy_of", "copy_of_files", "needs_a_copy"]

_TRIES: Final = 5  # while somebody writes to what is copied


def needs_a_copy(error: sqlite3.Error) -> bool:
    """Whether a database cannot be read because SQLite cannot make the files that it keeps beside it.

    So it is in a directory that is read-only, or another user's.
    """
    return any(told in str(error) for told in ("readonly database", "unable to open database file"))


def copy_of(database: sqlite3.Connection) -> sqlite3.Connection:
    """What a database holds now, in a file that vanishes with the connection. Raises sqlite3.Error."""
    copy = sqlite3.connect("", check_same_thread=False, isolation_level=None)
    try:
        database.backup(copy)
    except BaseException:
        copy.close()
        raise
    return copy


def copy_of_files(path: Path, log: Path) -> sqlite3.Connection:
    """The same of a database and its write-ahead log, which are only read. Raises sqlite3.Error and OSError."""
    with temporary_directory() as directory:
        twin = directory / "store"
        for _ in range(_TRIES):
            before = _marks(path, log)
            shutil.copyfile(path, twin)
            if before[1] is not None:
                shutil.copyfile(log, f"{twin}-wal")
            if _marks(path, log) == before:
                break
        else:
            raise sqlite3.OperationalError("it changes faster than it can be copied")
        database = sqlite3.connect(twin)
        try:
            return copy_of(database)
        finally:
            database.close()


def _marks(*paths: Path) -> list[tuple[int, ...] | None]:
    """What tells that a file has changed; None: there is none."""
    return [_mark(path) for path in paths]


def _mark(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
