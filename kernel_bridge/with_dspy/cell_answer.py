"""What DSPy gets of a cell: an answer, or an error of its own classes."""

from __future__ import annotations

from typing import Any

from dspy.primitives.code_interpreter import CodeExecutionError, FinalOutput

from kernel_bridge.agent_text.outcomes import death_text, failure_text, output_text
from kernel_bridge.cells import CellOutcome
from kernel_bridge.with_dspy.attachment_marks import only_text, only_text_in

__all__ = ["cell_answer"]


def cell_answer(outcome: CellOutcome, *, value_only: bool, originals: bool) -> Any:
    """What DSPy gets of a cell. It puts all of it into prompts, in which it would find attachments.

    Args:
        originals: the caller has handed in attachments of its own, which a value may hold again.
    """
    failure = outcome.failure
    if outcome.submitted is not None:
        return FinalOutput({name: only_text_in(value) for name, value in outcome.submitted.items()})
    if outcome.death is not None:
        raise CodeExecutionError(only_text(death_text(outcome, outcome.death)))
    if failure is not None and failure.compiling:
        raise SyntaxError(only_text(failure.traceback or failure.message))
    if failure is not None:
        raise CodeExecutionError(only_text(failure_text(outcome, failure)))
    text = outcome.result if value_only else output_text(outcome)
    return text if text is None or (value_only and originals) else only_text(text)
