"""Runs a program on rows, in parallel, and scores it with a metric."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import TracebackType
from typing import Any

import dspy

from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.errors import InvalidSetupType, MetricFailed
from rlmoptimizer.evaluation.fan_out import FanOut, FanOutJob, Halt
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.row_runner import PASSED_AT, Detail, RowOutcome
from rlmoptimizer.evaluation.row_workers import RowSetup, RowWorkers
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.evaluation.wait_monitor import Pending, WaitMonitor
from rlmoptimizer.evaluation.workers.pickled_evaluation import RunOptions
from rlmoptimizer.evaluation.workers.worker_pool import GivenExecutor
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.spending.call_meter import HeardCall
from rlmoptimizer.task.dataset import Row

__all__ = ["PASSED_AT", "Evaluator", "EvaluatorClosed", "LMsFailed"]

logger = logging.getLogger(__name__)

_GRACE_SECONDS = 2.0  # how long a Ctrl-C waits for the examples under way, and an end for what is being delivered


def _not_counted(calls: object) -> None:
    pass


class LMsFailed(Exception):
    """No example of a run has a verdict, because an LM failed on each; the cause is what the first one raised.

    Its first catcher, who carries out the run, sets `run_id`.
    """

    run_id: str


class EvaluatorClosed(RuntimeError):
    """Nothing is evaluated any more."""

    def __init__(self) -> None:
        super().__init__("the evaluator is closed")


class Evaluator:
    """Scores programs with one metric and one LM on one executor, kept alive between runs. Thread-safe.

    `lm` is `dspy.settings.lm` while the program runs (predictors with an LM of their own keep it; None: the settings'
    own). The metric runs under the settings' own LM, or `lm` where they have none.
    `context` is where DSPy's settings and all context variables come from; None: from whoever calls `score`. An
    optimizer passes `contextvars.copy_context()` taken at the start of `compile()`, so that what is set for the
    agent's turns does not reach the program.
    `executor` may be any `concurrent.futures.Executor`, also one that runs elsewhere; the caller keeps it and shuts
    it down. A callable makes one, which is ended by `close()`, and made anew when it breaks. None: an own pool of
    `num_threads` threads, closed by `close()`. `count` gets the LM calls of workers in other processes, before the
    results that they belong to are delivered.
    `waits` watches calls of `score` that have a `name`.
    `example_timeout`: seconds for program and metric together, on one row; see `TimeLimit`. A row whose time is up is
    an error of the kind "example_timeout" with a score of 0, and its place is free again. None: no limit.
    """

    def __init__(
        self,
        metric: Any,
        lm: dspy.BaseLM | None,
        num_threads: int = 8,
        *,
        executor: GivenExecutor | None = None,
        count: Callable[[Iterable[HeardCall]], None] = _not_counted,
        context: contextvars.Context | None = None,
        waits: WaitMonitor | None = None,
        example_timeout: float | None = None,
    ) -> None:
        if isinstance(num_threads, bool) or not isinstance(num_threads, int) or num_threads < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidSetupType(f"num_threads must be a whole number of at least 1, not {num_threads!r}")
        self.num_threads = num_threads
        self.context = context
        self._scorer = bind_metric(metric)
        self._waits = waits
        self._closed = threading.Event()
        self._aborted = threading.Event()
        self._ends: tuple[Halt, ...] = (self._closed, self._aborted)
        self._loop = LoopThread()
        self._limit = TimeLimit(example_timeout, self._loop)
        setup = RowSetup(self._scorer, lm, context)
        self._workers = RowWorkers(setup, num_threads, self._limit, self._aborted, executor=executor, count=count)
        self._lock = threading.Lock()  # of the next one
        self._under_way: set[FanOut[Row, RowOutcome]] = set()
        self._dropped = False  # some of the metric's objectives, and it has been said
        self.strays = False  # steps were called where DSPy's settings had not come along, so not under `lm`
        self.metric_works = False  # it has judged an example at least once; a resumed optimization may know already

    @property
    def metric(self) -> Callable[..., Any]:
        """The caller's own."""
        return self._scorer.metric

    def prepare(self, program: dspy.Module, rows: Iterable[Row]) -> None:
        """See whether the workers of the executor can run `program` on `rows`. Waits for one of them.

        Raises `InvalidSetup`, which names what cannot be sent there, or why a worker cannot work.
        """
        if self._workers.are_ours:
            return
        with nullcontext() if self._waits is None else self._waits.watch(("executor", "")):
            self._workers.prepare(program, rows, self._ends)

    def score(
        self,
        program: dspy.Module,
        rows: Sequence[Row],
        *,
        prompts: Prompts | None = None,
        on_results: Callable[[Sequence[ExampleResult]], None] | None = None,
        cancelled: Halt | None = None,
        space: str | None = None,
        name: str | None = None,
        detail: Detail = "rows",
    ) -> list[ExampleResult]:
        """Run a clone of `program` on every row and score it; results in the order of `rows`.

        The clone gets `prompts`, which were checked for this program; None: it keeps those it has.
        `on_results` is called as soon as an example has finished, with all that have finished since it was called
        last, in the order in which they did. Never two calls at once, but on any thread. When it raises, no further
        example is started and the exception goes to the caller.
        Once `cancelled` is set no further example is started; those under way are finished and kept, so the list may
        be shorter than `rows`. After `abort` those under way are given up.
        In a `space` the LMs are asked as if nothing outside of it had ever been asked; see `cache_space`.
        When no example finishes for long, `waits` reports this evaluation by its `name`, with the ids of the examples
        under way unless `detail` is "totals".
        At most `num_threads` examples of one call run at once, and of all calls together on the own pool.
        Raises `MetricFailed` when the metric gave no score on any example that reached it, and none in any earlier
        call, and `LMsFailed` when no example has a verdict; every result has been delivered by then.
        """
        if self._closed.is_set():
            raise EvaluatorClosed
        outcomes: dict[int, RowOutcome] = {}

        def deliver(batch: list[tuple[int, RowOutcome]]) -> None:
            if on_results is not None:
                on_results([outcome.result for _, outcome in batch])
            outcomes.update(batch)
            if any(outcome.strays for _, outcome in batch):
                self._warn_of_strays()
            if dropped := [outcome.dropped_objectives for _, outcome in batch if outcome.dropped_objectives]:
                self._warn_of_dropped(dropped[0])
            step()

        def pending() -> Pending:
            under_way = fan_out.under_way()
            return len(under_way), [] if detail == "totals" else [rows[index].example_id for index in under_way]

        options = RunOptions(prompts, space, detail, self._limit.seconds, scored=True)
        fan_out = self._fan_out(program, options, rows, deliver, cancelled)
        with self._waiting(name, pending) as step:
            self._complete(fan_out)
        finished = [outcomes[index] for index in sorted(outcomes)]
        self._check(finished, whole=len(finished) == len(rows))
        return [outcome.result for outcome in finished]

    def run_unscored(
        self, program: dspy.Module, row: Row, *, prompts: Prompts, cancelled: Halt, space: str
    ) -> ExampleResult | None:
        """Run a clone of `program` with `prompts` on one row, and ask no metric: the score says nothing.

        `cancelled` and `space` as in `score`. None: it was cancelled before it began.
        """
        outcomes: list[RowOutcome] = []

        def deliver(batch: list[tuple[int, RowOutcome]]) -> None:
            outcomes.extend(outcome for _, outcome in batch)

        options = RunOptions(prompts, space, "totals", self._limit.seconds, scored=False)
        with self._waiting("try_program", lambda: (1, [])):
            self._complete(self._fan_out(program, options, [row], deliver, cancelled))
        if any(outcome.strays for outcome in outcomes):
            self._warn_of_strays()
        return outcomes[0].result if outcomes else None

    def _complete(self, fan_out: FanOut[Row, RowOutcome]) -> None:
        with self._lock:
            self._under_way.add(fan_out)
        try:
            fan_out.start()
            fan_out.wait()
        except KeyboardInterrupt:
            self.abort()
            fan_out.wait(_GRACE_SECONDS)  # what finishes now is kept
            raise
        finally:
            fan_out.abandon()
            with self._lock:
                self._under_way.discard(fan_out)

    def abort(self) -> None:
        """Start nothing more, and give up every example under way as soon as its present step is done."""
        self._aborted.set()

    def close(self, *, wait: bool = True) -> None:
        """Stop the own threads; examples under way are waited for, or with `wait=False` abandoned. Idempotent."""
        self._closed.set()
        if not wait:
            with self._lock:
                under_way = tuple(self._under_way)
            deadline = time.monotonic() + _GRACE_SECONDS  # of all of them together
            for fan_out in under_way:
                fan_out.stop()
            for fan_out in under_way:
                fan_out.abandon(max(0.0, deadline - time.monotonic()))
        self._workers.close(wait=wait)
        if hanging := self._limit.left:
            logger.warning(
                "Examples that did not keep example_timeout and have not ended: %d. Their threads end with the process",
                hanging,
            )
        self._loop.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Whoever presses Ctrl-C does not want to wait for an LM's answer.
        self.close(wait=kind is None or not issubclass(kind, KeyboardInterrupt))

    def _waiting(
        self, name: str | None, pending: Callable[[], Pending]
    ) -> AbstractContextManager[Callable[[], None]]:
        if self._waits is None or name is None:
            return nullcontext(lambda: None)
        return self._waits.watch(("examples", name), pending=pending)

    def _fan_out(
        self,
        program: dspy.Module,
        options: RunOptions,
        rows: Sequence[Row],
        deliver: Callable[[list[tuple[int, RowOutcome]]], None],
        cancelled: Halt | None,
    ) -> FanOut[Row, RowOutcome]:
        halts: tuple[Halt, ...] = (*self._ends, *(() if cancelled is None else (cancelled,)))
        job: FanOutJob[Row, RowOutcome] = FanOutJob(rows, deliver, self.num_threads, halts)
        return self._workers.fan_out(program, options, job, is_crowded=lambda: len(self._under_way) > 1)

    def _warn_of_strays(self) -> None:
        with self._lock:
            first, self.strays = not self.strays, True
        if first:
            logger.warning(
                "The program calls steps in threads of its own to which DSPy's settings are not handed on. There they "
                "run on the LM that dspy.configure has set, not on eval_lm; they are not among the steps that the "
                "agent sees, and what they cost is not counted. Use dspy.Parallel or dspy.asyncify, or run the thread "
                "in contextvars.copy_context()"
            )

    def _warn_of_dropped(self, why: str) -> None:
        with self._lock:
            first, self._dropped = not self._dropped, True
        if first:
            logger.warning(
                "Some of the metric's objective_scores are left out: %s. A dict of names to finite numbers is accepted",
                why,
            )

    def _check(self, outcomes: Sequence[RowOutcome], *, whole: bool) -> None:
        lm_failures = [outcome.lm_failure for outcome in outcomes if outcome.lm_failure is not None]
        if whole and lm_failures and len(lm_failures) == len(outcomes):
            raise LMsFailed from lm_failures[0]
        reached = [outcome for outcome in outcomes if outcome.metric_called]
        failures = [outcome.metric_failure for outcome in reached if outcome.metric_failure is not None]
        if len(failures) < len(reached):
            self.metric_works = True
        elif failures and not self.metric_works:
            raise MetricFailed(failures[0], failed=len(failures))
