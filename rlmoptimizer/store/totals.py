"""The totals of a run, from the verdicts on its rollouts. No SQL.

The mean of an example is over its rollouts; the score of a run is the mean of these means, so an example counts once
however often it was evaluated.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from rlmoptimizer.records import mean
from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.rows import as_column, from_column

__all__ = ["JudgedRollout", "totals_row"]


class JudgedRollout(NamedTuple):
    """A rollout that has a verdict."""

    position: int  # of its example
    score: float
    passed: int
    has_error: int
    is_truncated: int
    was_taken_over: int
    objectives: str | bytes | None  # the column


def totals_row(given: tuple[Sequence[JudgedRollout], int]) -> tuple[Any, ...]:
    """The columns of `runs` from `evaluated` to `objectives`, for these rollouts and the number of the unanswered.

    Raises ValueError or TypeError for objectives that are no JSON of numbers.
    """
    judged, unanswered = given
    examples: dict[int, list[JudgedRollout]] = {}
    for one in judged:
        examples.setdefault(one.position, []).append(one)
    means = [mean([one.score for one in rollouts]) for rollouts in examples.values()]
    return (
        len(examples),
        sum(all(one.passed for one in rollouts) for rollouts in examples.values()),
        sum(any(one.has_error for one in rollouts) for rollouts in examples.values()),
        sum(any(one.is_truncated for one in rollouts) for rollouts in examples.values()),
        len(judged),
        unanswered,
        sum(one.was_taken_over for one in judged),
        mean(means) if means else None,
        _standard_error(means),
        _objective_means(judged),
    )


def _standard_error(means: Sequence[float]) -> float | None:
    """Of the mean of these."""
    if len(means) < 2:
        return None
    middle = mean(means)
    return math.sqrt(math.fsum((one - middle) ** 2 for one in means) / (len(means) - 1) / len(means))


def _objective_means(judged: Iterable[JudgedRollout]) -> str | bytes | None:
    """The column of name -> mean over the examples that have it."""
    scores: dict[str, dict[int, list[float]]] = {}
    for one in judged:
        if one.objectives is not None:
            for name, score in decode(from_column(one.objectives)).items():
                scores.setdefault(name, {}).setdefault(one.position, []).append(score)
    if not scores:
        return None
    means = {name: mean([mean(some) for some in examples.values()]) for name, examples in scores.items()}
    return as_column(encode(means))
