"""Queries on an open store, the rows that come back as records, and the numbers of runs by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from rlmoptimizer.errors import UnknownRunError
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.results import StoredResults
from rlmoptimizer.store.rows import as_column, decoded

__all__ = ["StoreQueries"]

_T = TypeVar("_T")


class StoreQueries:
    """What all that reads a store is made of. Thread-safe.

    Any method raises `StoreCorrupt` when the file cannot be read.
    """

    def __init__(self, file: StoreFile) -> None:
        self.path = file.path
        self._file = file
        self._results = StoredResults(file)
        self._numbers: dict[str, int] = {}  # of runs, by their ids

    def _query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._file.query(sql, *values)

    def _read(self, make: Callable[[tuple[Any, ...]], _T], rows: Iterable[tuple[Any, ...]]) -> list[_T]:
        return decoded(make, rows, self.path)

    def _number(self, run_id: str) -> int:
        if run_id in self._numbers:
            return self._numbers[run_id]
        rows = self._query("SELECT number FROM runs WHERE run_id = ?", as_column(str(run_id)))
        if not rows:
            known = self._query("SELECT run_id FROM runs ORDER BY number")
            raise UnknownRunError(str(run_id), (row[0] for row in known))
        self._numbers[run_id] = rows[0][0]
        return rows[0][0]
