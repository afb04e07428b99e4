"""The results of runs, example by example, in the two tables of the run store that hold them.

A run is known by its number. Methods that write are given the transaction that they belong to.
"""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Collection
from typing import Any, Final

from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.rows import RESULTS, decoded, detail_row, example_result

__all__ = ["FAILED", "JUDGED", "SHOWN", "StoredResults"]

JUDGED: Final = "counted = 1"  # has a verdict
SHOWN: Final = "counted = 2 AND NOT taken"  # has none, but shows what was answered before its LM failed
FAILED: Final = "NOT passed"


class StoredResults:
    """The results in one store file, each in the place that its example has in the plan of its run. Thread-safe."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    def put(self, database: sqlite3.Connection, number: int, place: int, result: ExampleResult) -> None:
        """Add a result to a run. It replaces one at the same place; details that another run has taken over stay."""
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
        # Chosen in the narrow rows: OFFSET over the join would read the details of what it skips.
        chosen, values = "SELECT position FROM results WHERE run = ?", list[Any]([number])
        if ids is not None:
            chosen += " AND example_id IN (SELECT value FROM json_each(?))"
            values.append(json.dumps(list(ids)))
        rows = self._file.query(
            f"{RESULTS} WHERE run = ? AND position IN ({chosen} ORDER BY position LIMIT ? OFFSET ?) ORDER BY position",
            number,
            *values,
            -1 if limit is None else limit,
            offset,
        )
        return decoded(example_result, rows, self._file.path)

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
