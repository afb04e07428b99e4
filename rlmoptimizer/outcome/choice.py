"""The rule of choice: whether the agent's submission is given back, or a candidate that is better. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlmoptimizer.outcome.measured import ExampleScores, best_candidate
from rlmoptimizer.outcome.split_result import SplitResult

__all__ = ["Rival", "rival_of"]


@dataclass(frozen=True, slots=True)
class Rival:
    """A candidate that scored better than the submission."""

    candidate: str  # its id
    compared: SplitResult  # the submission against it: `difference` is what the submission has more

    @property
    def replaces_submission(self) -> bool:
        """Whether the submission is worse by more than chance explains: the whole 95% interval lies below 0."""
        return self.compared.interval is not None and self.compared.interval[1] < 0


def rival_of(measured: Mapping[str, ExampleScores], submitted: str, examples: int) -> Rival | None:
    """The candidate with the best score on the whole split; None: it is the submission, or there is none.

    `measured`: the scores of all candidates by their ids, in the order in which they were first run, and of
    `submitted` at least one. Both are compared on the examples that both have a score for.
    """
    best = best_candidate(measured, examples)
    if best is None or best == submitted:
        return None
    return Rival(best, SplitResult.of(measured[best], measured[submitted], examples))
