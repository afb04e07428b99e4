"""The metric: how to call it and what its answer means. Knows no rows, no threads, no runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Scorer", "Verdict", "bind_metric", "read_verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the metric said about one prediction."""

    score: float  # 0..1
    feedback: str | None  # None: the metric gave none


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric with its calling convention worked out."""

    metric: Callable[..., Any]
    call: Callable[[Any, Any, Any], Any]  # (example, prediction, program trace) -> the raw answer, perhaps awaitable

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        """The metric's raw answer, perhaps an awaitable. Pass it (awaited) to `read_verdict`."""
        raise NotImplementedError


def bind_metric(metric: Any) -> Scorer:
    """Work out how to call `metric`: `(example, prediction)`, DSPy's `(..., trace)` or GEPA's `(..., pred_name, pred_trace)`.

    Parameters with defaults keep them; `trace`, `pred_name` and `pred_trace` without one get None, which in DSPy means
    "this is an evaluation"; a parameter named `program_trace` gets the steps that ran. Raises `InvalidSetup` for what
    cannot be called so.
    """
    raise NotImplementedError


def read_verdict(answer: Any) -> Verdict:
    """The score and feedback in a metric's answer: a bool, a number, or an object or dict with `score` and `feedback`.

    Raises `InvalidScore` for None, NaN, infinities, text, and numbers outside 0..1.
    """
    raise NotImplementedError
