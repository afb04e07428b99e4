"""The rule of a race: how many examples each round adds, and which candidates leave after it. Pure.

A candidate leaves when it is beaten beyond doubt by the weakest of those that would be kept (`keep` of 1: by the
leader): its mean is lower, and an exact one-sided sign test on the examples of both says so at the level 0.05 / (looks
* rivals). Looks are the rounds after which somebody may leave, rivals the other candidates. So the candidate that is
better on most examples leaves by chance in at most 5% of all races, however often it is looked at and whoever leads. A
candidate also leaves when it could not catch up even if it were right on all examples that are left, and the other
wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

from rlmoptimizer.comparison import sign_test

__all__ = ["leavers", "level", "ranked", "round_ends"]

_FIRST: Final = 8  # examples of the first round; from then on each round doubles what was run
_RISK: Final = 0.05
_ROUNDING: Final = 1e-9

Scores = Mapping[str, float]  # example id -> score, 0..1


def round_ends(examples: int) -> tuple[int, ...]:
    """How many examples have been run after each round, ascending; the last is `examples`.

    A rest that is less than half of a round is run in the round before it.
    """
    ends = [_FIRST]
    while 2 * ends[-1] <= examples:
        ends.append(2 * ends[-1])
    last = ends[-1] - (ends[-2] if len(ends) > 1 else 0)
    if 2 * (examples - ends[-1]) < last:
        ends.pop()
    return (*ends, examples)


def level(looks: int, candidates: int) -> float:
    """The level of one test in a race of so many candidates, after so many of whose rounds somebody may leave."""
    return _RISK / max(looks * (candidates - 1), 1)


def ranked(scores: Mapping[int, Scores]) -> list[int]:
    """The candidates, best mean first; of equal ones the one that was named first. Without verdicts: last."""
    return sorted(scores, key=lambda one: (-_mean(scores[one]), one))


def leavers(scores: Mapping[int, Scores], keep: int, rest: int, at_level: float) -> tuple[int, ...]:
    """The candidates that leave, worst last. `scores` are of those that are still in; `rest`: examples still to run."""
    order = ranked(scores)
    bar = scores[order[keep - 1]]
    return tuple(
        one
        for one in order[keep:]
        if _is_beaten(scores[one], bar, at_level) or _is_too_far_behind(scores[one], bar, rest)
    )


def _is_beaten(own: Scores, bar: Scores, at_level: float) -> bool:
    differences = [own[example] - bar[example] for example in own if example in bar]
    better = sum(one > _ROUNDING for one in differences)
    worse = sum(one < -_ROUNDING for one in differences)
    return worse > better and math.fsum(differences) < 0 and sign_test(better, worse) / 2 <= at_level


def _is_too_far_behind(own: Scores, bar: Scores, rest: int) -> bool:
    # Only where both have the same examples: what an example without a verdict would have given is not known.
    same = own.keys() == bar.keys()
    return same and math.fsum(own.values()) + rest < math.fsum(bar.values()) - _ROUNDING


def _mean(scores: Scores) -> float:
    return math.fsum(scores.values()) / len(scores) if scores else -1.0
