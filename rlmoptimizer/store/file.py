"""The SQLite file of a run store: opened, locked, checked; transactions and queries.

It is in write-ahead mode, and every transaction is synced when it returns: it survives a kill of the process and a
power cut. One process writes, which holds a lock file beside the store; others read at the same time.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sqlite3
import threading
from collections.abc import Callable, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from rlmoptimizer.errors import InvalidSetup, StoreInUse
from rlmoptimizer.store.database import (
    check_beside,
    check_identity,
    check_link,
    check_whole,
    connect,
    connect_to_read,
    found_path,
    make_database,
    remove_strays,
    translated,
)
from rlmoptimizer.store.file_lock import FileLock, Held, lock_path

__all__ = ["StoreFile"]


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
        with _locked(path) as lock, translated(path):
            if path.exists():
                raise InvalidSetup(f"{path} exists already; pass another place for the run store")
            remove_strays(path)
            make_database(path, fill)
            return cls(path, connect(path, "rw"), lock)

    @classmethod
    def write(cls, path: Path) -> StoreFile:
        """Open an existing store as the one that writes to it. What is not a whole store is refused and left as it is.

        Raises `InvalidSetup` when there is none, `StoreInUse` while another process (or another part of this one)
        writes to it, and `StoreCorrupt`.
        """
        check_link(path)
        path = found_path(path)
        with _locked(path) as lock, translated(path):
            check_beside(path)
            check_identity(path)
            check_whole(path)
            return cls(path, connect(path, "rw"), lock)

    @classmethod
    def read(cls, path: Path) -> StoreFile:
        """Open an existing store to look at it, also while another process writes to it.

        Raises `InvalidSetup` when there is none, and `StoreCorrupt`.
        """
        path = found_path(path)
        with translated(path):
            check_identity(path)
            return cls(path, connect_to_read(path), None)

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
        with self.lock, translated(self.path):
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
        with self.lock, translated(self.path):
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
        with self.lock, translated(self.path):
            return self._open().execute(sql, values).fetchall()

    def query_while(self, wanted: Callable[[tuple[Any, ...]], bool], sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """The first rows of a query, up to one that is not `wanted`. No more than one row beyond them is read."""
        self._check_process()
        with self.lock, translated(self.path), closing(self._open().execute(sql, values)) as rows:
            return list(itertools.takewhile(wanted, rows))

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
