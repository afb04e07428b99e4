"""The scores of all candidates on one split, kept up to date while the runs of an optimization come to their ends.

What has ended is read once, so that a page that shows a run as it goes may ask every second. Imports no DSPy.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlmoptimizer.outcome.measured import ExampleScores
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["CandidateScores", "SplitScores", "is_counted"]

_Ended = tuple[tuple[str, float | None], ...]  # runs: their ids, and when they ended


def is_counted(run: RunRecord) -> bool:
    """Whether a run's verdicts count: on train those of cut runs too, on val and test only of whole ones."""
    return run.state == "finished" or (run.split == "train" and run.state == "cancelled")


@dataclass(frozen=True, slots=True)
class CandidateScores:
    """What one candidate has on a split. Examples are known by their ids."""

    scores: ExampleScores  # the mean of all verdicts on each example, 0..1
    newest: Mapping[str, str]  # example -> the id of the newest run with a verdict on it; without any: of any run
    error_kinds: Mapping[str, str]  # example -> the kind of an error in that run; only examples that have one


class SplitScores:
    """Not thread-safe."""

    def __init__(self, store: StoreReader, split: str) -> None:
        self._store = store
        self._split = split
        self._known: dict[str, tuple[_Ended, CandidateScores]] = {}  # by candidate

    def by_candidate(self, runs: Sequence[RunRecord]) -> dict[str, CandidateScores]:
        """Of the candidates that were run on the split, in the order of their first runs; `runs` are all, in order.

        The scores are those of `measured_scores`.
        """
        own: dict[str, list[RunRecord]] = {}
        for run in runs:
            if run.split == self._split and is_counted(run):
                own.setdefault(run.candidate, []).append(run)
        self._known = {candidate: self._up_to_date(candidate, ended) for candidate, ended in own.items()}
        return {candidate: scores for candidate, (_, scores) in self._known.items()}

    def _up_to_date(self, candidate: str, runs: Sequence[RunRecord]) -> tuple[_Ended, CandidateScores]:
        ended = tuple((run.run_id, run.finished_at) for run in runs)  # one that is resumed ends at another time
        known = self._known.get(candidate)
        return known if known is not None and known[0] == ended else (ended, self._read(runs))

    def _read(self, runs: Sequence[RunRecord]) -> CandidateScores:
        verdicts: dict[str, dict[int, float]] = {}  # example -> detail -> score: runs may share a verdict
        newest: dict[str, str] = {}
        kinds: dict[tuple[str, str], str] = {}
        for run in runs:
            for example_id, score, is_judged, error_kind, detail in self._store.rollout_scores(run.run_id):
                if is_judged:
                    verdicts.setdefault(example_id, {})[detail] = score
                if is_judged or example_id not in verdicts:
                    newest[example_id] = run.run_id
                if error_kind is not None:
                    kinds.setdefault((example_id, run.run_id), error_kind)
        return CandidateScores(
            {example_id: math.fsum(scores.values()) / len(scores) for example_id, scores in verdicts.items()},
            newest,
            {one: kinds[one, run_id] for one, run_id in newest.items() if (one, run_id) in kinds},
        )
