"""The SQLite file of a run store: opened, locked, checked; transactions and queries.

It is in write-ahead mode, and every transaction is synced when it returns: it survives a kill of the process and a
power cut. One process writes, which holds a lock file beside the store; others read at the same time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final

from kernel_bridge.files.private_files import open_new
from rlmoptimizer.errors import InvalidSetup, StoreCorrupt, StoreInUse
from rlmoptimizer.store.file_lock import FileLock, Held, check_own, lock_path
from rlmoptimizer.store.temporary_directory import temporary_directory

__all__ = ["BUSY_SECONDS", "VERSION", "StoreFile", "number_of", "store_path", "stores_in"]

VERSION: Final = 4
BUSY_SECONDS = 60.0  # how long a lock of another program on the database is waited for; read when a store is opened

_READABLE: Final = (3, VERSION)  # version 3 has no table of calls, and is not written to any more
_APPLICATION_ID: Final = 0x524C4D4F  # "RLMO", so that `file` and we know a store when we see one
_NAME: Final = "runs-{:04d}.sqlite"
_NAMES: Final = re.compile(r"runs-(\d{4}|[1-9]\d{4,8})\.sqlite")
_SQLITE_SUFFIXES: Final = ("-wal", "-shm", "-journal")  # of files that SQLite keeps beside a database
_INDEX_BYTES: Final = 65536  # SQLite's index of its log begins with half of it
_SMALLEST: Final = 512  # bytes; SQLite takes a file shorter than a page for an empty database


class StoreFile:
    """One open store file. Thread-safe. Every method raises `StoreCorrupt` when SQLite cannot do it.

    Made by `create`, `write` or `read`; ended by `close`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path = path
        self.lock = threading.RLock()
        self._connection: sqlite3.Connection | None = connection
        self._file_lock = lock  # None: it is only read
        self._process = os.getpid()

    @classmethod
    def create(cls, path: Path, fill: Callable[[sqlite3.Connection], None] | None = None) -> StoreFile:
        """Make a new store, with what `fill` puts into it before anybody sees it.

        Raises `InvalidSetup` when there is something already or the place cannot hold one.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {error}") from error
        with _locked(path) as lock, _translated(path):
            if path.exists():
                raise InvalidSetup(f"{path} exists already; pass another place for the run store")
            _remove_strays(path)
            _make(path, fill)
            return cls(path, _connect(path, "rw"), lock)

    @classmethod
    def write(cls, path: Path) -> StoreFile:
        """Open an existing store as the one that writes to it. What is not a whole store is refused and left as it is.

        Raises `InvalidSetup` when there is none, `StoreInUse` while another process (or another part of this one)
        writes to it, and `StoreCorrupt`.
        """
        _check_link(path)
        path = _found(path)
        with _locked(path) as lock, _translated(path):
            _check_beside(path)
            _check_identity(path)
            _check_whole(path)
            return cls(path, _connect(path, "rw"), lock)

    @classmethod
    def read(cls, path: Path) -> StoreFile:
        """Open an existing store to look at it, also while another process writes to it.

        Raises `InvalidSetup` when there is none, and `StoreCorrupt`.
        """
        path = _found(path)
        with _translated(path):
            _check_identity(path)
            return cls(path, _reading(path), None)

    def close(self) -> None:
        """Idempotent. In a child of a fork it does nothing: the store is its parent's."""
        if os.getpid() != self._process:
            return
        with self.lock:
            connection, self._connection = self._connection, None
            lock, self._file_lock = self._file_lock, None
            try:
                if connection is not None:
                    if lock is not None:
                        _move_log_into_file(connection)
                    connection.close()
            finally:
                if lock is not None:
                    lock.release()

    @contextmanager
    def transaction(self, *, survives_power_cut: bool = True) -> Generator[sqlite3.Connection]:
        """All of the block's changes or none of them; durable when the block has been left."""
        self._check_process()
        with self.lock, _translated(self.path):
            database = self._open()
            if not survives_power_cut:
                # What is in the write-ahead log outlives this process, and the next transaction syncs the log.
                database.execute("PRAGMA synchronous = NORMAL")
            try:
                if database.in_transaction:  # a Ctrl-C came between the beginning of one and its block
                    database.execute("ROLLBACK")
                database.execute("BEGIN IMMEDIATE")
                try:
                    yield database
                    database.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.Error):  # the first error is the one to raise
                        if database.in_transaction:
                            database.execute("ROLLBACK")
                    raise
            finally:
                if not survives_power_cut:
                    database.execute("PRAGMA synchronous = FULL")

    @contextmanager
    def snapshot(self) -> Generator[None]:
        """All that the block reads is as it was when the block first read, whatever others write meanwhile.

        For a file that is only read. Other threads wait with their queries.
        """
        self._check_process()
        with self.lock, _translated(self.path):
            database = self._open()
            if database.in_transaction:  # a Ctrl-C came at the end of an earlier one
                database.execute("ROLLBACK")
            database.execute("BEGIN")
            try:
                yield
            finally:
                database.execute("ROLLBACK")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        self._check_process()
        with self.lock, _translated(self.path):
            return self._open().execute(sql, values).fetchall()

    def _check_process(self) -> None:
        # A child of a fork must not use SQLite's state, and the lock may be held by a thread that it does not have.
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the run store {self.path} belongs to process {self._process}, of which this one is a fork; it cannot "
                "be used here"
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError(f"the run store {self.path} is closed")
        return self._connection


def _move_log_into_file(connection: sqlite3.Connection) -> None:
    """So that the file alone is whole. SQLite sees to it by itself only where nobody else has it open to read."""
    with contextlib.suppress(sqlite3.Error):  # a full disk: the log keeps it
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def store_path(directory: Path, number: int) -> Path:
    return directory / _NAME.format(number)


def stores_in(directory: Path) -> list[int]:
    """The numbers of the stores in a directory, ascending; [] also when there is no directory.

    Raises `InvalidSetup` when it cannot be searched.
    """
    try:
        paths = list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidSetup(f"{directory} cannot be searched for run stores: {error}") from error
    numbers = (number_of(path) for path in paths)
    return sorted(number for number in numbers if number is not None)


def number_of(path: Path) -> int | None:
    """The number that a store has in its directory; None: the file has a name of its own."""
    match = _NAMES.fullmatch(path.name)
    return int(match[1]) if match else None


@contextmanager
def _translated(path: Path) -> Generator[None]:
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


@contextmanager
def _locked(path: Path) -> Generator[FileLock]:
    """The lock of the process that writes; released only when the block raises."""
    try:
        lock = FileLock(lock_path(path))
    except Held as held:
        raise StoreInUse(str(path), held.pid) from None
    except OSError as error:
        raise InvalidSetup(f"no run store can be kept at {path}: {error}") from error
    try:
        yield lock
    except BaseException:
        lock.release()
        raise


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _remove_strays(path: Path) -> None:
    """Remove what SQLite would take for a part of a store that is about to be made."""
    for suffix in _SQLITE_SUFFIXES:
        stray = _beside(path, suffix)
        try:
            stray.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {stray} is in its way ({error})") from error


def _check_beside(path: Path) -> None:
    """Refuse a store beside which there is a link or another user's file that SQLite would read and write."""
    for suffix in _SQLITE_SUFFIXES:
        beside = _beside(path, suffix)
        try:
            check_own(beside.lstat(), beside)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidSetup(f"the run store at {path} cannot be opened: {error}") from error


def _check_link(path: Path) -> None:
    """Refuse a link to a store unless this user or the directory's owner has made it."""
    if os.name != "posix" or not path.is_symlink():
        return
    owner = path.lstat().st_uid
    if owner not in (os.geteuid(), path.parent.stat().st_uid):
        raise InvalidSetup(f"{path} is a link that another user (number {owner}) has made; it is not followed")


def _found(path: Path) -> Path:
    """The path of the file itself, beside which SQLite keeps its log, whatever links lead to it."""
    if not path.is_file():
        raise InvalidSetup(f"there is no run store at {path}" + (": that is no regular file" if path.exists() else ""))
    path = path.resolve()
    if path.stat().st_size < _SMALLEST:
        raise _torn(path, "the file is too short to be one")
    return path


def _connect(path: Path, mode: str, options: str = "") -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}{options}"
    database = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)
    if mode != "ro":
        database.execute("PRAGMA synchronous = FULL")
    return database


def _make(path: Path, fill: Callable[[sqlite3.Connection], None] | None) -> None:
    """Make the file under another name first, so that nobody ever sees half a store."""
    new = _beside(path, ".new")
    new.unlink(missing_ok=True)
    _remove_strays(new)
    # It holds the validation set too, so it is for its owner only; SQLite gives the files beside it the same mode.
    os.close(open_new(new))
    try:
        with closing(_connect(new, "rw")) as database:
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


def _check_identity(path: Path) -> None:
    """Look at the head of the file without touching it or making the files that SQLite keeps beside a database."""
    has_log = _beside(path, "-wal").exists()
    with closing(_connect(path, "ro", "&immutable=1")) as database:
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


def _check_whole(path: Path) -> None:
    """Read all of the file before anything is written to it."""
    with closing(_connect(path, "ro", "" if _beside(path, "-wal").exists() else "&immutable=1")) as database:
        _check_version(database, path, (VERSION,))
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise _torn(path, found)


def _reading(path: Path) -> sqlite3.Connection:
    """A connection that reads the file, or a private copy of it where SQLite cannot keep its files beside it."""
    database = _connect(path, "ro")
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
