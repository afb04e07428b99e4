"""The rule of choice: whether the agent's submission is given back, or a candidate that is better. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Mapping

from rlmoptimizer.outcome.measured import ExampleScores, best_candidate, compare_scores

__all__ = ["better_candidate"]


def better_candidate(measured: Mapping[str, ExampleScores], submitted: str, examples: int) -> str | None:
    """The candidate to give back in the place of the submitted one; None: the submission is given back.

    It is the best on the whole split, and the submission is worse than it by more than chance explains: the whole 95%
    interval of the difference, over the examples that both have a score for, lies below 0. `measured`: the scores of
    all candidates by their ids, in the order in which they were first run. A submission without scores is given back.
    """
    best = best_candidate(measured, examples)
    if best is None or best == submitted or submitted not in measured:
        return None
    interval = compare_scores(measured[best], measured[submitted]).interval
    return best if interval is not None and interval[1] < 0 else None
