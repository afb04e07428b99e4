"""The run store's file: opened, locked, checked, brought to the present version; transactions. Knows no tables.

In write-ahead mode, every transaction synced when it returns: what is told as stored survives a kill of the process and
a power cut. One process writes, told by a lock file beside the store; others read at the same time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Generator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, Final

from kernel_bridge.files.private_files import open_new
from rlmoptimizer.errors import InvalidSetup, StoreCorrupt, StoreInUse
from rlmoptimizer.store.file_copy import copy_of, copy_of_files, needs_a_copy
from rlmoptimizer.store.file_lock import FileLock, Held, check_own
from rlmoptimizer.store.json_text import decode

__all__ = ["BUSY_SECONDS", "VERSION", "StoreFile", "candidate_id", "store_path", "stores_in"]

VERSION: Final = 2

_APPLICATION_ID: Final = 0x524C4D4F  # "RLMO", so that `file` and we know a store when we see one
_NAME: Final = "runs-{:04d}.sqlite"
_INDEX_BYTES: Final = 65536  # SQLite's index of its log begins with half of it
_SMALLEST: Final = 512  # bytes; SQLite takes what is shorter than a page for an empty database
BUSY_SECONDS = 60.0  # how long a lock of another program on the database is waited for; read when a store is opened


class StoreFile:
    """One open store file. Thread-safe. Every method raises `StoreCorrupt` when SQLite cannot do it.

    Made by `create`, `write` or `read`; ended by `close`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lock: FileLock | None) -> None:
        self.path = path
        self.read_only = lock is None
        self._connection: sqlite3.Connection | None = connection
        self._file_lock = lock
        self.lock = threading.RLock()
        self._process = os.getpid()

    @classmethod
    def create(cls, path: Path) -> StoreFile:
        """Make a new store. Raises `InvalidSetup` when there is something already or the place cannot hold one."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {error}") from error
        lock = _locked(path)
        try:
            if path.exists():
                raise InvalidSetup(f"{path} exists already; pass another place for the run store")
            _remove_strays(path)
            with _translated(path):
                _make(path)
                return cls(path, _connect(path, "rw"), lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def write(cls, path: Path) -> StoreFile:
        """Open an existing store as the one that writes to it. What is not a whole store is refused and left as it is.

        Raises `InvalidSetup` when there is none, `StoreInUse` while another process (or another part of this one)
        writes to it, and `StoreCorrupt`.
        """
        _check_link(path)
        path = _found(path)
        lock = _locked(path)
        try:
            _check_beside(path)
            with _translated(path):
                _check_identity(path)
                _check_whole(path)
                connection = _connect(path, "rw")
                try:
                    _migrate(connection, path)
                except BaseException:
                    connection.close()
                    raise
                return cls(path, connection, lock)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def read(cls, path: Path) -> StoreFile:
        """Open an existing store to look at it, also while another process writes to it.

        Raises `InvalidSetup` when there is none, and `StoreCorrupt`.
        """
        path = _found(path)
        with _translated(path):
            _check_identity(path)
            connection = _reading(path)
            try:
                return cls(path, _at_present_version(connection, path), None)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        """Idempotent. A child of a fork leaves all to its parent."""
        if os.getpid() != self._process:
            return
        with self.lock:
            connection, self._connection = self._connection, None
            lock, self._file_lock = self._file_lock, None
            try:
                if connection is not None:
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
                    with contextlib.suppress(sqlite3.Error):  # the error that brought us here is the one to be told
                        if database.in_transaction:
                            database.execute("ROLLBACK")
                    raise
            finally:
                if not survives_power_cut:
                    database.execute("PRAGMA synchronous = FULL")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        self._check_process()
        with self.lock, _translated(self.path):
            return self._open().execute(sql, values).fetchall()

    def _check_process(self) -> None:
        # SQLite's own state is no child's, and the lock below may be held by a thread that is not there.
        if os.getpid() != self._process:
            raise RuntimeError(
                f"the run store {self.path} belongs to process {self._process}, of which this one is a fork; it cannot "
                "be used here"
            )

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise RuntimeError(f"the run store {self.path} is closed")
        return self._connection


def store_path(directory: Path, number: int) -> Path:
    return directory / _NAME.format(number)


def stores_in(directory: Path) -> list[int]:
    """The numbers of the stores in a directory, ascending; [] also when there is no directory.

    Raises `InvalidSetup` when it cannot be searched.
    """
    names = (re.fullmatch(r"runs-(\d{4}|[1-9]\d{4,8})\.sqlite", path.name) for path in _entries(directory))
    return sorted(int(match[1]) for match in names if match)


def candidate_id(prompts_json: str | bytes) -> str:
    """The id of a map of prompts, from its stored text: 16 hexadecimal digits; the order of the steps counts."""
    data = prompts_json if isinstance(prompts_json, bytes) else prompts_json.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(data, digest_size=8).hexdigest()


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InvalidSetup(f"{directory} cannot be searched for run stores: {error}") from error


@contextmanager
def _translated(path: Path) -> Generator[None]:
    try:
        yield
    except UnicodeDecodeError as error:  # SQLite's own message may quote what is damaged
        raise _torn(path, "a text in it is none") from error
    except sqlite3.Error as error:
        reason = str(error)
        if _is_damage(error):
            raise _torn(path, reason) from error
        if "locked" in reason or "busy" in reason:
            reason = f"another program has kept it locked for {BUSY_SECONDS:.0f} s"
            raise StoreCorrupt(str(path), reason, "End that program, or pass another directory") from error
        if "disk I/O error" in reason and _is_disk_full(path):
            reason = "the disk is full"  # SQLite cannot tell it from a broken one when its log's index finds no room
        raise StoreCorrupt(str(path), reason) from error


def _is_disk_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _INDEX_BYTES
    except OSError:
        return False


def _locked(path: Path) -> FileLock:
    try:
        return FileLock(path.with_name(path.name + ".lock"))
    except Held as held:
        raise StoreInUse(str(path), held.pid) from None
    except OSError as error:
        raise InvalidSetup(f"no run store can be kept at {path}: {error}") from error


_BESIDE: Final = ("-wal", "-shm", "-journal")  # the files that SQLite keeps beside a database, and takes as its own


def _remove_strays(path: Path) -> None:
    """Remove what lies beside a store that is not there: SQLite would take it for a part of the new one."""
    for suffix in _BESIDE:
        stray = path.with_name(path.name + suffix)
        try:
            stray.unlink(missing_ok=True)
        except OSError as error:
            raise InvalidSetup(f"no run store can be made at {path}: {stray} is in its way ({error})") from error


def _check_beside(path: Path) -> None:
    """See that what SQLite keeps beside the store is no link and nobody else's: it would be read and written."""
    for suffix in _BESIDE:
        beside = path.with_name(path.name + suffix)
        try:
            check_own(beside.lstat(), beside)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise InvalidSetup(f"the run store at {path} cannot be opened: {error}") from error


def _check_link(path: Path) -> None:
    """See that a link to a store is this user's, or the directory's owner's: others may have put one there."""
    if os.name != "posix" or not path.is_symlink():
        return
    owner = path.lstat().st_uid
    if owner not in (os.geteuid(), path.parent.stat().st_uid):
        raise InvalidSetup(f"{path} is a link that another user (number {owner}) has made; it is not followed")


def _connect(path: Path, mode: str, options: str = "") -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}{options}"
    database = sqlite3.connect(address, uri=True, check_same_thread=False, isolation_level=None, timeout=BUSY_SECONDS)
    if mode != "ro":
        database.execute("PRAGMA synchronous = FULL")
    return database


def _make(path: Path) -> None:
    """Make the file under another name first, so that nobody ever sees half a store."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    _remove_strays(new)
    # It holds the examples, the validation set's too: for its owner only, and SQLite makes the files beside it alike.
    os.close(open_new(new))
    database = _connect(new, "rw")
    try:
        marks = f"PRAGMA application_id = {_APPLICATION_ID}; PRAGMA user_version = {VERSION};"
        database.executescript(f"BEGIN; {_script('schema.sql')} {marks} COMMIT;")
        database.execute("PRAGMA journal_mode = WAL")
    except BaseException:
        database.close()
        new.unlink(missing_ok=True)
        raise
    database.close()
    new.replace(path)
    with contextlib.suppress(OSError):  # not every platform can sync a directory
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _script(name: str) -> str:
    return (resources.files("rlmoptimizer.store") / name).read_text("utf-8")


def _found(path: Path) -> Path:
    """The path of the file itself: SQLite keeps its log beside that, whatever links lead to it; so is the lock."""
    if not path.is_file():
        raise InvalidSetup(f"there is no run store at {path}" + (": that is no regular file" if path.exists() else ""))
    path = path.resolve()
    if path.stat().st_size < _SMALLEST:
        raise _torn(path, "the file is too short to be one")
    return path


def _check_identity(path: Path) -> None:
    """Look at the head of the file without touching it or making the files that SQLite keeps beside a database."""
    database = _connect(path, "ro", "&immutable=1")
    try:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        if application == _APPLICATION_ID and not _log_of(path).exists():
            _version_of(database, path)
            database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            (page,) = database.execute("PRAGMA page_size").fetchone()
            if path.stat().st_size % page:
                raise _torn(path, "its last page is cut")  # SQLite would read zeros there
    except sqlite3.DatabaseError as error:
        if "malformed" in str(error) and _log_of(path).exists():
            return  # perhaps only because somebody is moving the log into the file at this moment
        raise
    finally:
        database.close()
    if application != _APPLICATION_ID:
        raise StoreCorrupt(str(path), "it is a database of another program", "It is left as it was; pass another path")


def _check_whole(path: Path) -> None:
    """Read all of the file before anything is written to it."""
    database = _connect(path, "ro", "" if _log_of(path).exists() else "&immutable=1")
    try:
        (found,) = database.execute("PRAGMA quick_check(1)").fetchone()
    finally:
        database.close()
    if found != "ok":
        raise _torn(path, found)


def _is_damage(error: sqlite3.Error) -> bool:
    return any(told in str(error) for told in ("malformed", "not a database", "disk image", "unsupported file format"))


def _torn(path: Path, reason: str) -> StoreCorrupt:
    return StoreCorrupt(
        str(path), f"it is damaged ({reason})", "It is left as it was; restore a copy of it, or pass another directory"
    )


def _log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _version_of(database: sqlite3.Connection, path: Path) -> int:
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version < 1:
        raise _torn(path, f"its format has version {version}, and there never was one")
    if version > VERSION:
        raise StoreCorrupt(
            str(path),
            f"its format has version {version}, this is version {VERSION}",
            "Use the version of rlmoptimizer that made it, or a later one",
        )
    return version


def _count_of(list_json: str) -> int:
    return len(decode(list_json))


def _migrate(database: sqlite3.Connection, path: Path) -> None:
    for version in range(_version_of(database, path) + 1, VERSION + 1):
        database.create_function("candidate_id", 1, candidate_id, deterministic=True)
        database.create_function("count_of", 1, _count_of, deterministic=True)
        script = _script(f"migrations/{version}.sql")
        try:
            database.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {version}; COMMIT;")
        except BaseException as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if isinstance(error, sqlite3.OperationalError) and "already exists" in str(error):
                raise _torn(path, f"it is no version {version - 1}: {error}") from error
            raise


def _reading(path: Path) -> sqlite3.Connection:
    """A connection that reads the file, or, where SQLite cannot, a private copy of it."""
    database = _connect(path, "ro")
    try:
        _version_of(database, path)
    except sqlite3.OperationalError as error:
        database.close()
        if not needs_a_copy(error):
            raise
    except BaseException:
        database.close()
        raise
    else:
        return database
    try:
        return copy_of_files(path, _log_of(path))
    except OSError as error:
        raise StoreCorrupt(str(path), f"it cannot be copied to be read: {error}") from error


def _at_present_version(database: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """The connection itself, or one to a private copy that was migrated."""
    if _version_of(database, path) == VERSION:
        return database
    copy = copy_of(database)
    try:
        _migrate(copy, path)
    except BaseException:
        copy.close()
        raise
    database.close()
    return copy
