"""What was measured: the score of each candidate on each example of a split, as the run store has it. Imports no DSPy.

An example's score is the mean over all its verdicts in the candidate's runs on that split; on val and test in whole
runs only. Scores are fractions 0..1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TypeAlias

from rlmoptimizer.comparison import Comparison, compare
from rlmoptimizer.records import RunRecord, best_run
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["ExampleScores", "best_candidate", "best_measured_run", "compare_scores", "mean_score", "measured_scores"]

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
    means = {candidate: mean_score(scores, examples) for candidate, scores in measured.items()}
    whole = {candidate: mean for candidate, mean in means.items() if mean is not None}
    return max(whole, key=whole.__getitem__, default=None)


def best_measured_run(store: StoreReader, split: str, examples: int) -> tuple[RunRecord, float] | None:
    """A run of the candidate with the best mean over all its runs, of those that had a whole one; and that mean.

    So of prompts that ran several times no lucky run counts alone. None: there is no whole run.
    """
    whole = [run for run in store.runs() if best_run((run,), split, examples) is not None]
    measured = measured_scores(store, split)
    best = best_candidate({run.candidate: measured[run.candidate] for run in whole}, examples)
    run = next((run for run in whole if run.candidate == best), None)
    return None if run is None else (run, math.fsum(measured[run.candidate].values()) / examples)


def compare_scores(before: ExampleScores, after: ExampleScores) -> Comparison:
    """Compare on the examples that both have a score for."""
    shared = sorted(before.keys() & after.keys(), key=int)  # ids are places in the split
    return compare([before[one] for one in shared], [after[one] for one in shared])
