"""The curve of an optimization: the best score so far against the units spent. Imports no DSPy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["Checkpoint", "UnitsSpent", "best_so_far"]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A run on the whole of the split that candidates are chosen by. Scores are 0 to 100."""

    run_id: str
    spent: int  # units in all, when it ended
    score: float  # of this run
    best: float  # of the best candidate then: the mean over all its runs, so that it may fall


class UnitsSpent:
    """How many units were spent at any time. Charges are read once. Not thread-safe."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._last = 0  # the number of the last charge that was read
        self._times: list[float] = []
        self._sums: list[int] = []  # of the charges up to each of these times
        self.update()

    def update(self) -> None:
        """Read what was charged since."""
        for number, amount, at in self._store.charges_after(self._last):
            self._last = number
            self._times.append(max(at, self._times[-1] if self._times else at))  # clocks may be set back
            self._sums.append(amount + (self._sums[-1] if self._sums else 0))

    def at(self, time: float) -> int:
        """Up to a Unix time."""
        place = bisect_right(self._times, time)
        return self._sums[place - 1] if place else 0

    @property
    def in_all(self) -> int:
        return self._sums[-1] if self._sums else 0


def best_so_far(
    store: StoreReader, runs: Sequence[RunRecord], split: str, examples: int, spent: UnitsSpent
) -> tuple[Checkpoint, ...]:
    """The checkpoints in the order in which they ended.

    Those runs of `runs` that have finished on `split`, as long as any candidate has a score on each of its `examples`.
    """
    ended = [run for run in runs if run.split == split and run.state == "finished" and run.finished_at is not None]
    verdicts: dict[str, dict[str, dict[int, float]]] = {}  # candidate -> example -> detail -> score
    means: dict[str, float] = {}  # candidate -> its score, where each example has one
    found: list[Checkpoint] = []
    for run in sorted(ended, key=lambda one: one.finished_at or 0.0):
        own = verdicts.setdefault(run.candidate, {})
        for example_id, score, is_judged, _, detail in store.rollout_scores(run.run_id):
            if is_judged:
                own.setdefault(example_id, {})[detail] = score
        if len(own) == examples:
            means[run.candidate] = _mean_of_means(own)
        if run.evaluated_count == examples and run.score is not None and means:
            best = max(means.values())
            found.append(Checkpoint(run.run_id, spent.at(run.finished_at or 0.0), 100 * run.score, 100 * best))
    return tuple(found)


def _mean_of_means(verdicts: Mapping[str, Mapping[int, float]]) -> float:
    return math.fsum(math.fsum(scores.values()) / len(scores) for scores in verdicts.values()) / len(verdicts)
