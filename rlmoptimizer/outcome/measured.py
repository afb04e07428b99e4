"""What was measured: the score of each candidate on each example of a split, as the run store has it. Imports no DSPy.

An example's score is the mean over all its verdicts in the candidate's runs on that split; on val and test in whole
runs only. Scores are fractions 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlmoptimizer.comparison import Comparison, compare
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = [
    "ExampleScores",
    "MeasuredCandidates",
    "best_candidate",
    "best_measured_run",
    "compare_scores",
    "mean_score",
    "measured_scores",
    "whole_scores",
]

ExampleScores: TypeAlias = Mapping[str, float]  # example id -> its score; without examples that have no verdict


def measured_scores(store: StoreReader, split: str) -> dict[str, ExampleScores]:
    """The scores on a split by candidate, in the order in which the candidates were first run on it."""
    verdicts: dict[str, dict[str, list[float]]] = {}
    for candidate, example_id, score in store.verdicts(split):
        verdicts.setdefault(candidate, {}).setdefault(example_id, []).append(score)
    return {
        candidate: {example_id: math.fsum(scores) / len(scores) for example_id, scores in by_example.items()}
        for candidate, by_example in verdicts.items()
    }


def mean_score(scores: ExampleScores, examples: int) -> float | None:
    """The mean over a split of so many examples; None unless each of them has a score."""
    return math.fsum(scores.values()) / examples if examples and len(scores) == examples else None


def best_candidate(measured: Mapping[str, ExampleScores], examples: int) -> str | None:
    """The candidate with the best mean over a whole split, the first of equals; None: there is none."""
    whole = _means(measured, examples)
    return max(whole, key=whole.__getitem__, default=None)


def whole_scores(store: StoreReader, split: str, examples: int) -> dict[str, float]:
    """The mean of each candidate that has a score on every example of a split, in the order of their first runs."""
    return _means(measured_scores(store, split), examples)


def best_measured_run(
    runs: Sequence[RunRecord], whole: Mapping[str, float], split: str, examples: int
) -> RunRecord | None:
    """A run of the best candidate of `whole_scores`: its first one on the whole split, else its first one there.

    So of prompts that ran several times no lucky run counts alone. None: no candidate has every score.
    """
    best = max(whole, key=whole.__getitem__, default=None)
    own = [run for run in runs if run.candidate == best and run.split == split and run.evaluated_count]
    return min(own, key=lambda run: (not run.covers(split, examples), run.state != "finished"), default=None)


def _means(measured: Mapping[str, ExampleScores], examples: int) -> dict[str, float]:
    means = {candidate: mean_score(scores, examples) for candidate, scores in measured.items()}
    return {candidate: mean for candidate, mean in means.items() if mean is not None}


def compare_scores(before: ExampleScores, after: ExampleScores) -> Comparison:
    """Compare on the examples that both have a score for."""
    shared = sorted(before.keys() & after.keys(), key=int)  # ids are places in the split
    return compare([before[one] for one in shared], [after[one] for one in shared])


@dataclass(frozen=True, slots=True)
class MeasuredCandidates:
    """All candidates, the unchanged program first."""

    prompts: tuple[dict[str, str], ...]
    parents: tuple[int | None, ...]
    scores: tuple[float | None, ...]  # 0 to 100
    split: str  # of the scores
    best: int | None

    @classmethod
    def of(cls, store: StoreReader, before: Prompts, sizes: Mapping[str, int]) -> MeasuredCandidates:
        split = "val" if "val" in sizes else "train"
        measured = measured_scores(store, split)
        records = sorted(store.candidates(), key=lambda record: record.candidate != before.digest)
        places = {record.candidate: place for place, record in enumerate(records)}
        means = [mean_score(measured.get(record.candidate, {}), sizes[split]) for record in records]
        best = best_candidate(measured, sizes[split])
        return cls(
            prompts=tuple(record.prompts for record in records),
            # Before any prompt was set, the unchanged ones were.
            parents=(None, *(places.get(record.parent or "", 0) for record in records[1:])),
            scores=tuple(None if mean is None else 100 * mean for mean in means),
            split=split,
            best=None if best is None else places[best],
        )
