"""The evaluation engine: runs a program on rows, in parallel, and says what happened. Knows no budget and no store."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import dspy

from .dataset import Row

__all__ = ["PASSED_AT", "Evaluator", "ExampleResult", "StepTrace"]

PASSED_AT = 1.0 - 1e-9  # an example passed when its score is at least this


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One call of one predictor."""

    step_index: int  # 0-based, in the order in which the calls returned
    step_name: str  # the name that `update_prompt` takes
    signature_name: str
    inputs: dict[str, Any]  # plain values
    outputs: dict[str, Any]  # plain values


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """What became of one row. All values are plain (see `plain.py`)."""

    example_id: str
    source_example_id: str | None
    inputs: dict[str, Any]
    expected: dict[str, Any]  # the example's fields that are no inputs
    predicted: Any  # a dict for a dspy.Prediction; None when the program raised
    score: float  # 0..1; 0.0 in an error row
    passed: bool
    error: str | None  # "ExceptionType: message"; None: no error
    error_kind: str | None  # None: no error; "program", "metric", "score", or DSPy's code of an LM failure ("rate_limit", ...)
    feedback: str | None
    steps: tuple[StepTrace, ...]  # in an error row: the steps that returned before the program raised
    seconds: float  # program and metric together

    def as_row(self) -> dict[str, Any]:
        """The agent-facing dict: the issue's keys, `steps` as a list of dicts, no `seconds`."""
        raise NotImplementedError


class Evaluator:
    """Scores programs with one metric and one LM on one executor, kept alive between runs. Thread-safe.

    `lm` is `dspy.settings.lm` while the program runs (predictors with an LM of their own keep it; None: the settings'
    own). The metric runs under the settings' own LM, or `lm` where they have none.
    `context` is where DSPy's settings and all context variables come from; None: from whoever calls `score`. An
    optimizer passes `contextvars.copy_context()` taken at the start of `compile()`, so that what is set for the
    agent's turns does not reach the program.
    `executor` may be any `concurrent.futures.Executor`, also one that runs elsewhere; the caller keeps it and shuts
    it down. None: an own pool of `num_threads` threads, closed by `close()`.
    """

    def __init__(
        self,
        metric: Any,
        lm: dspy.BaseLM | None,
        num_threads: int = 8,
        *,
        executor: Executor | None = None,
        context: contextvars.Context | None = None,
    ) -> None:
        raise NotImplementedError

    def score(
        self,
        program: dspy.Module,
        rows: Sequence[Row],
        *,
        on_result: Callable[[ExampleResult], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> list[ExampleResult]:
        """Run a clone of `program` on every row and score it; results in the order of `rows`.

        `on_result` is called on this thread, once for each finished example, in the order in which they finish; when
        it raises, no further example is started and the exception goes to the caller.
        Once `cancelled` is set no further example is started; those under way are finished and kept, so the list may
        be shorter than `rows`.
        At most `num_threads` examples of one call run at once.
        Raises `MetricFailed` when the metric raised on every example that reached it and has not given a score in
        any earlier call; every result has been given to `on_result` by then.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Stop the own threads; waits for examples under way. Idempotent."""
        raise NotImplementedError

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
