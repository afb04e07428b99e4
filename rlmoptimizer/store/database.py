"""The SQLite database of a run store: made, checked before it is used, connected to, and its errors."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Final

from kernel_bridge.files.private_files import open_new
from rlmoptimizer.errors import InvalidSetup, StoreCorrupt
from rlmoptimizer.store.file_lock import check_own
from rlmoptimizer.store.temporary_directory import temporary_directory

__all__ = [
    "BUSY_SECONDS", "VERSION", "check_beside", "check_identity", "check_link", "check_whole", "connect",
    "connect_to_read", "found_path", "make_database", "remove_strays", "translated",
]  # fmt: skip

VERSION: Final = 4
BUSY_SECONDS = 60.0  # how long a lock of another program on the database is waited for; read when a store is opened

_READABLE: Final = (3, VERSION)  # version 3 has no table of calls, and is not written to any more
_APPLICATION_ID: Final = 0x524C4D4F  # "RLMO", so that `file` and we know a store when we see one
_SQLITE_SUFFIXES: Final = ("-wal", "-shm", "-journal")  # of files that SQLite keeps beside a database
_INDEX_BYTES: Final = 65536  # SQLite's index of its log begins with half of it
_SMALLEST: Final = 512  # bytes; SQLite takes a file shorter than a page for an empty database


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def remove_strays(path: Path) -> None:
    """Remove what SQLite would take for a part of a store that is about to be made."""
    for suffix in _SQLITE_SUFFIXES:
        stray = _beside(path, suffix)
        try:
            stray.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {stray} is in its way ({error})") from error


def check_beside(path: Path) -> None:
    """Refuse a store beside which there is a link or another user's file that SQLite would read and write."""
    for suffix in _SQLITE_SUFFIXES:
        beside = _beside(path, suffix)
        try:
            check_own(beside.lstat(), beside)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidSetup(f"the run store at {path} cannot be opened: {error}") from error


def check_link(path: Path) -> None:
    """Refuse a link to a store unless this user or the directory's owner has made it."""
    if os.name != "posix" or not path.is_symlink():
        return
    owner = path.lstat().st_uid
    if owner not in (os.geteuid(), path.parent.stat().st_uid):
        raise InvalidSetup(f"{path} is a link that another user (number {owner}) has made; it is not followed")


def found_path(path: Path) -> Path:
    """The path of the file itself, beside which SQLite keeps its log, whatever links lead to it."""
    if not path.is_file():
        raise InvalidSetup(f"there is no run store at {path}" + (": that is no regular file" if path.exists() else ""))
    path = path.resolve()
    if path.stat().st_size < _SMALLEST:
        raise _torn(path, "the file is too short to be one")
    return path


def connect(path: Path, mode: str, options: str = "") -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}{options}"
    database = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)
    if mode != "ro":
        database.execute("PRAGMA synchronous = FULL")
    return database


def make_database(path: Path, fill: Callable[[sqlite3.Connection], None] | None) -> None:
    """Make the file under another name first, so that nobody ever sees half a store."""
    new = _beside(path, ".new")
    new.unlink(missing_ok=True)
    remove_strays(new)
    # It holds the validation set too, so it is for its owner only; SQLite gives the files beside it the same mode.
    os.close(open_new(new))
    try:
        with closing(connect(new, "rw")) as database:
            schema = (resources.files("rlmoptimizer.store") / "schema.sql").read_text("utf-8")
            marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {VERSION};"
            database.executescript(f"BEGIN; {schema} {marks} COMMIT;")
            if fill is not None:
                fill(database)
            database.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    new.replace(path)
    with contextlib.suppress(OSError):  # not every platform can sync a directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def check_identity(path: Path) -> None:
    """Look at the head of the file without touching it or making the files that SQLite keeps beside a database."""
    has_log = _beside(path, "-wal").exists()
    with closing(connect(path, "ro", "&immutable=1")) as database:
        try:
            (application,) = database.execute("PRAGMA application_id").fetchone()
            if application == _APPLICATION_ID and not has_log:
                _check_version(database, path)
                database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
                (page,) = database.execute("PRAGMA page_size").fetchone()
                if path.stat().st_size % page:
                    raise _torn(path, "its last page is cut")  # SQLite would read zeros there
        except sqlite3.DatabaseError as error:
            if "malformed" in str(error) and _beside(path, "-wal").exists():
                return  # perhaps only because somebody is moving the log into the file at this moment
            raise
    if application != _APPLICATION_ID:
        raise StoreCorrupt(str(path), "it is a database of another program", "It is left as it was; pass another path")


def _check_version(database: sqlite3.Connection, path: Path, accepted: tuple[int, ...] = _READABLE) -> None:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < 1:
        raise _torn(path, f"its format has version {version}, and there never was one")
    if version not in accepted:
        raise StoreCorrupt(
            str(path),
            f"its format has version {version}, this is version {VERSION}",
            "Use the version of rlmoptimizer that made it" + (", or a later one" if version > VERSION else ""),
        )


def check_whole(path: Path) -> None:
    """Read all of the file before anything is written to it."""
    with closing(connect(path, "ro", "" if _beside(path, "-wal").exists() else "&immutable=1")) as database:
        _check_version(database, path, (VERSION,))
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _torn(path, found)


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that reads the file, or a private copy of it where SQLite cannot keep its files beside it."""
    database = connect(path, "ro")
    try:
        _check_version(database, path)
    except BaseException as error:
        database.close()
        if not any(text in str(error) for text in ("readonly database", "unable to open database file")):
            raise
    else:
        return database
    try:
        return _copied(path)
    except OSError as error:
        raise StoreCorrupt(str(path), f"it cannot be copied to be read: {error}") from error


def _copied(path: Path) -> sqlite3.Connection:
    """What a file and its log hold, in a database that vanishes with the connection.

    Nobody is writing to them: a process that writes has made those files.
    """
    with temporary_directory() as directory:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(_beside(path, suffix), directory / f"store{suffix}")
        with closing(sqlite3.connect(directory / "store")) as twin:
            copy = sqlite3.connect("", check_same_thread=False, isolation_level=None)
            twin.backup(copy)
            return copy


@contextmanager
def translated(path: Path) -> Generator[None]:
    """Raise SQLite's errors as `StoreCorrupt`."""
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own message may quote what is damaged
        raise _torn(path, "a text column is not valid UTF-8") from error
    except sqlite3.Error as error:
        reason = str(error)
        if any(text in reason for text in ("malformed", "not a database", "disk image", "unsupported file format")):
            raise _torn(path, reason) from error
        if "locked" in reason or "busy" in reason:
            reason = f"another program has kept it locked for {BUSY_SECONDS:.0f} s"
            raise StoreCorrupt(str(path), reason, "End that program, or pass another directory") from error
        if "disk I/O error" in reason and _is_disk_full(path):
            reason = "the disk is full"  # SQLite cannot tell it from a broken one when its log's index finds no room
        raise StoreCorrupt(str(path), reason) from error


def _torn(path: Path, reason: str) -> StoreCorrupt:
    return StoreCorrupt(
        str(path), f"it is damaged ({reason})", "It is left as it was; restore a copy of it, or pass another directory"
    )


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _INDEX_BYTES
    except OSError:
        return False
