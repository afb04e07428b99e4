"""What a metric says about single steps of an example, as DSPy's GEPA asks for it. It changes no score."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from rlmoptimizer.errors import InvalidScore
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.metric import read_feedback
from rlmoptimizer.evaluation.step_recorder import TracedCall, describe_error

__all__ = ["feedback_by_step"]


def feedback_by_step(
    traces: Mapping[str, list[TracedCall]],
    ask: Callable[[str, list[TracedCall]], Any],
    *,
    known: str | None,
    halt: Halt,
) -> dict[str, str]:
    """The metric's feedback for each step that returned, by its name; `traces` has the calls of each.

    A step is left out where the metric has nothing to say, or says what is `known` of the whole example. What goes
    wrong when it is asked is said in the place of its feedback. Once `halt` is set it is not asked any more.
    """
    said: dict[str, str] = {}
    for step, calls in traces.items():
        if halt.is_set():
            break
        if step.startswith("<"):  # a predictor that is no step
            continue
        try:
            feedback = read_feedback(ask(step, calls))
        except InvalidScore as refused:
            feedback = f"(no feedback: {refused})"
        except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:  # noqa: BLE001 - as any metric, and the score stands
            feedback = f"(no feedback: the metric raised {describe_error(error)} when it was asked about this step)"
        if feedback is not None and feedback != known:
            said[step] = feedback
    return said
