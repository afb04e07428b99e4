"""The submission: what makes one valid. Knows the steps, nothing of runs or scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from rlmoptimizer.errors import SubmissionError
from rlmoptimizer.text import brief

__all__ = ["SUBMISSION_FIELD", "read_submission"]

SUBMISSION_FIELD = "optimized_dspy_program"
_SHOWN: Final = 50  # names in a message


def read_submission(value: Any, steps: Sequence[str]) -> dict[str, str]:
    """`value` as a map from every step to its prompt, in the order of `steps`. How long they are is not looked at.

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
    others = (name if isinstance(name, str) else brief(name) for name in given if name not in steps)
    if unknown := list(itertools.islice(others, _SHOWN + 1)):
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
    return ", ".join(repr(name[:100]) for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
