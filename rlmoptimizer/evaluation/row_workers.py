"""Where the rows of an evaluator run: on threads of its own, or on an executor. Makes the fan-out of each run."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import dspy
from dspy.utils.callback import ACTIVE_CALL_ID

from kernel_bridge.threads.daemon_pool import DaemonPool
from rlmoptimizer.evaluation.fan_out import FanOut, FanOutJob, Halt, ThreadFanOut
from rlmoptimizer.evaluation.metric import Scorer
from rlmoptimizer.evaluation.row_runner import RowOutcome, RowRunner
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.evaluation.workers.executor_fan_out import ExecutorFanOut
from rlmoptimizer.evaluation.workers.pickled_evaluation import RunOptions, pickled_base, pickled_row, pickled_run
from rlmoptimizer.evaluation.workers.tasks import Part
from rlmoptimizer.evaluation.workers.transport import HereTransport, RowTransport
from rlmoptimizer.evaluation.workers.worker import UNSCORED
from rlmoptimizer.evaluation.workers.worker_pool import GivenExecutor, WorkerPool
from rlmoptimizer.lms.cache_space import in_cache_space
from rlmoptimizer.spending.call_meter import HeardCall
from rlmoptimizer.task.dataset import Row
from rlmoptimizer.task.program import clone, separate_stages, write_prompts

__all__ = ["RowSetup", "RowWorkers"]

logger = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 600.0  # how long an end waits for the examples under way, each of which has a limit in its LM
_LEAVE_SECONDS: Final = 0.2  # how long threads that were abandoned may take to notice it


@dataclass(frozen=True, slots=True)
class RowSetup:
    """What all runs of an evaluator have in common."""

    scorer: Scorer
    lm: dspy.BaseLM | None  # runs the program; None: DSPy's settings say
    context: contextvars.Context | None  # of DSPy's settings; None: that of whoever asks

    def settings(self) -> contextvars.Context:
        """A context to run something in."""
        return contextvars.copy_context() if self.context is None else self.context.copy()

    def base(self, program: dspy.Module) -> Part:
        """For workers in other processes. Raises `InvalidSetup`, which names what cannot be sent there."""
        return pickled_base(program, self.scorer, self.lm, self.settings())

    def runner(self, program: dspy.Module, options: RunOptions, limit: TimeLimit, halt: threading.Event) -> RowRunner:
        """Of a clone of `program`, in this process."""
        own = clone(program)
        if options.prompts is not None:
            write_prompts(own, options.prompts)
        separate_stages(own)
        context = self.settings()
        # DSPy's callbacks nest calls by this: those of the program belong to the evaluation that is under way.
        context.run(ACTIVE_CALL_ID.set, ACTIVE_CALL_ID.get())
        if options.space is not None:
            context = in_cache_space(context, options.space)
        scorer = self.scorer if options.scored else UNSCORED
        return RowRunner(own, scorer, self.lm, limit=limit, context=context, halt=halt, detail=options.detail)


class RowWorkers:
    """The workers of one evaluator. Thread-safe.

    `executor` None: a pool of `num_threads` threads. `count` gets the LM calls of workers in other processes, before
    the outcomes that they belong to are delivered. Once `aborted` is set, rows are given up at their next step.
    """

    def __init__(
        self,
        setup: RowSetup,
        num_threads: int,
        limit: TimeLimit,
        aborted: threading.Event,
        *,
        executor: GivenExecutor | None,
        count: Callable[[Iterable[HeardCall]], None],
    ) -> None:
        self._setup = setup
        self._num_threads = num_threads
        self._limit = limit
        self._aborted = aborted
        self._count = count
        self._executor = None if executor is None else WorkerPool(executor)
        self._threads = None if executor is not None else DaemonPool(num_threads, "rlmoptimizer-eval")

    def prepare(self, program: dspy.Module, rows: Iterable[Row], halts: tuple[Halt, ...]) -> None:
        """As `Evaluator.prepare`."""
        if self._executor is not None and self._executor.is_elsewhere(halts):
            for row in rows:
                pickled_row(row)
            self._executor.load(self._setup.base(program), halts)

    @property
    def are_ours(self) -> bool:
        """Whether they are threads that were made for this."""
        return self._executor is None

    def fan_out(
        self,
        program: dspy.Module,
        options: RunOptions,
        job: FanOutJob[Row, RowOutcome],
        is_crowded: Callable[[], bool],
    ) -> FanOut[Row, RowOutcome]:
        """That of a run, not begun. `is_crowded`: others are under way too."""
        if self._executor is not None and self._executor.is_elsewhere(job.halts):
            return ExecutorFanOut(job, self._executor, self._transport(program, options))
        function = self._setup.runner(program, options, self._limit, self._aborted).run
        if self._executor is not None:
            return ExecutorFanOut(job, self._executor, HereTransport(function))
        assert self._threads is not None
        return ThreadFanOut(job, function, self._threads, is_crowded)

    def _transport(self, program: dspy.Module, options: RunOptions) -> RowTransport:
        return RowTransport(
            self._setup.base(program),
            pickled_run(options),
            self._num_threads,
            self._count,
            keeps_requests=options.detail == "requests",
        )

    def close(self, *, wait: bool) -> None:
        """End what is ours of them; examples under way are waited for, or with `wait=False` abandoned. Idempotent."""
        seconds = _IDLE_SECONDS if wait else _LEAVE_SECONDS
        if self._threads is not None:
            self._threads.close()
            left = self._threads.join(seconds)
            if wait and left:
                logger.warning("Examples are still being evaluated after %.0f s; they are abandoned", _IDLE_SECONDS)
        if self._executor is not None:
            self._executor.close(seconds)
