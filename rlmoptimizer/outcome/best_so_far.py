"""The curve of an optimization: the best score so far against the units spent. Imports no DSPy."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["BestSoFar", "Checkpoint", "UnitsSpent", "best_so_far"]


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


class BestSoFar:
    """The curve, kept up to date while runs come to their ends: each is read once. Not thread-safe.

    Args:
        split: by which candidates are chosen; of so many `examples`.
    """

    def __init__(self, store: StoreReader, split: str, examples: int, spent: UnitsSpent) -> None:
        self._store = store
        self._split = split
        self._examples = examples
        self._spent = spent
        self._begin()

    def checkpoints(self, runs: Iterable[RunRecord]) -> tuple[Checkpoint, ...]:
        """In the order in which they ended: those of `runs` that have finished on the split and hold all of it.

        A run is left out as long as no candidate has a score on each example.
        """
        ended = [run for run in runs if run.split == self._split and run.state == "finished"]
        ended.sort(key=_end_of)
        if [_identity(run) for run in ended[: len(self._read)]] != self._read:  # one that had ended was gone on with
            self._begin()
        for run in ended[len(self._read) :]:
            self._add(run)
        return tuple(self._found)

    def _begin(self) -> None:
        self._read: list[tuple[str, float]] = []
        self._verdicts: dict[str, dict[str, dict[int, float]]] = {}  # candidate -> example -> detail -> score
        self._means: dict[str, float] = {}  # candidate -> its score, where each example has one
        self._found: list[Checkpoint] = []

    def _add(self, run: RunRecord) -> None:
        self._read.append(_identity(run))
        own = self._verdicts.setdefault(run.candidate, {})
        for example_id, score, is_judged, _, detail in self._store.rollout_scores(run.run_id):
            if is_judged:
                own.setdefault(example_id, {})[detail] = score
        if len(own) == self._examples:
            self._means[run.candidate] = _mean_of_means(own)
        if run.covers(self._split, self._examples) and run.score is not None and self._means:
            best = max(self._means.values())
            self._found.append(Checkpoint(run.run_id, self._spent.at(_end_of(run)), 100 * run.score, 100 * best))


def best_so_far(
    store: StoreReader, runs: Iterable[RunRecord], split: str, examples: int, spent: UnitsSpent
) -> tuple[Checkpoint, ...]:
    """As `BestSoFar.checkpoints`, once."""
    return BestSoFar(store, split, examples, spent).checkpoints(runs)


def _end_of(run: RunRecord) -> float:
    return run.started_at if run.finished_at is None else run.finished_at


def _identity(run: RunRecord) -> tuple[str, float]:
    return run.run_id, _end_of(run)


def _mean_of_means(verdicts: Mapping[str, Mapping[int, float]]) -> float:
    return math.fsum(math.fsum(scores.values()) / len(scores) for scores in verdicts.values()) / len(verdicts)
