"""What the store of a branch begins with, copied from the store that it is branched from, in SQLite itself.

The copied runs keep their verdicts, their times and their details. They are marked as taken over, so they count neither
as spent nor as evaluated in the new store.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.rows import as_column

__all__ = ["BranchCopy"]

_RUN: Final = (
    "INSERT INTO runs SELECT :new, 'r' || :new, split, baseline, candidate, config, request, 0, "
    "CASE WHEN baseline THEN answered ELSE 1 END, planned, repeats, state, evaluated, passed, errors, truncated, "
    "judged, unanswered, judged, score, standard_error, objectives, :limit, started_at, finished_at "
    "FROM parent.runs WHERE number = :old"
)
_RESULTS: Final = (
    "INSERT INTO results SELECT :new, position, rollout, example_id, score, passed, error_kind, truncated, counted, "
    ":new, 0, seconds, objectives, detail FROM parent.results WHERE run = :old"
)
_DETAILS: Final = (  # two runs may share some
    "INSERT OR IGNORE INTO details SELECT * FROM parent.details "
    "WHERE id IN (SELECT detail FROM parent.results WHERE run = :old)"
)


@dataclass(frozen=True, slots=True)
class BranchCopy:
    """Fills a new store."""

    parent: Path
    setup: Mapping[str, Any]
    candidates: Sequence[str]  # that are set one after the other: the unchanged one, then that of the run
    runs: Sequence[int]  # numbers in the parent, of runs of these candidates
    limit: int  # budget units

    def __call__(self, database: sqlite3.Connection) -> None:
        """All or nothing. `database` is open to take addresses as names."""
        database.execute("ATTACH ? AS parent", (f"{self.parent.absolute().as_uri()}?mode=ro",))
        with closing(_Attached(database)):
            database.execute("BEGIN IMMEDIATE")
            try:
                self._fill(database)
                database.execute("COMMIT")
            except BaseException:
                database.execute("ROLLBACK")
                raise

    def _fill(self, database: sqlite3.Connection) -> None:
        now = time.time()
        database.execute(
            "INSERT INTO compile (number, setup, started_at) VALUES (1, ?, ?)",
            (as_column(encode(dict(self.setup))), now),
        )
        before: str | None = None
        for candidate in self.candidates:
            database.execute(
                "INSERT INTO candidates SELECT id, ?, prompts, at FROM parent.candidates WHERE id = ?",
                (before, candidate),
            )
            database.execute("INSERT INTO prompts (candidate, at) VALUES (?, ?)", (candidate, now))
            before = candidate
        for new, old in enumerate(self.runs, start=1):
            numbers = {"new": new, "old": old, "limit": self.limit}
            database.execute(_RUN, numbers)
            database.execute("INSERT INTO plans SELECT :new, example_ids FROM parent.plans WHERE run = :old", numbers)
            database.execute(_DETAILS, numbers)
            database.execute(_RESULTS, numbers)


class _Attached:
    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def close(self) -> None:
        self._database.execute("DETACH parent")
