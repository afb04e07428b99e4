"""What a new run takes over from earlier ones, so that it is neither run nor paid again."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.records import Rollout
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.store.takeover_reader import Spare
from rlmoptimizer.task.dataset import Row

__all__ = ["Takeover", "find_takeover"]


@dataclass(frozen=True, slots=True)
class Takeover:
    """Results in the store for rollouts of one request."""

    judged: Spare  # they have a verdict
    shown: Spare  # they have none, but were paid for what they show: these are run again, for nothing

    @property
    def all(self) -> Spare:
        return {**self.shown, **self.judged}

    def rest(self, rows: Collection[Row]) -> tuple[Row, ...]:
        """Those of `rows` that are still to be run."""
        return tuple(row for row in rows if (row.example_id, row.rollout) not in self.judged)


def find_takeover(store: StoreReader, request: Request, rows: Collection[Row], but: Collection[str]) -> Takeover:
    """Always from runs whose answers nobody has; where the request reuses verdicts, from any that has ended.

    Only for the same prompts, and a rollout only from the same one of the same example. Runs named in `but` keep
    theirs to themselves, unless verdicts are reused.
    """
    wanted = {(row.example_id, row.rollout) for row in rows}
    spare, owed = store.spare_rows(request.split, request.prompts, but=but)
    judged = _only(wanted, spare)
    if request.reuse:
        judged |= _reused(store, request, wanted)
    shown = _only(wanted - judged.keys(), owed) if request.split == "train" else {}
    return Takeover(judged, shown)


def _reused(store: StoreReader, request: Request, wanted: Collection[Rollout]) -> Spare:
    """The newest verdicts; but of a split whose rows are not shown, only whole rounds.

    What the rest of a round costs, how long it takes and how it moves the score would tell of single examples.
    """
    found = _only(wanted, store.judged_rows(request.split, request.prompts))
    if request.split == "train":
        return found
    lacking = {number for example_id, number in wanted if (example_id, number) not in found}
    return {rollout: place for rollout, place in found.items() if rollout[1] not in lacking}


def _only(wanted: Collection[Rollout], spare: Spare) -> Spare:
    return {rollout: place for rollout, place in spare.items() if rollout in wanted}
