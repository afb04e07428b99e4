"""Runs a program on one row at a time and scores it, in this process or another.

Whatever the program or the metric raises becomes an outcome, except what is meant to end the process, such as a
KeyboardInterrupt.
"""

# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
import traceback
from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast

import dspy

import kernel_bridge
from rlmoptimizer.errors import InvalidScore, add_note
from rlmoptimizer.evaluation.fan_out import ItemAbandoned
from rlmoptimizer.evaluation.kept_texts import with_kept_texts
from rlmoptimizer.evaluation.lm_exchange import ExampleRequests
from rlmoptimizer.evaluation.metric import Scorer, Verdict, read_verdict
from rlmoptimizer.evaluation.plain_values import to_plain
from rlmoptimizer.evaluation.recorded_predictors import record_steps
from rlmoptimizer.evaluation.row_progress import RowProgress
from rlmoptimizer.evaluation.step_feedback import feedback_by_step
from rlmoptimizer.evaluation.step_recorder import Steps, Trace, TracedCall, describe_error
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.lms.cache_space import rollout_space
from rlmoptimizer.lms.failures import failure_kind
from rlmoptimizer.records import PASSED_AT, ExampleResult, StepTrace
from rlmoptimizer.task.copying import copy_of
from rlmoptimizer.task.dataset import Row
from rlmoptimizer.task.program import all_modules, step_of

__all__ = ["PASSED_AT", "Detail", "RowOutcome", "RowRunner", "split_fields"]

Detail: TypeAlias = Literal["totals", "rows", "requests"]
"""How much of an evaluation is kept: "totals" is for what nobody may see row by row, "rows" has what the metric says
about each step too, and "requests" also one request of each step, as its LM got it."""

_OWN_FILES: Final = (str(Path(__file__).parents[1]), str(Path(kernel_bridge.__file__).parent))
_FUTURES: Final = str(Path(futures.__file__).parent)  # an async metric is waited for through it


@dataclass(frozen=True, slots=True)
class RowOutcome:
    """A result, and what the evaluator needs to know beside it."""

    result: ExampleResult
    metric_called: bool
    metric_failure: str | None  # why there is no score, with the traceback where the metric raised; None: there is one
    lm_failure: BaseException | None = None  # why there is no verdict; None: there is one
    strays: bool = False  # a step of the program has been called where DSPy's settings do not reach
    dropped_objectives: str | None = None  # why the metric's objectives are not all there; None: they are


class RowRunner:
    """Runs one program on rows. As thread-safe as the program is.

    It owns `program` from now on. Once `halt` is set, rows are given up at their next step.
    `detail`: how much of the rows is kept, see `Detail`.
    """

    def __init__(
        self,
        program: dspy.Module,
        scorer: Scorer,
        lm: dspy.BaseLM | None,
        *,
        limit: TimeLimit,
        context: contextvars.Context | None,
        halt: threading.Event | None = None,
        detail: Detail = "rows",
    ) -> None:
        self._program = program
        self._scorer = scorer
        self._lm = lm
        self._limit = limit
        self._loop = limit.loop
        self._context = context  # None: whatever the running thread has
        self._halt = halt if halt is not None else threading.Event()
        self._detail: Detail = detail
        self._requests = ExampleRequests() if detail == "requests" else None
        self._asks_about_steps = detail != "totals" and scorer.step_call is not None
        self._name_of = step_of(program)
        self._strays = threading.Event()  # see `RowOutcome.strays`
        record_steps(all_modules(program), self._strays)
        self._known_adapters = None, with_kept_texts(None)  # see `Steps`
        self._only_async = _is_only_async(program)

    def run(self, row: Row, context: contextvars.Context | None = None) -> RowOutcome:
        """Run the program on one row and score what it predicts.

        `context`: in the place of its own, for this row alone. Raises `ItemAbandoned` after a halt, and what is meant
        to end the process.
        """
        if context is None:
            context = self._context.copy() if self._context is not None else contextvars.copy_context()
        progress = RowProgress(row, self._halt)
        try:
            outcome = self._limit.call(
                lambda: context.run(self._run_in_space, progress), lambda: self._timed_out(progress), halt=self._halt
            )
        except ItemAbandoned:
            raise
        except BaseException as error:
            add_note(error, f"Raised while {row.where} was evaluated")
            raise
        progress.steps = None  # they know each other, and a cycle is left to the garbage collector
        return replace(outcome, strays=True) if self._strays.is_set() else outcome

    def _timed_out(self, progress: RowProgress) -> RowOutcome:
        return RowOutcome(progress.timed_out(self._limit.seconds or 0.0), False, None)

    def _run_in_space(self, progress: RowProgress) -> RowOutcome:
        with rollout_space(progress.row.rollout):
            return self._run(progress)

    def _run(self, progress: RowProgress) -> RowOutcome:
        row = progress.row
        inputs, expected = split_fields(row.example)
        progress.inputs, progress.expected = to_plain(inputs), to_plain(expected)  # before anybody can change them
        steps = progress.steps = self._recorder(progress)
        trace = Trace(steps)
        failure: BaseException | None = None
        try:
            try:
                prediction = self._predict({name: copy_of(value) for name, value in inputs.items()}, steps, trace)
            finally:
                progress.taken = steps.close()
            progress.predicted = to_plain(prediction)
            progress.at = "metric"
            progress.verdict = self._judge(row.example, prediction, steps, trace)
            if self._asks_about_steps:
                progress.taken = self._with_feedback(progress, prediction, steps, trace)
        except (Exception, SystemExit, GeneratorExit, asyncio.CancelledError) as error:
            if progress.is_set():
                raise ItemAbandoned from error  # perhaps it failed only because it was stopped
            failure = _innermost(error)
        if failure is None:
            result = progress.result()
        else:
            result = progress.result(describe_error(failure), _kind(failure, progress.at))
        if not result.has_verdict:
            if (steps.is_answered or self._strays.is_set()) and not result.shows_answers:
                # It is free, so what came later must not show the answer to a call that was not recorded as a step.
                result = replace(result, error=type(failure).__name__, steps=())
            return RowOutcome(result, False, None, failure)
        judged, verdict = progress.at == "metric", progress.verdict
        return RowOutcome(
            result,
            metric_called=judged,
            metric_failure=_metric_failure(failure) if judged and failure is not None else None,
            dropped_objectives=None if verdict is None else verdict.dropped,
        )

    def _recorder(self, progress: RowProgress) -> Steps:
        requests, position = self._requests, int(progress.row.example_id)
        return Steps(
            self._name_of,
            progress,
            keeps_copies=self._scorer.wants_steps or self._asks_about_steps,
            keeps_request=None if requests is None else lambda step: requests.take(step, position),
            adapters=self._adapters(dspy.settings.adapter),
        )

    def _predict(self, inputs: dict[str, Any], steps: Steps, trace: Trace) -> Any:
        program = cast("Any", self._program)
        lm = {} if self._lm is None else {"lm": self._lm}
        with dspy.context(**lm, trace=trace, caller_modules=_called_by(steps)):
            answer = program.acall(**inputs) if self._only_async else program(**inputs)
            return self._loop.run(answer) if inspect.isawaitable(answer) else answer

    def _adapters(self, adapter: Any) -> tuple[Any, Any]:
        known = self._known_adapters
        if known[0] is not adapter:
            known = self._known_adapters = adapter, with_kept_texts(adapter)
        return known

    def _judge(self, example: dspy.Example, prediction: Any, steps: Steps, trace: Trace) -> Verdict:
        def ask(example: Any, prediction: Any) -> Any:
            return self._scorer(example, prediction, steps.trace)

        return read_verdict(self._ask_metric(ask, example, prediction, steps, trace), self._scorer.perfect_score)

    def _with_feedback(
        self, progress: RowProgress, prediction: Any, steps: Steps, trace: Trace
    ) -> tuple[StepTrace, ...]:
        """The steps with what the metric says about each, where that is not what it said about the whole."""

        def ask(step: str, calls: list[TracedCall]) -> Any:
            def about(example: Any, prediction: Any) -> Any:
                return self._scorer.about_step(example, prediction, list(steps.trace), step, list(calls))

            return self._ask_metric(about, progress.row.example, prediction, steps, trace)

        known = None if progress.verdict is None else progress.verdict.feedback
        said = feedback_by_step(steps.traces, ask, known=known, halt=progress)
        return tuple(
            replace(step, feedback=said[step.step_name]) if step.error is None and step.step_name in said else step
            for step in progress.taken
        )

    def _ask_metric(
        self, ask: Callable[[Any, Any], Any], example: dspy.Example, prediction: Any, steps: Steps, trace: Trace
    ) -> Any:
        # The metric may use predictors too: their calls are no steps of the program.
        lm = {} if self._lm is None or dspy.settings.lm else {"lm": self._lm}
        with dspy.context(**lm, trace=list(trace), caller_modules=_called_by(steps)):
            # Copies: many metrics normalize in place.
            answer = ask(copy_of(example), copy_of(prediction))
            return self._loop.run(answer) if inspect.isawaitable(answer) else answer


def split_fields(example: dspy.Example) -> tuple[dict[str, Any], dict[str, Any]]:
    """The inputs of an example, and its other fields."""
    given = cast("Any", example.inputs())
    inputs: dict[str, Any] = dict(given.items())
    items = cast("list[tuple[str, Any]]", example.items())
    return inputs, {name: value for name, value in items if name not in inputs}


def _called_by(steps: Steps) -> list[Any]:
    # First, so that it reads what LMs answer before the usage meter forgets it, where DSPy is to keep no history.
    return [steps, *(dspy.settings.caller_modules or ())]


def _is_only_async(program: dspy.Module) -> bool:
    kind = type(program)
    # Looked up without touching `program.forward`, which DSPy answers with a warning.
    has_forward = hasattr(kind, "forward") or "forward" in vars(program) or kind.__call__ is not dspy.Module.__call__
    return not has_forward


def _innermost(error: BaseException) -> BaseException:
    """The only error in a group, also of nested groups: task groups of async programs wrap errors so."""
    inner: Any = getattr(error, "exceptions", None)
    while isinstance(inner, tuple) and len(cast("tuple[Any, ...]", inner)) == 1:
        if not isinstance(inner[0], BaseException):
            break
        error = inner[0]
        inner = getattr(error, "exceptions", None)
    return error


def _kind(error: BaseException, at: str) -> str:
    """`ExampleResult.error_kind`. An LM's failure counts as one also when the program wrapped it in its own error."""
    return "score" if isinstance(error, InvalidScore) else failure_kind(error) or at


def _metric_failure(error: BaseException) -> str:
    return describe_error(error) if isinstance(error, InvalidScore) else _foreign_traceback(error)


def _foreign_traceback(error: BaseException) -> str:
    """The traceback as the metric's author would see it: without the frames of ours."""
    shown = traceback.TracebackException.from_exception(error)
    frames = [frame for frame in shown.stack if not frame.filename.startswith((*_OWN_FILES, _FUTURES))]
    shown.stack = traceback.StackSummary.from_list(frames)
    return "".join(shown.format()).rstrip()
