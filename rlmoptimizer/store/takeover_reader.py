"""Reading which results of earlier runs a new run may take over."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import cast

from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import Rollout
from rlmoptimizer.store.queries import StoreQueries
from rlmoptimizer.store.results import Place

__all__ = ["Spare", "TakeoverReader"]

Spare = dict[Rollout, Place]  # a rollout -> the result that a new run may take over for it


class TakeoverReader(StoreQueries):
    """Reads what may be taken over."""

    def spare_rows(self, split: str, prompts: Mapping[str, str], *, but: Collection[str] = ()) -> tuple[Spare, Spare]:
        """Rows of these prompts in runs whose answers nobody has, and which no run has taken over yet.

        First those with a verdict, then those that show what was answered before their LM failed. Runs named in `but`
        and baselines are left out.
        """
        rows = self._query(
            "SELECT counted, run_id, example_id, number, position, rollout FROM runs JOIN results ON run = number "
            "WHERE split = ? AND candidate = ? AND NOT baseline AND NOT answered "
            "AND state IN ('cancelled', 'finished') AND counted IN (1, 2) AND NOT taken ORDER BY number DESC",
            split,
            Prompts.of(prompts).digest,
        )
        spare: dict[int, Spare] = {1: {}, 2: {}}
        for counted, run_id, example_id, *place in rows:
            if run_id not in but:
                spare[counted][example_id, place[2]] = cast("Place", tuple(place))
        return spare[1], spare[2]

    def judged_rows(self, split: str, prompts: Mapping[str, str]) -> Spare:
        """The newest verdicts on these prompts, in any run that has ended and whose metric did not fail."""
        rows = self._query(
            "SELECT example_id, number, position, rollout FROM runs JOIN results ON run = number "
            "WHERE split = ? AND candidate = ? AND state IN ('cancelled', 'finished') AND counted = 1 ORDER BY number",
            split,
            Prompts.of(prompts).digest,
        )
        return {(example_id, rollout): (number, position, rollout) for example_id, number, position, rollout in rows}
