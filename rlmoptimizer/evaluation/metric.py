"""The metric: how to call it and what its answer means. It does not know when it is called."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, cast

from kernel_bridge.live.signatures import call_signature
from kernel_bridge.text import shorten
from rlmoptimizer.errors import InvalidScore, InvalidSetup, InvalidSetupType

__all__ = ["Scorer", "Verdict", "bind_metric", "read_feedback", "read_verdict"]

_ROUNDING: Final = 1e-9  # a score may be so far outside 0..1, as sums of fractions are
_ACCEPTED: Final = "metric must take (example, prediction), and perhaps trace, pred_name, pred_trace"
_UNSET: Final = frozenset({"trace", "pred_name", "pred_trace"})
_STEPS: Final = "program_trace"
_PERCENT: Final = 100.0  # the largest scale that is worth a hint
_MOST_OBJECTIVES: Final = 20  # of one answer
_OBJECTIVE_CHARS: Final = 100  # of an objective's name
_LARGEST_OBJECTIVE: Final = 1e100  # the sum of many must be finite too


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the metric said about one prediction."""

    score: float  # 0..1
    feedback: str | None  # None: the metric gave none
    objectives: dict[str, float] | None = None  # name -> finite number, on the metric's own scale; None: it gave none
    dropped: str | None = None  # why some of the objectives were left out, without their values; None: none was


@dataclass(frozen=True, slots=True)
class Scorer:
    """A metric with its calling convention worked out."""

    metric: Callable[..., Any]
    extra: int  # positional-only parameters after example and prediction; they get None
    unset: tuple[str, ...]  # parameters that get None by name
    wants_steps: bool  # whether `program_trace` is passed
    step_call: Literal["place", "name"] | None = None  # how it takes `pred_name` and `pred_trace`; None: it does not
    named_trace: bool = False  # whether it takes `trace` by name
    perfect_score: float = 1.0  # its best score; scores are divided by it

    def __call__(self, example: Any, prediction: Any, trace: Any = None) -> Any:
        """The metric's raw answer, perhaps an awaitable. Pass it (awaited) to `read_verdict`."""
        keywords: dict[str, Any] = dict.fromkeys(self.unset)
        if self.wants_steps:
            keywords[_STEPS] = trace
        return self.metric(example, prediction, *(None,) * self.extra, **keywords)

    def about_step(self, example: Any, prediction: Any, trace: Any, pred_name: str, pred_trace: Any) -> Any:
        """The metric's raw answer about one step, perhaps an awaitable; only where `step_call` is not None.

        `trace` and `pred_trace` are lists of (predictor, inputs, prediction): of all calls, and of those of the step.
        """
        keywords: dict[str, Any] = {_STEPS: trace} if self.wants_steps else {}
        if self.step_call == "place":
            return self.metric(example, prediction, trace, pred_name, pred_trace, **keywords)
        keywords = {**dict.fromkeys(self.unset), **keywords, "pred_name": pred_name, "pred_trace": pred_trace}
        if self.named_trace:
            keywords["trace"] = trace
        return self.metric(example, prediction, *(None,) * self.extra, **keywords)


def bind_metric(metric: Any, perfect_score: float = 1.0) -> Scorer:
    """Work out how to call a metric whose best score is `perfect_score`.

    It takes `(example, prediction)`, DSPy's `(..., trace)` or GEPA's `(..., trace, pred_name, pred_trace)`. Parameters
    with defaults keep them; `trace`, `pred_name` and `pred_trace` without one get None, which in DSPy means "this is
    an evaluation"; a parameter named `program_trace` gets the steps that ran. A metric in GEPA's form can be asked
    about one step too: its fourth and fifth positional parameters, or those named `pred_name` and `pred_trace`, have
    no default, or None and a name that ends as these do. Raises `InvalidSetup` for what cannot be called so.
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
        return Scorer(metric=function, extra=0, unset=(), wants_steps=False, perfect_score=perfect_score)
    return _bind(function, parameters, perfect_score)


def _bind(metric: Callable[..., Any], parameters: list[inspect.Parameter], perfect_score: float) -> Scorer:
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
        step_call=_step_call(positional, parameters),
        named_trace=any(p.name == "trace" and p.kind is not p.POSITIONAL_ONLY for p in parameters),
        perfect_score=perfect_score,
    )


def _step_call(
    positional: list[inspect.Parameter], parameters: list[inspect.Parameter]
) -> Literal["place", "name"] | None:
    """How a metric takes the name and the trace of a step."""
    third_to_fifth = positional[2:5]
    if len(third_to_fifth) == 3 and _STEPS not in {p.name for p in third_to_fifth}:
        _, name, trace = third_to_fifth
        if _takes(name, "name") and _takes(trace, "trace"):
            return "place"
    by_name = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    wanted = (by_name.get("pred_name"), by_name.get("pred_trace"))
    return "name" if all(p is not None and _takes(p, "") for p in wanted) else None


def _takes(parameter: inspect.Parameter, ending: str) -> bool:
    # Any other parameter may have None as its default too: a judge, a cache. What must be given is given by its place.
    default: Any = parameter.default
    return default is parameter.empty or (default is None and parameter.name.endswith(ending))


def read_verdict(answer: Any, perfect_score: float = 1.0) -> Verdict:
    """What a metric's answer says: a bool, a number, or an object or dict with `score`, and perhaps `feedback` and
    `objective_scores`.

    Numbers go from 0 to `perfect_score` and are divided by it; the objectives are not. Raises `InvalidScore` for None,
    NaN, infinities, text, and numbers outside of that range.
    """
    feedback: Any = None
    objectives: Any = None
    score = answer
    if isinstance(answer, Mapping):
        fields = cast("Mapping[Any, Any]", answer)
        if "score" not in fields:
            raise InvalidScore(f"the metric returned a dict without a 'score'; {_wanted(perfect_score)}")
        score, feedback, objectives = fields["score"], fields.get("feedback"), fields.get("objective_scores")
    elif not isinstance(answer, numbers.Number | Decimal) and hasattr(answer, "score"):
        score, feedback = answer.score, getattr(answer, "feedback", None)
        objectives = getattr(answer, "objective_scores", None)
    kept, dropped = _objectives(objectives)
    return Verdict(_fraction(score, perfect_score), None if feedback is None else str(feedback), kept, dropped)


def read_feedback(answer: Any) -> str | None:
    """The feedback in a metric's answer about a step; None: there is none. Its score is that of the whole example.

    Raises `InvalidScore` for an answer that is neither a score nor holds a text.
    """
    if isinstance(answer, Mapping):
        feedback: Any = cast("Mapping[Any, Any]", answer).get("feedback")
    else:
        feedback = getattr(answer, "feedback", None)
    if feedback is not None:
        return str(feedback)
    try:
        read_verdict(answer, math.inf)  # any number will do
    except InvalidScore:
        shown = "None" if answer is None else f"an answer of type {type(cast('Any', answer)).__name__}"
        raise InvalidScore(f"the metric returned {shown}, which holds neither feedback nor a score") from None
    return None


def _wanted(perfect_score: float) -> str:
    return f"a score is a number from 0 to {perfect_score:.15g}, or a bool"


def _fraction(value: Any, perfect_score: float) -> float:
    """A score as a fraction. A bool says by itself what is perfect."""
    kind = cast("type[Any]", type(value))
    if value is None or not hasattr(kind, "__float__"):
        shown = "None" if value is None else f"{shorten(repr(value), 100)} of type {kind.__name__}"
        hint = "; with feedback, return dspy.Prediction(score=..., feedback=...)" if isinstance(value, tuple) else ""
        hint = "; return False where an answer is wrong" if value is None else hint
        raise InvalidScore(f"the metric returned {shown}; {_wanted(perfect_score)}{hint}")
    try:
        number = float(value)
    except Exception as error:
        shown = f"a {kind.__name__} that is not a single number"
        raise InvalidScore(f"the metric returned {shown}; {_wanted(perfect_score)}") from error
    fraction = number if kind.__name__ in ("bool", "bool_") else number / perfect_score  # numpy has a bool of its own
    if not math.isfinite(number) or not -_ROUNDING <= fraction <= 1 + _ROUNDING:
        hint = (
            "; for a metric that counts to 100 pass perfect_score=100 to the optimizer"
            if perfect_score < number <= _PERCENT
            else ""
        )
        raise InvalidScore(f"the metric returned {number!r}; {_wanted(perfect_score)}{hint}")
    return min(max(fraction, 0.0), 1.0)


def _objectives(given: Any) -> tuple[dict[str, float] | None, str | None]:
    """The objectives that are kept, and why some are not."""
    if given is None:
        return None, None
    if not isinstance(given, Mapping):
        return None, "they are no dict"
    kept: dict[str, float] = {}
    dropped: str | None = None
    for name, value in cast("Mapping[Any, Any]", given).items():
        number = _bounded(value)
        if not isinstance(name, str) or len(name) > _OBJECTIVE_CHARS:
            dropped = f"a name is no text of at most {_OBJECTIVE_CHARS} characters"
        elif number is None:
            dropped = f"a value is no finite number of at most {_LARGEST_OBJECTIVE:g}"
        elif len(kept) == _MOST_OBJECTIVES:
            dropped = f"there are more than {_MOST_OBJECTIVES}"
            break
        else:
            kept[name] = number
    return kept or None, dropped


def _bounded(value: Any) -> float | None:
    if not hasattr(cast("type[Any]", type(value)), "__float__"):
        return None
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - a foreign number's own method
        return None
    return number if abs(number) <= _LARGEST_OBJECTIVE else None  # NaN is not
