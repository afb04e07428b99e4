"""The results of runs, example by example, in the two tables of the run store that hold them.

Knows a run by its number only: not what it is called, on which split it is or whether it has ended. What writes is
given the transaction that it belongs to.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Final

from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.rows import RESULTS, decoded, detail_row, example_result

__all__ = ["FAILED", "JUDGED", "SHOWN", "StoredResults"]

JUDGED: Final = "counted = 1"  # has a verdict
SHOWN: Final = "counted = 2 AND NOT taken"  # has none, but shows what was answered before its LM failed
FAILED: Final = "NOT passed"

_MOST_VARIABLES: Final = 500  # in one statement; SQLite may take no more than 999


class StoredResults:
    """The results in one store file. Thread-safe. A result has a place in its run, which is that in the run's plan."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    def put(self, database: sqlite3.Connection, number: int, place: int, result: ExampleResult) -> None:
        """Add a result to a run; one that is at its place already gives way, unless another run has taken it over."""
        database.execute(
            "DELETE FROM details WHERE id = "
            "(SELECT detail FROM results WHERE run = ? AND position = ? AND origin IS NULL AND NOT taken)",
            (number, place),
        )
        detail = database.execute(
            "INSERT INTO details VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", detail_row(result)
        ).lastrowid
        database.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, ?)",
            (
                number,
                place,
                result.example_id,
                result.score,
                int(result.passed),
                result.error_kind,
                1 if result.has_verdict else 2 if result.shows_answers else 0,
                result.seconds,
                detail,
            ),
        )

    def take_over(self, database: sqlite3.Connection, number: int, place: int, source: tuple[int, int]) -> None:
        """Make the result at `source`, a run's number and a place in it, one of this run too."""
        database.execute(
            "INSERT INTO results SELECT ?, ?, example_id, score, passed, error_kind, counted, run, 0, seconds, "
            "detail FROM results WHERE run = ? AND position = ?",
            (number, place, *source),
        )
        database.execute("UPDATE results SET taken = 1 WHERE run = ? AND position = ?", source)

    def totals(self, number: int) -> tuple[Any, ...]:
        """evaluated, passed, errors, unanswered, reused, score: of all results that a run has."""
        rows = self._file.query("SELECT score, passed, error_kind, counted, origin FROM results WHERE run = ?", number)
        counted = [row for row in rows if row[3] == 1]
        # fsum is exact, so the mean does not depend on the order in which the examples finished.
        score = math.fsum(row[0] for row in counted) / len(counted) if counted else None
        passed = sum(row[1] for row in counted)
        errors = sum(row[2] is not None for row in counted)
        reused = sum(row[4] is not None for row in counted)
        return len(counted), passed, errors, len(rows) - len(counted), reused, score

    def examples(self, number: int, ids: Collection[str] | None, offset: int, limit: int | None) -> list[ExampleResult]:
        """The results of a run by place; `ids` filters (None: all), then `offset` and `limit` (None: no end) cut."""
        if ids is None:
            most = -1 if limit is None else limit
            # Chosen in the narrow rows: OFFSET over the join would read the details of what it skips.
            places = "SELECT position FROM results WHERE run = ? ORDER BY position LIMIT ? OFFSET ?"
            order = f"{RESULTS} WHERE run = ? AND position IN ({places}) ORDER BY position"
            return self._read(self._file.query(order, number, number, most, offset))
        found: list[tuple[Any, ...]] = []
        for some in _chunks(sorted(set(ids))):
            wanted = f"SELECT position FROM results WHERE run = ? AND example_id IN ({_marks(some)})"
            found += self._file.query(wanted, number, *some)
        places = sorted(row[0] for row in found)[offset : None if limit is None else offset + limit]
        rows: list[tuple[Any, ...]] = []
        for some in _chunks(places):
            order = f"{RESULTS} WHERE run = ? AND position IN ({_marks(some)}) ORDER BY position"
            rows += self._file.query(order, number, *some)
        return self._read(rows)

    def ids(self, number: int, which: str = "TRUE") -> list[str]:
        """The ids of the examples of a run that have a result, by place; only those of which `which` is true."""
        sql = f"SELECT example_id FROM results WHERE run = ? AND {which} ORDER BY position"
        return [row[0] for row in self._file.query(sql, number)]

    def error_kinds(self, number: int) -> dict[str, int]:
        """How many examples of a run have an error of each kind."""
        count = "SELECT error_kind, COUNT(*) FROM results WHERE run = ? AND error_kind IS NOT NULL GROUP BY error_kind"
        return dict(self._file.query(count, number))

    def metric_works(self) -> bool:
        """Whether the metric has ever judged an example without raising."""
        judged = "SELECT 1 FROM results WHERE counted = 1 AND (error_kind IS NULL OR error_kind = 'score') LIMIT 1"
        return bool(self._file.query(judged))

    def evaluated(self) -> int:
        """Examples that were run, in all runs together."""
        return self._file.query("SELECT COUNT(*) FROM results WHERE origin IS NULL")[0][0]

    def _read(self, rows: Iterable[tuple[Any, ...]]) -> list[ExampleResult]:
        return decoded(example_result, rows, self._file.path)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _chunks(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    return (values[start : start + _MOST_VARIABLES] for start in range(0, len(values), _MOST_VARIABLES))
