"""The evaluation engine: runs a program on rows, in parallel, and says what happened. Knows no budget and no store."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# DSPy has no types of its own.

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import dspy

from .candidate import PASSED_AT, Candidate, ExampleResult, Outcome, StepTrace
from .dataset import Row
from .errors import InvalidSetupType, MetricFailed
from .fan_out import DELIVERY_SECONDS, ExecutorFanOut, FanOut, Halt, ThreadFanOut
from .loop_thread import LoopThread
from .metric import bind_metric
from .program import clone, separate_stages

__all__ = ["DELIVERY_SECONDS", "PASSED_AT", "Evaluator", "ExampleResult", "StepTrace"]


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
        self._executor = executor
        self._pool = None if executor is not None else ThreadPoolExecutor(num_threads, "rlmoptimizer-eval")
        self._loop = LoopThread()
        self._closed = threading.Event()
        self._lock = threading.Lock()  # of the next one
        self._calls = 0  # of `score` under way
        self._metric_works = False  # it has given a score at least once

    def score(
        self,
        program: dspy.Module,
        rows: Sequence[Row],
        *,
        on_result: Callable[[ExampleResult], None] | None = None,
        on_results: Callable[[Sequence[ExampleResult]], None] | None = None,
        cancelled: Halt | None = None,
    ) -> list[ExampleResult]:
        """Run a clone of `program` on every row and score it; results in the order of `rows`.

        `on_results` is called on this thread with all examples that have finished since it was called last, in the
        order in which they finished, at most `DELIVERY_SECONDS` after the first of them; `on_result` after it with
        each single one. When one of them raises, no further example is started and the exception goes to the caller.
        Once `cancelled` is set no further example is started; those under way are finished and kept, so the list may
        be shorter than `rows`.
        At most `num_threads` examples of one call run at once, and of all calls together on the own pool.
        Raises `MetricFailed` when the metric raised on every example that reached it and has not given a score in
        any earlier call; every result has been delivered by then.
        """
        if self._closed.is_set():
            raise RuntimeError("the evaluator is closed")
        halts: tuple[Halt, ...] = (self._closed,) if cancelled is None else (self._closed, cancelled)
        outcomes: dict[int, Outcome] = {}
        fan_out = self._fan_out(self._candidate(program), rows, halts)
        with self._lock:
            self._calls += 1
        try:
            fan_out.start()
            while batch := fan_out.next_batch():
                outcomes.update(batch)
                results = [outcome.result for _, outcome in batch]
                if on_results is not None:
                    on_results(results)
                if on_result is not None:
                    for result in results:
                        on_result(result)
        finally:
            fan_out.stop()
            with self._lock:
                self._calls -= 1
        finished = [outcomes[index] for index in sorted(outcomes)]
        self._check_metric(finished)
        return [outcome.result for outcome in finished]

    def close(self, *, wait: bool = True) -> None:
        """Stop the own threads; waits for examples under way unless told not to. Idempotent."""
        self._closed.set()
        if self._pool is not None:
            self._pool.shutdown(wait=wait)
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

    def _fan_out(
        self, candidate: Candidate, rows: Sequence[Row], halts: tuple[Halt, ...]
    ) -> FanOut[Row, Outcome]:
        if self._executor is not None:
            return ExecutorFanOut(candidate.run, rows, width=self._num_threads, halts=halts, executor=self._executor)
        assert self._pool is not None
        return ThreadFanOut(
            candidate.run,
            rows,
            width=self._num_threads,
            halts=halts,
            pool=self._pool,
            is_crowded=lambda: self._calls > 1,
        )

    def _check_metric(self, outcomes: Sequence[Outcome]) -> None:
        reached = [outcome for outcome in outcomes if outcome.metric_called]
        failures = [outcome.metric_traceback for outcome in reached if outcome.metric_traceback is not None]
        if len(failures) < len(reached):
            self._metric_works = True
        elif failures and not self._metric_works:
            raise MetricFailed(failures[0], failed=len(failures))
