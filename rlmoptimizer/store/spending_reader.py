"""Reading what was spent: charges in units, and LM calls with their tokens and dollars."""

from __future__ import annotations

from typing import cast

from rlmoptimizer.records import Charge, Role, RoleUsage
from rlmoptimizer.store.queries import StoreQueries
from rlmoptimizer.store.rows import LM_USAGE, as_column, from_column

__all__ = ["SpendingReader"]


class SpendingReader(StoreQueries):
    """Reads both journals: of units, and of LM calls."""

    def charges(self) -> list[Charge]:
        """All charges, oldest first."""
        rows = self._query("SELECT amount, purpose FROM charges ORDER BY number")
        return self._read(lambda row: Charge(row[0], from_column(row[1])), rows)

    def charges_after(self, number: int) -> list[tuple[int, int, float]]:
        """Number, amount and Unix time of the charges after the one with this number, oldest first; 0: all."""
        rows = self._query("SELECT number, amount, at FROM charges WHERE number > ? ORDER BY number", number)
        return cast("list[tuple[int, int, float]]", rows)

    def spent(self, purpose: str | None = None) -> int:
        """Units charged, for one purpose or for all."""
        every = "SELECT COALESCE(SUM(amount), 0) FROM charges"
        rows = self._query(every) if purpose is None else self._query(f"{every} WHERE purpose = ?", as_column(purpose))
        return rows[0][0]

    def units_by_run(self) -> dict[str, int]:
        """The units charged for each run that cost any."""
        return dict(
            self._query("SELECT run_id, SUM(amount) FROM charges JOIN runs ON runs.number = run GROUP BY run_id")
        )

    def lm_usage(self) -> dict[Role, RoleUsage]:
        """What all LM calls so far amount to, by role."""
        rows = self._query(LM_USAGE)
        return dict(self._read(lambda row: (row[0], RoleUsage(*row[1:])), rows))
