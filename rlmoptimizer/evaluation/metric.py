"""The metric: how to call it and what its answer means."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, cast

from kernel_bridge.live.signatures import call_signature
from kernel_bridge.text import shorten
from rlmoptimizer.errors import InvalidScore, InvalidSetup, InvalidSetupType

__all__ = ["Scorer", "Verdict", "bind_metric", "read_verdict"]

_ROUNDING: Final = 1e-9  # a score may be so far outside 0..1, as sums of fractions are
_ACCEPTED: Final = "metric must take (example, prediction), and perhaps trace, pred_name, pred_trace"
_UNSET: Final = frozenset({"trace", "pred_name", "pred_trace"})
_STEPS: Final = "program_trace"
_WANTED: Final = "a score is a number from 0 to 1, or a bool"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the metric said about one prediction."""

    score: float  # 0..1
    feedback: str | None  # None: the metric gave none


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric with its calling convention worked out."""

    metric: Callable[..., Any]
    extra: int  # positional-only parameters after example and prediction; they get None
    unset: tuple[str, ...]  # parameters that get None by name
    wants_steps: bool  # whether `program_trace` is passed

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        """The metric's raw answer, perhaps an awaitable. Pass it (awaited) to `read_verdict`."""
        keywords: dict[str, Any] = dict.fromkeys(self.unset)
        if self.wants_steps:
            keywords[_STEPS] = trace
        return self.metric(example, prediction, *(None,) * self.extra, **keywords)


def bind_metric(metric: Any) -> Scorer:
    """Work out how to call a metric.

    It takes `(example, prediction)`, DSPy's `(..., trace)` or GEPA's `(..., trace, pred_name, pred_trace)`. Parameters
    with defaults keep them; `trace`, `pred_name` and `pred_trace` without one get None, which in DSPy means "this is
    an evaluation"; a parameter named `program_trace` gets the steps that ran. Raises `InvalidSetup` for what cannot
    be called so.
    """
    if isinstance(metric, Scorer):
        return metric
    if isinstance(metric, type) or not callable(metric):
        what = f"the class {metric.__name__}" if isinstance(metric, type) else f"of type {type(metric).__name__}"
        raise InvalidSetupType(f"{_ACCEPTED}; it is {what}, not a function")
    function = cast("Callable[..., Any]", metric)
    if not hasattr(type(metric), "forward") and hasattr(type(metric), "aforward"):
        function = cast("Callable[..., Any]", cast("Any", metric).acall)  # a dspy.Module that is only async
    try:
        parameters = list(call_signature(function).parameters.values())
    except (TypeError, ValueError):  # a builtin that does not say
        return Scorer(metric=function, extra=0, unset=(), wants_steps=False)
    return _bind(function, parameters)


def _bind(metric: Callable[..., Any], parameters: list[inspect.Parameter]) -> Scorer:
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_more = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if len(positional) < 2 and not takes_more:
        count = "one positional argument" if positional else "no positional arguments"
        raise InvalidSetup(f"{_ACCEPTED}; it takes {count}")
    # The third to fifth go by their place, whatever they are called, as they do in DSPy.
    needed = [p for p in positional[2:] if p.default is p.empty and p.name != _STEPS]
    needed_keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name != _STEPS]
    strange = [p.name for p in (*needed[len(_UNSET) :], *needed_keywords) if p.name not in _UNSET]
    if strange:
        raise InvalidSetup(f"{_ACCEPTED}; it also needs {', '.join(strange)}: give these a default, or bind them")
    return Scorer(
        metric=metric,
        extra=sum(p.kind is p.POSITIONAL_ONLY for p in needed),
        unset=tuple(p.name for p in (*needed, *needed_keywords) if p.kind is not p.POSITIONAL_ONLY),
        wants_steps=any(p.name == _STEPS and p.kind is not p.POSITIONAL_ONLY for p in parameters),
    )


def read_verdict(answer: Any) -> Verdict:
    """The score and feedback in a metric's answer: a bool, a number, or an object or dict with `score` and `feedback`.

    Raises `InvalidScore` for None, NaN, infinities, text, and numbers outside 0..1.
    """
    feedback: Any = None
    score = answer
    if isinstance(answer, Mapping):
        fields = cast("Mapping[Any, Any]", answer)
        if "score" not in fields:
            raise InvalidScore(f"the metric returned a dict without a 'score'; {_WANTED}")
        score, feedback = fields["score"], fields.get("feedback")
    elif not isinstance(answer, numbers.Number | Decimal) and hasattr(answer, "score"):
        score, feedback = answer.score, getattr(answer, "feedback", None)
    return Verdict(score=_number(score), feedback=None if feedback is None else str(feedback))


def _number(value: Any) -> float:
    kind = cast("type[Any]", type(value))
    if value is None or not hasattr(kind, "__float__"):
        shown = "None" if value is None else f"{shorten(repr(value), 100)} of type {kind.__name__}"
        raise InvalidScore(f"the metric returned {shown}; {_WANTED}")
    try:
        number = float(value)
    except Exception as error:
        shown = f"a {kind.__name__} that is not a single number"
        raise InvalidScore(f"the metric returned {shown}; {_WANTED}") from error
    if not math.isfinite(number) or not -_ROUNDING <= number <= 1 + _ROUNDING:
        raise InvalidScore(f"the metric returned {number!r}; {_WANTED}")
    return min(max(number, 0.0), 1.0)
