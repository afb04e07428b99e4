"""Reading runs: their records, what was asked for, and what each has cost."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.queries import StoreQueries
from rlmoptimizer.store.rows import RUNS, as_column, run_record

__all__ = ["RunReader"]


class RunReader(StoreQueries):
    """Reads runs."""

    def run(self, run_id: str) -> RunRecord:
        """One run. Raises `UnknownRunError`."""
        return self._runs("WHERE number = ?", self._number(run_id))[0]

    def runs(self) -> list[RunRecord]:
        """All runs, oldest first."""
        return self._runs("ORDER BY number")

    def planned_ids(self, run_id: str) -> tuple[str, ...]:
        """The ids of the examples that were chosen, in order. Raises `UnknownRunError`."""
        rows = self._query("SELECT example_ids FROM plans WHERE run = ?", self._number(run_id))
        return self._read(lambda row: tuple(cast("list[str]", decode(row[0]))), rows)[0]

    def run_count(self) -> int:
        """Runs that have begun."""
        return self._query("SELECT COUNT(*) FROM runs")[0][0]

    def find_runs(
        self, split: str, prompts: Mapping[str, str], request: Mapping[str, Any], *, baseline: bool = False
    ) -> list[RunRecord]:
        """The runs that a request goes on with instead of beginning one, oldest first.

        Those that were cut, those on train with rollouts that have no verdict, and finished ones whose answer nobody
        has.
        """
        return self._runs(
            "WHERE split = ? AND candidate = ? AND request = ? AND baseline = ? "
            "AND (NOT answered OR (unanswered > 0 AND (split = 'train' OR baseline))) "
            "AND state IN ('cancelled', 'finished') ORDER BY number",
            split,
            Prompts.of(prompts).digest,
            as_column(encode(dict(request))),
            int(baseline),
        )

    def count_runs(self, split: str, prompts: Mapping[str, str], request: Mapping[str, Any]) -> int:
        """How many runs were ever begun for a request."""
        return self._query(
            "SELECT COUNT(*) FROM runs WHERE split = ? AND candidate = ? AND request = ?",
            split,
            Prompts.of(prompts).digest,
            as_column(encode(dict(request))),
        )[0][0]

    def free_runs(self) -> tuple[int, int]:
        """How many runs that are no baseline were begun and have cost nothing, and the bytes of what they were asked.

        Without those that are under way, and those that have all of their verdicts from others.
        """
        return self._unpaid("evaluated = 0")

    def reusing_runs(self) -> tuple[int, int, int]:
        """How many runs have all of their verdicts from others, the bytes of what they were asked, and how many
        verdicts any run has from another."""
        (taken,) = self._query("SELECT COALESCE(SUM(reused), 0) FROM runs")[0]
        return *self._unpaid("evaluated > 0"), taken

    def _unpaid(self, which: str) -> tuple[int, int]:
        unpaid = (
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(CAST(config AS BLOB))), 0) FROM runs WHERE NOT baseline "
            f"AND state != 'running' AND {which} AND number NOT IN (SELECT run FROM charges WHERE run IS NOT NULL)"
        )
        return cast("tuple[int, int]", self._query(unpaid)[0])

    def _runs(self, clause: str, *values: Any) -> list[RunRecord]:
        with self._file.lock:
            rows = self._query(f"{RUNS} {clause}", *values)
            filled = [
                (*row[:12], *self._results.totals(row[0]), *row[22:]) if row[11] == "running" else row for row in rows
            ]
        return self._read(run_record, filled)
