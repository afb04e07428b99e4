"""The results of runs, rollout by rollout, in the two tables of the run store that hold them.

A run is known by its number, a result in it by its example's position in the plan and by its rollout. Methods that
write are given the transaction that they belong to.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from typing import Any, Final, NamedTuple

from rlmoptimizer.records import ExampleResult, Rollout
from rlmoptimizer.store.file import StoreFile
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.rows import (
    RESULTS,
    as_column,
    decoded,
    detail_row,
    example_result,
    from_column,
)
from rlmoptimizer.store.totals import JudgedRollout, totals_row

__all__ = ["JUDGED", "SHOWN", "Place", "RolloutScore", "StoredResults"]

JUDGED: Final = "counted = 1"  # has a verdict
SHOWN: Final = "counted = 2 AND NOT taken"  # has none, but shows what was answered before its LM failed

_DOCUMENTS: Final = 4  # the last columns of `RESULTS`, which hold all that is large

Place = tuple[int, int, int]  # of a result: the number of its run, the position of its example, its rollout


class RolloutScore(NamedTuple):
    """What is counted of a rollout."""

    example_id: str
    score: float  # 0..1
    is_judged: int  # 1: it has a verdict
    error_kind: str | None  # None: no error
    detail: int  # which the runs that share a result have in common


class StoredResults:
    """The results in one store file. Thread-safe."""

    def __init__(self, file: StoreFile) -> None:
        self._file = file

    def put(self, database: sqlite3.Connection, number: int, position: int, result: ExampleResult) -> None:
        """Add a result to a run. It replaces one at the same place; details that another run has taken over stay."""
        database.execute(
            "DELETE FROM details WHERE id = (SELECT detail FROM results "
            "WHERE run = ? AND position = ? AND rollout = ? AND origin IS NULL AND NOT taken)",
            (number, position, result.rollout),
        )
        detail = database.execute(
            "INSERT INTO details VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", detail_row(result)
        ).lastrowid
        database.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, 0, ?, ?, ?)",
            (
                number,
                position,
                result.rollout,
                result.example_id,
                result.score,
                int(result.passed),
                result.error_kind,
                int(result.is_truncated),
                1 if result.has_verdict else 2 if result.shows_answers else 0,
                result.seconds,
                None if result.objectives is None else as_column(encode(result.objectives)),
                detail,
            ),
        )

    def take_over(self, database: sqlite3.Connection, number: int, position: int, source: Place) -> None:
        """Make the result at `source` one of this run too, for the same rollout."""
        database.execute(
            "INSERT INTO results SELECT ?, ?, rollout, example_id, score, passed, error_kind, truncated, "
            "counted, run, 0, seconds, objectives, detail FROM results WHERE run = ? AND position = ? AND rollout = ?",
            (number, position, *source),
        )
        database.execute("UPDATE results SET taken = 1 WHERE run = ? AND position = ? AND rollout = ?", source)

    def totals(self, number: int) -> tuple[Any, ...]:
        """The columns of `runs` from `evaluated` to `objectives`, of all results that a run has."""
        rows = self._file.query(
            f"SELECT {JUDGED}, position, score, passed, error_kind IS NOT NULL, truncated, origin IS NOT NULL, "
            "objectives FROM results WHERE run = ?",
            number,
        )
        judged = [JudgedRollout(*row) for is_judged, *row in rows if is_judged]
        return decoded(totals_row, [(judged, len(rows) - len(judged))], self._file.path)[0]

    def examples(
        self, number: int, ids: Collection[str] | None, offset: int, limit: int | None, *, columns: str = RESULTS
    ) -> list[ExampleResult]:
        """The results of a run by place; `ids` filters (None: all), then `offset` and `limit` (None: no end) cut.

        They count examples; each comes with all of its rollouts. `columns`: the query that reads them.
        """
        # Chosen in the narrow rows: OFFSET over the join would read the details of what it skips.
        chosen, values = _chosen(number, ids)
        positions = f"SELECT DISTINCT position FROM results WHERE {chosen} ORDER BY position LIMIT ? OFFSET ?"
        rows = self._file.query(
            f"{columns} WHERE run = ? AND position IN ({positions}) ORDER BY position, rollout",
            number,
            *values,
            -1 if limit is None else limit,
            offset,
        )
        return decoded(example_result, rows, self._file.path)

    def page(
        self, number: int, ids: Collection[str] | None, offset: int, limit: int, most_bytes: int
    ) -> list[ExampleResult]:
        """As `examples`, but no further example once those before it have more bytes than `most_bytes`."""
        chosen, values = _chosen(number, ids)
        positions = f"SELECT DISTINCT position FROM results WHERE {chosen} ORDER BY position LIMIT ? OFFSET ?"
        first, last = self._file.query(
            f"SELECT MIN(position), MAX(position) FROM ({positions})", *values, limit, offset
        )[0]
        if first is None:
            return []
        size, before = 0, first

        def is_wanted(row: tuple[Any, ...]) -> bool:
            nonlocal size, before
            if size > most_bytes and row[0] != before:
                return False
            before = row[0]
            size += sum(map(len, row[-_DOCUMENTS:]))
            return True

        sql = (
            f"{RESULTS.replace('SELECT', 'SELECT position,', 1)} WHERE {chosen} AND position BETWEEN ? AND ? "
            "ORDER BY position, rollout"
        )
        rows = self._file.query_while(is_wanted, sql, *values, first, last)
        return decoded(example_result, [row[1:] for row in rows], self._file.path)

    def count(self, number: int, ids: Collection[str] | None) -> int:
        """Examples of a run that have a result; only those of `ids`, unless it is None."""
        chosen, values = _chosen(number, ids)
        return self._file.query(f"SELECT COUNT(DISTINCT position) FROM results WHERE {chosen}", *values)[0][0]

    def rollouts(self, number: int, which: str = "TRUE") -> list[Rollout]:
        """The rollouts of a run that have a result, by place; only those of which `which` is true."""
        sql = f"SELECT example_id, rollout FROM results WHERE run = ? AND {which} ORDER BY position, rollout"
        return [(example_id, rollout) for example_id, rollout in self._file.query(sql, number)]

    def complete_ids(self, number: int) -> list[str]:
        """The ids of the examples of a run all of whose rollouts have a verdict, by place."""
        sql = (
            "SELECT example_id FROM results JOIN runs ON runs.number = run WHERE run = ? GROUP BY position "
            f"HAVING SUM({JUDGED}) = MAX(repeats) ORDER BY position"
        )
        return [row[0] for row in self._file.query(sql, number)]

    def scores(self, number: int) -> list[tuple[str, int, float]]:
        """Example id, rollout and score of those that have a verdict, by place."""
        sql = f"SELECT example_id, rollout, score FROM results WHERE run = ? AND {JUDGED} ORDER BY position, rollout"
        return [(example_id, rollout, score) for example_id, rollout, score in self._file.query(sql, number)]

    def rollout_scores(self, number: int) -> list[RolloutScore]:
        """All of a run, by place."""
        sql = (
            f"SELECT example_id, score, {JUDGED}, error_kind, detail FROM results WHERE run = ? "
            "ORDER BY position, rollout"
        )
        return [RolloutScore(*row) for row in self._file.query(sql, number)]

    def example_heads(self, number: int, chars: int) -> list[tuple[str, str | None, str]]:
        """Of a run's examples: id, source id, and the first characters of the inputs, as JSON; by place."""
        sql = (
            "SELECT example_id, source_example_id, substr(inputs, 1, ?) FROM results JOIN details ON id = detail "
            "WHERE run = ? GROUP BY position ORDER BY position"
        )
        rows = self._file.query(sql, chars, number)
        return [
            (example_id, None if source is None else from_column(source), _text_of_part(text))
            for example_id, source, text in rows
        ]

    def failed_ids(self, number: int) -> list[str]:
        """The ids of the examples with a result that did not pass, by place: no verdict, or one that is no pass."""
        failed = (
            "SELECT example_id FROM results WHERE run = ? GROUP BY position "
            f"HAVING COALESCE(MIN(CASE WHEN {JUDGED} THEN passed END), 0) = 0 ORDER BY position"
        )
        return [row[0] for row in self._file.query(failed, number)]

    def error_kinds(self, number: int) -> dict[str, int]:
        """How many rollouts of a run have an error of each kind."""
        count = "SELECT error_kind, COUNT(*) FROM results WHERE run = ? AND error_kind IS NOT NULL GROUP BY error_kind"
        return dict(self._file.query(count, number))

    def metric_works(self) -> bool:
        """Whether the metric has ever given an example a score."""
        judged = "SELECT 1 FROM results WHERE counted = 1 AND error_kind IS NULL LIMIT 1"
        return bool(self._file.query(judged))

    def evaluated(self) -> int:
        """Rollouts that were run, in all runs together."""
        return self._file.query("SELECT COUNT(*) FROM results WHERE origin IS NULL")[0][0]


def _chosen(number: int, ids: Collection[str] | None) -> tuple[str, list[Any]]:
    """A condition on `results`, and its values."""
    if ids is None:
        return "run = ?", [number]
    return "run = ? AND example_id IN (SELECT value FROM json_each(?))", [number, json.dumps(list(ids))]


def _text_of_part(column: str | bytes) -> str:
    """Of a column's first bytes or characters."""
    return column if isinstance(column, str) else column.decode("utf-8", "replace")
