"""One optimization as the live page gets it: its status, its document and its examples, when they are asked for."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from kernel_bridge.text import error_text
from rlmoptimizer.errors import InvalidSetup, OptimizerError
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.show.report.document import DocumentReader
from rlmoptimizer.show.report.json_values import json_bytes
from rlmoptimizer.steering.branches import awaited_parent
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.directory import number_of, stores_in
from rlmoptimizer.store.file_lock import holder
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["Body", "ShownOptimization", "Status"]

_UNSETTLED_NS: Final = 100_000_000  # a file that changed so short ago may change again without looking different
_COMPRESSION: Final = 3  # fast: most pages are on this machine


@dataclass(frozen=True, slots=True)
class Status:
    """What the page shows of an optimization besides its document."""

    revision: str  # differs when the document may differ
    state: OptimizationState | None  # None: the store cannot be read, see `problem`
    problem: str | None
    agent_ended: bool  # its agent can no more be asked for anything
    pausing: bool  # a person has asked for a pause
    stopping: bool  # a person has asked to stop and to take the best
    branching: bool  # a branch was prepared, and the running optimization is to make way for it
    refusal: str | None  # why nothing can be asked from here; None: it can
    newest: int  # number of the newest optimization in the directory

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Body:
    """JSON to send."""

    data: bytes  # gzip
    etag: str


class ShownOptimization:
    """Reads one store for all pages that show it. Any thread; one reads at a time."""

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.requests = Requests(path)
        self._lock = threading.Lock()
        self._open: _OpenStore | None = None
        self._work: _Work | None = None  # as it was last read
        self._parent: Path | None = None  # of a branch that has not begun: its end changes the document
        self._document: Body | None = None
        self._seconds = 0.0  # what the last reading of the document took

    def look(self) -> tuple[Status, float]:
        """The status at this moment, and the seconds that it takes to read the document. Raises nothing of a store."""
        revision, asked = self._revision(), self.requests
        if self._work is None or self._work.revision != revision:
            self._work = self._work_at(revision)
        work = self._work
        status = Status(
            revision,
            work.state,
            work.problem,
            work.agent_ended,
            asked.pausing,
            asked.stopping,
            asked.branching,
            asked.refusal(),
            max([self.number, *self._neighbours()]),
        )
        return status, self._seconds

    def document(self) -> Body:
        """Raises `OptimizerError` when the store cannot be read."""
        with self._lock:
            return self._current()

    def examples(self, chunk: int) -> Body:
        """Raises `OptimizerError` when the store cannot be read, and IndexError when it has no such chunk."""
        with self._lock:
            document = self._current()
            return _body(document.etag, self._opened().document.examples(chunk))

    def close(self) -> None:
        """Idempotent; it is opened again when it is read again."""
        with self._lock:
            found, self._open = self._open, None
            if found is not None:
                found.store.close()

    def _work_at(self, revision: str) -> _Work:
        try:
            with self._lock:
                store = self._opened().store
                self._parent = awaited_parent(store)
                return _Work(revision, state_of(store), None, store.agent_end() is not None)
        except (OptimizerError, OSError) as error:
            return _Work(revision, None, error_text(error), False)

    def _current(self) -> Body:
        revision = self._revision()
        if self._document is None or self._document.etag != revision:
            began = time.monotonic()
            self._document = _body(revision, self._opened().document.read())
            self._seconds = time.monotonic() - began
        return self._document

    def _opened(self) -> _OpenStore:
        # Where SQLite cannot keep its files beside the store, what was opened is a copy of it. When a process begins
        # to write, there is a new log.
        if self._open is not None and self._open.files != _files_of(self.path):
            self._open.store.close()
            self._open = None
        if self._open is None:
            store = StoreReader.open(self.path)
            self._open = _OpenStore(store, DocumentReader(store), _files_of(self.path))
        return self._open

    def _neighbours(self) -> list[int]:
        """The numbers of the optimizations in the directory; [] where this one has no number."""
        if number_of(self.path) is None:
            return []
        try:
            return stores_in(self.path.parent)
        except InvalidSetup:  # it may be read, but not be searched
            return []

    def _revision(self) -> str:
        """A digest of all that the document depends on, without opening the store."""
        paths = (self.path, _log_of(self.path), self.requests.directory)
        awaited = None if self._parent is None else (self._parent.name, holder(self._parent))
        marks = (*(_mark(path) for path in paths), holder(self.path), awaited)
        return hashlib.sha256(repr(marks).encode()).hexdigest()[:20]


@dataclass(frozen=True, slots=True)
class _Work:
    """What the store says of the work, at a revision."""

    revision: str
    state: OptimizationState | None
    problem: str | None
    agent_ended: bool


@dataclass(frozen=True, slots=True)
class _OpenStore:
    store: StoreReader
    document: DocumentReader
    files: tuple[int | None, ...]  # which files it was opened on


def _body(revision: str, value: Any) -> Body:
    return Body(gzip.compress(json_bytes(value), _COMPRESSION, mtime=0), revision)


def _log_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def _files_of(path: Path) -> tuple[int | None, ...]:
    """The numbers by which the system knows a store's file and its log; None: there is none."""
    marks = (_mark(path), _mark(_log_of(path)))
    return tuple(None if mark is None else mark[0] for mark in marks)


def _mark(path: Path) -> tuple[int, ...] | None:
    """What differs when a file has changed; None: there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    settled = time.time_ns() - found.st_mtime_ns > _UNSETTLED_NS
    return found.st_ino, found.st_size, found.st_mtime_ns, settled
