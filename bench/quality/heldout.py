"""The held-out score: a program on the test rows, the same way for every arm, and no part of its metric calls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from quality.counter import score_of

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    scores: list[float]  # 0..1, of the test rows in order; 0 where the program failed
    errors: int  # rows on which the program or the metric failed


def held_out(
    program: dspy.Module, rows: Sequence[dspy.Example], metric: Callable[..., Any], lm: dspy.LM, threads: int
) -> HeldOut:
    """Each row once. A program that fails on a row, or a metric that does, has 0 there."""
    evaluate = dspy.Evaluate(
        devset=list(rows),
        metric=lambda example, prediction: _Scored(score_of(metric(example, prediction))),
        num_threads=threads,
        display_progress=False,
        failure_score=0.0,
        max_errors=10 * len(rows),
        provide_traceback=False,
    )
    with dspy.context(lm=lm):
        answers = [score for _, _, score in evaluate(program).results]
    return HeldOut(
        scores=[float(answer) for answer in answers], errors=sum(not isinstance(answer, _Scored) for answer in answers)
    )


class _Scored(float):
    """A score that the metric gave; one that DSPy puts in the place of an error is a plain number."""
