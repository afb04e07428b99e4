"""The submission: what makes one valid."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.errors import PromptUpdateError, SubmissionError
from rlmoptimizer.events import Emitter, SubmissionRefused
from rlmoptimizer.text import brief

__all__ = ["SUBMISSION_FIELD", "SubmissionCheck", "read_submission"]

SUBMISSION_FIELD = "optimized_dspy_program"
_SHOWN: Final = 50  # names in a message


class SubmissionCheck:
    """Checks what the agent submits, as it does so and once more when it has."""

    def __init__(self, prompts: CurrentPrompts, emitter: Emitter, gate: CallGate) -> None:
        self._prompts = prompts
        self._emitter = emitter
        self._gate = gate

    def prompts_in(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The prompts in the fields of a SUBMIT call, in the order of the steps.

        Raises `SubmissionError`, also for a text that the program cannot take.
        """
        try:
            prompts = read_submission(fields.get(SUBMISSION_FIELD), self._prompts.steps)
            try:
                self._prompts.with_changes(prompts)
            except PromptUpdateError as refused:
                # Of several texts together, more than the instructions may change: then it names no single step.
                if refused.step not in self._prompts.steps:
                    raise SubmissionError(f"{refused.reason}; submit other texts") from None
                raise SubmissionError(f"the text for step {refused.step!r} cannot be used: {refused.reason}") from None
        except SubmissionError as refused:
            self._emitter.emit(SubmissionRefused(str(refused)))
            raise
        return prompts

    def validate(self, fields: dict[str, Any]) -> None:
        """`prompts_in` for the kernel: waits while a run on val is under way."""
        self._gate.wait_quiet()
        self.prompts_in(fields)


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
