"""The settings: what the optimizer was made with, and the checks of its parameters."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter
from dspy.utils.callback import BaseCallback

from kernel_bridge.text import shorten
from rlmoptimizer.errors import InvalidSetup, InvalidSetupType
from rlmoptimizer.event_delivery import EventCallback
from rlmoptimizer.records import picodollars
from rlmoptimizer.text import brief

__all__ = ["EventCallbacks", "Settings", "a_bool", "a_directory", "an_lm"]


class EventCallbacks(tuple[EventCallback, ...]):
    """The functions that get the events.

    DSPy takes the attribute `callbacks` of an optimizer for a list of its own callbacks, and adds it to those of its
    settings. These are none of that kind, so they add nothing.
    """

    __slots__ = ()

    def __radd__(self, others: list[Any]) -> list[Any]:
        return others


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The parameters of `RLMDocstringOptimizer`, checked; they are described there."""

    metric: Callable[..., Any] | None
    root_lm: dspy.BaseLM
    max_iterations: int | None  # as it was given; `iterations` is the number in force
    auto: str | None
    sub_lm: dspy.BaseLM | None
    eval_lm: dspy.BaseLM | None
    root_adapter: dspy.Adapter | None
    num_threads: int
    rlm_max_iterations: int
    rlm_max_llm_calls: int
    rlm_max_output_chars: int
    rlm_max_history_chars: int | None
    root_stateful_session: bool
    rlm_multiturn_history: bool
    verbose: bool
    run_storage_dir: Path | None
    sub_agents: bool
    kernel: Callable[[], CodeInterpreter] | None
    max_cost_usd: float | None
    seed: int | None
    perfect_score: float
    example_timeout: float | None  # seconds
    target_score: float | None  # percent, 0..100
    patience: int | None
    max_seconds: float | None
    share_source: bool
    max_prompt_tokens: int | None
    callbacks: EventCallbacks
    executor: Executor | Callable[[], Executor] | None

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            object.__setattr__(self, name, check(name, getattr(self, name)))
        if self.auto is not None and self.max_iterations is not None:
            raise InvalidSetup(
                f"max_iterations and auto both set the budget, got {self.max_iterations} and {self.auto!r}; "
                f"give one of them, the other is None (auto={self.auto!r} is {_AUTO[self.auto]} iterations)"
            )

    @property
    def iterations(self) -> int:
        """The number that sets the budget: `max_iterations`, or what `auto` stands for."""
        if self.max_iterations is not None:
            return self.max_iterations
        return _ITERATIONS if self.auto is None else _AUTO[self.auto]

    @property
    def sub_or_root_lm(self) -> dspy.BaseLM:
        """The LM that answers the agent's prompts."""
        return self.root_lm if self.sub_lm is None else self.sub_lm


_ITERATIONS: Final = 5
_AUTO: Final = {"light": 2, "medium": 5, "heavy": 12}

# Each check gives its value back, or raises `InvalidSetup` and says what is accepted.
_Check = Callable[[str, Any], Any]


def _refuse(name: str, value: Any, accepted: str, *, wrong_type: bool = False) -> InvalidSetup:
    kind = InvalidSetupType if wrong_type else InvalidSetup
    shown = brief(value, 100) if isinstance(value, int) else shorten(repr(value), 100)
    return kind(f"{name} must be {accepted}, got {shown} ({type(value).__name__})")


def _at_least(least: int) -> _Check:
    def check(name: str, value: Any) -> int:
        accepted = f"a whole number of at least {least}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise _refuse(name, value, accepted, wrong_type=True)
        if value < least:
            raise _refuse(name, value, accepted)
        return value

    return check


def _or_none(check: _Check) -> _Check:
    return lambda name, value: None if value is None else check(name, value)


def _number(accepted: str, fits: Callable[[float], bool]) -> _Check:
    def check(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _refuse(name, value, accepted, wrong_type=True)
        try:
            number = float(value)
        except OverflowError:  # a whole number of more than 308 digits
            raise _refuse(name, value, accepted) from None
        if not math.isfinite(number) or not fits(number):
            raise _refuse(name, value, accepted)
        return number

    return check


def _auto(name: str, value: Any) -> str | None:
    accepted = f"one of {', '.join(map(repr, _AUTO))}, or None"
    if value is not None and not isinstance(value, str):
        raise _refuse(name, value, accepted, wrong_type=True)
    if value is not None and value not in _AUTO:
        raise _refuse(name, value, accepted)
    return value


def _metric(name: str, value: Any) -> Callable[..., Any] | None:
    # How it is called is worked out by `compile`, for a metric of the constructor as for its own.
    if value is not None and (isinstance(value, type) or not callable(value)):
        raise _refuse(name, value, "a function that takes (example, prediction), or None", wrong_type=True)
    return value


def _adapter(name: str, value: Any) -> dspy.Adapter | None:
    if value is not None and not isinstance(value, dspy.Adapter):
        raise _refuse(name, value, "a dspy.Adapter, such as dspy.JSONAdapter(), or None", wrong_type=True)
    return value


def a_bool(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, value, "True or False", wrong_type=True)
    return value


def _cost_limit(name: str, value: Any) -> float | None:
    if value is None:
        return None
    accepted = "a number of US dollars above 0 and below a million, or None"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _refuse(name, value, accepted, wrong_type=True)
    if not picodollars(value):
        raise _refuse(name, value, accepted)
    return float(value)


def _seed(name: str, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise _refuse(name, value, "a whole number, or None for another one each time", wrong_type=True)
    return value


def an_lm(name: str, value: Any) -> dspy.BaseLM:
    if not isinstance(value, dspy.BaseLM):
        accepted = "a dspy.BaseLM, such as dspy.LM('openai/gpt-5')"
        raise _refuse(name, value, accepted, wrong_type=True)
    return value


def _lm_or_none(name: str, value: Any) -> dspy.BaseLM | None:
    return None if value is None else an_lm(name, value)


def a_directory(name: str, value: Any) -> Path | None:
    if value is None:
        return None
    accepted = "a path of a directory, which is made if it does not exist, or None"
    if not isinstance(value, (str, os.PathLike)):
        raise _refuse(name, value, accepted, wrong_type=True)
    path = Path(cast("str", value))
    if (isinstance(value, str) and not value.strip()) or (os.path.exists(path) and not os.path.isdir(path)):
        raise _refuse(name, value, accepted)
    return path.absolute()  # programs and metrics may change the working directory


def _factory(name: str, value: Any) -> Callable[[], CodeInterpreter] | None:
    accepted = "a callable without arguments that makes an interpreter, such as KernelInterpreter.factory(), or None"
    if value is None:
        return None
    if not callable(value) or (not inspect.isclass(value) and isinstance(value, CodeInterpreter)):
        raise _refuse(name, value, accepted, wrong_type=True)
    if not _takes_nothing(value):
        raise _refuse(name, value, accepted)
    return cast("Callable[[], CodeInterpreter]", value)


def _callbacks(name: str, value: Any) -> EventCallbacks:
    if not isinstance(value, (list, tuple)):
        raise _refuse(name, value, "a list of functions, each of which takes one event", wrong_type=True)
    callbacks = cast("list[Any]", value)
    for place, callback in enumerate(callbacks):
        if isinstance(callback, type) or not callable(callback):
            accepted = "a function that takes one event"
            if isinstance(callback, BaseCallback):
                accepted += " (DSPy's own callbacks belong in dspy.configure(callbacks=[...]))"
            raise _refuse(f"{name}[{place}]", callback, accepted, wrong_type=True)
    return EventCallbacks(callbacks)


def _executor(name: str, value: Any) -> Executor | Callable[[], Executor] | None:
    accepted = "a concurrent.futures.Executor, or a callable without arguments that makes one, or None"
    if value is None or isinstance(value, Executor):
        return value
    if callable(getattr(value, "get_executor", None)):
        accepted += f"; of this {type(value).__name__}, give .get_executor()"
    elif callable(value) and _takes_nothing(value):
        return cast("Callable[[], Executor]", value)
    raise _refuse(name, value, accepted, wrong_type=True)


def _takes_nothing(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind()
    except TypeError:
        return False
    except ValueError:
        pass  # a builtin that does not say
    return True


_SECONDS: Final = _number("a number of seconds above 0, or None", lambda value: value > 0)

_CHECKS: Final[dict[str, _Check]] = {
    "metric": _metric,
    "root_lm": an_lm,
    "max_iterations": _or_none(_at_least(1)),
    "auto": _auto,
    "sub_lm": _lm_or_none,
    "eval_lm": _lm_or_none,
    "root_adapter": _adapter,
    "num_threads": _at_least(1),
    "rlm_max_iterations": _at_least(1),
    "rlm_max_llm_calls": _at_least(0),
    "rlm_max_output_chars": _at_least(1),
    "rlm_max_history_chars": _or_none(_at_least(1_000)),
    "root_stateful_session": a_bool,
    "rlm_multiturn_history": a_bool,
    "verbose": a_bool,
    "run_storage_dir": a_directory,
    "sub_agents": a_bool,
    "kernel": _factory,
    "max_cost_usd": _cost_limit,
    "seed": _seed,
    "perfect_score": _number("a number above 0", lambda value: value > 0),
    "example_timeout": _or_none(_SECONDS),
    "target_score": _or_none(
        _number(
            "a percentage from 0 to 100 (90, not 0.9), or None",
            lambda value: value == 0 or 1 < value <= 100,
        )
    ),
    "patience": _or_none(_at_least(1)),
    "max_seconds": _or_none(_SECONDS),
    "share_source": a_bool,
    "max_prompt_tokens": _or_none(_at_least(1)),
    "callbacks": _callbacks,
    "executor": _executor,
}
