"""The submission: what makes one valid. Knows the steps, nothing of runs or scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from .errors import SubmissionError

__all__ = ["SUBMISSION_FIELD", "read_submission"]

SUBMISSION_FIELD = "optimized_dspy_program"


def read_submission(value: Any, steps: Sequence[str]) -> dict[str, str]:
    """`value` as a map from every step to its prompt, in the order of `steps`.

    Raises `SubmissionError`, naming everything that is wrong with it at once.
    """
    if not isinstance(value, Mapping):
        raise SubmissionError(
            f"{SUBMISSION_FIELD} must be a dict with the whole prompt of every step, got {type(value).__name__}; "
            f"the steps are {_names(steps)}"
        )
    given = cast("Mapping[Any, Any]", value)
    problems: list[str] = []
    if missing := [step for step in steps if step not in given]:
        problems.append(f"no prompt for {_names(missing)}")
    if unknown := [str(name) for name in given if name not in steps]:
        problems.append(f"no such step: {_names(unknown)}")
    for step in steps:
        text = given.get(step, "-")
        if not isinstance(text, str):
            problems.append(f"the prompt of {step!r} must be a string, got {type(text).__name__}")
        elif not text.strip():
            problems.append(f"the prompt of {step!r} is empty")
    if problems:
        raise SubmissionError(
            f"{'; '.join(problems)}. Submit {SUBMISSION_FIELD} with each of {_names(steps)} exactly once; "
            "an unchanged step keeps its present text (optimization_status()['current_prompts'])"
        )
    return {step: given[step] for step in steps}


def _names(names: Sequence[str]) -> str:
    return ", ".join(repr(name[:100]) for name in names[:50]) + (", ..." if len(names) > 50 else "")
