"""The counter around the metric: every call of every arm, in a file that outlives a killed process.

A call that scores a program's answer is a metric call: that is what the budget is in. A call with `pred_name` asks what
to tell one step about an answer that was scored already (GEPA's feedback, and this optimizer's); it is counted apart.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

__all__ = ["MetricCounter", "five_arguments", "score_of"]

_SCORED: Final = b"s"
_FEEDBACK: Final = b"f"
_OPTIONAL: Final = ("trace", "pred_name", "pred_trace")


class MetricCounter:
    """Counts in a file, one byte a call, which is there before the metric is called. Any number of threads."""

    def __init__(self, path: Path, *, anew: bool) -> None:
        """`anew`: forget what an earlier process counted there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | (os.O_TRUNC if anew else 0), 0o644)

    def __enter__(self) -> MetricCounter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    @property
    def metric_calls(self) -> int:
        return self._path.read_bytes().count(_SCORED)

    @property
    def feedback_calls(self) -> int:
        return self._path.read_bytes().count(_FEEDBACK)

    def around(self, metric: Callable[..., Any]) -> Callable[..., Any]:
        """The metric, counted. It has the metric's name, parameters and source."""
        if inspect.iscoroutinefunction(metric):
            raise ValueError("this benchmark counts metrics that are plain functions; this one is a coroutine function")
        parameters = inspect.signature(metric)

        @functools.wraps(metric)
        def counted(*args: Any, **kwargs: Any) -> Any:
            asked = parameters.bind(*args, **kwargs).arguments
            os.write(self._file, _SCORED if asked.get("pred_name") is None else _FEEDBACK)
            return metric(*args, **kwargs)

        return counted


def five_arguments(metric: Callable[..., Any]) -> Callable[..., Any]:
    """The metric as GEPA wants it, also when it takes fewer of `trace`, `pred_name` and `pred_trace`."""
    takes = inspect.signature(metric).parameters
    varies = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())

    @functools.wraps(metric)
    def called(example: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        given = dict(zip(_OPTIONAL, (trace, pred_name, pred_trace), strict=True))
        return metric(example, prediction, **{name: value for name, value in given.items() if varies or name in takes})

    del called.__wrapped__  # GEPA looks for the five parameters
    return called


def score_of(answer: Any) -> float:
    """The score in what a metric gave: a number, a bool, or an object or dict with `score`."""
    if isinstance(answer, Mapping):
        return float(answer["score"])
    return float(answer.score if hasattr(answer, "score") else answer)
