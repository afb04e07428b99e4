"""The program: its step names, its prompts, and a fingerprint of all the rest. Knows nothing of data or scores.

A *step* is a predictor that DSPy itself names (`named_predictors()`), so whatever is set here DSPy saves and loads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import dspy

__all__ = [
    "apply_prompts",
    "check_program",
    "clone",
    "fingerprint",
    "read_prompts",
    "set_prompt",
    "step_names",
    "step_of",
]


def check_program(program: Any) -> None:
    """Raise `InvalidSetup` unless `program` is a `dspy.Module` with at least one step and distinct step names."""
    raise NotImplementedError


def step_names(program: dspy.Module) -> tuple[str, ...]:
    """The names of all steps in DSPy's order; what `update_prompt` takes and what traces show."""
    raise NotImplementedError


def read_prompts(program: dspy.Module) -> dict[str, str]:
    """The instructions of every step, as the LM sees them."""
    raise NotImplementedError


def clone(program: dspy.Module) -> dspy.Module:
    """A copy that shares no module, predictor, demo or container with `program`.

    LMs, tools, callbacks and whatever cannot be copied (locks, clients) are shared. Two names for one predictor stay
    two names for one predictor.
    """
    raise NotImplementedError


def apply_prompts(program: dspy.Module, prompts: Mapping[str, str]) -> None:
    """Set the prompts of the named steps in place; all of them or, with `PromptUpdateError`, none."""
    raise NotImplementedError


def set_prompt(program: dspy.Module, step: str, text: str) -> None:
    """Replace the whole instructions of one step in place.

    Raises `PromptUpdateError` when there is no such step, the text is no non-empty string, or anything but the
    instructions would change (`fingerprint`); the program is then as it was.
    """
    raise NotImplementedError


def fingerprint(program: dspy.Module) -> str:
    """A hex digest of everything but the instructions of the steps; equal in every process.

    Covers the classes of all sub-modules, the fields with annotations, prefixes, descriptions and defaults, demos,
    predictor configs and LM settings (without keys and other secrets).
    """
    raise NotImplementedError


def step_of(program: dspy.Module) -> Callable[[Any], str]:
    """A function from a predictor in a trace of `program` to the name of its step.

    Also right for copies that DSPy makes of a predictor while it runs (`dspy.Refine`, `dspy.BestOfN`). A predictor
    that is no step gets its path when it has one (a frozen sub-module), else its type and fields in angle brackets.
    """
    raise NotImplementedError
