"""The evaluation engine: runs a program on rows, in parallel, and says what happened. Knows no budget and no store."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# DSPy has no types of its own.

from __future__ import annotations

import contextlib
import contextvars
import functools
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Final

import dspy

from .candidate import PASSED_AT, Candidate, ExampleResult, Outcome, StepTrace
from .dataset import Row
from .errors import InvalidSetupType, MetricFailed
from .loop_thread import LoopThread
from .metric import bind_metric
from .program import clone, separate_stages

__all__ = ["PASSED_AT", "Evaluator", "ExampleResult", "StepTrace"]

_POLL_SECONDS: Final = 0.5  # how long a wait for the next result lasts before it looks at `cancelled` again
_AHEAD: Final = 4  # examples that wait in the own pool for each thread of it, so that no thread waits for the next one


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
        if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidSetupType(f"num_threads must be a whole number of at least 1, not {num_threads!r}")
        self._scorer = bind_metric(metric)
        self._lm = lm
        self._num_threads = num_threads
        self._context = context
        self._own_pool = None if executor is not None else ThreadPoolExecutor(num_threads, "rlmoptimizer-eval")
        self._executor: Executor = executor or self._own_pool  # pyright: ignore[reportAttributeAccessIssue]
        self._loop = LoopThread()
        self._metric_works = False  # it has given a score at least once

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
        candidate = self._candidate(program)
        stop = threading.Event()
        outcomes: list[Outcome | None] = [None] * len(rows)
        try:
            with contextlib.closing(self._outcomes(candidate, rows, stop, cancelled or threading.Event())) as coming:
                for index, outcome in coming:
                    outcomes[index] = outcome
                    if on_result is not None:
                        on_result(outcome.result)
        finally:
            stop.set()
        finished = [outcome for outcome in outcomes if outcome is not None]
        self._check_metric(finished)
        return [outcome.result for outcome in finished]

    def close(self, *, wait: bool = True) -> None:
        """Stop the own threads; waits for examples under way unless told not to. Idempotent."""
        if self._own_pool is not None:
            self._own_pool.shutdown(wait=wait, cancel_futures=True)
        self._loop.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever presses Ctrl-C does not want to wait for an LM's answer.
        self.close(wait=kind is None or not issubclass(kind, KeyboardInterrupt))

    def _candidate(self, program: dspy.Module) -> Candidate:
        own = clone(program)
        separate_stages(own)
        context = self._context if self._context is not None else contextvars.copy_context()
        return Candidate(own, self._scorer, self._lm, loop=self._loop, context=context)

    def _outcomes(
        self, candidate: Candidate, rows: Sequence[Row], stop: threading.Event, cancelled: threading.Event
    ) -> Generator[tuple[int, Outcome]]:
        """Outcomes as they come. Rows are handed out a few at a time, so that calls on one executor take turns."""
        done: queue.SimpleQueue[tuple[int, Future[Outcome | None]]] = queue.SimpleQueue()
        waiting = enumerate(rows)
        window = self._num_threads * (_AHEAD if self._own_pool is not None else 1)
        under_way: set[Future[Outcome | None]] = set()

        def hand_out() -> None:
            while len(under_way) < window and not cancelled.is_set():
                index, row = next(waiting, (-1, None))
                if row is None:
                    return
                future = self._executor.submit(_Task(candidate, row, (stop, cancelled)))
                under_way.add(future)
                future.add_done_callback(functools.partial(_report, done, index))

        try:
            hand_out()
            while under_way:
                try:
                    index, future = done.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    if cancelled.is_set():
                        _cancel(under_way)
                    continue
                under_way.discard(future)
                hand_out()
                if not future.cancelled() and (outcome := future.result()) is not None:
                    yield index, outcome
        finally:
            _cancel(under_way)

    def _check_metric(self, outcomes: Sequence[Outcome]) -> None:
        reached = [outcome for outcome in outcomes if outcome.metric_called]
        failures = [outcome.metric_traceback for outcome in reached if outcome.metric_traceback is not None]
        if len(failures) < len(reached):
            self._metric_works = True
        elif failures and not self._metric_works:
            raise MetricFailed(failures[0], failed=len(failures))


class _Task:
    """One row to run. Pickled for another process, it leaves behind the events that can only be seen in this one."""

    __slots__ = ("_candidate", "_halts", "_row")

    def __init__(self, candidate: Candidate, row: Row, halts: tuple[threading.Event, ...]) -> None:
        self._candidate = candidate
        self._row = row
        self._halts = halts

    def __call__(self) -> Outcome | None:
        """The outcome; None when the run was stopped before this row was begun."""
        if any(halt.is_set() for halt in self._halts):
            return None
        return self._candidate.run(self._row)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Task, (self._candidate, self._row, ())


def _report(
    done: queue.SimpleQueue[tuple[int, Future[Outcome | None]]], index: int, future: Future[Outcome | None]
) -> None:
    done.put((index, future))


def _cancel(futures: Iterable[Future[Outcome | None]]) -> None:
    for future in list(futures):
        future.cancel()
