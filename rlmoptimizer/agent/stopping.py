"""What ends the agent's work: a target score, patience, a deadline, a cost limit or a person; whichever comes first.

It ends in the same way whichever it is: calls of the agent are refused, evaluations on train begin no further example,
one on val comes to its end, the root LM is not asked again, and the best candidate so far is the result.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.errors import AgentError, CostExceededError, OptimizationEnded, TimeExceededError
from rlmoptimizer.outcome.measured import best_measured_run, whole_scores
from rlmoptimizer.records import RunRecord
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.dataset import Dataset

__all__ = ["Ending", "StopReason", "StoppingLimits", "WorkStop", "runs_without_better"]

StopReason: TypeAlias = Literal[
    "submitted",
    "turns",  # rlm_max_iterations
    "max_cost_usd",
    "target_score",
    "patience",
    "max_seconds",
    "kernel_lost",  # the agent's interpreter ended for good
    "unreadable",  # the root LM's answers were no turns any more
    "stopped_by_person",
    "branched",  # by a person: another optimization goes on from one of its runs
]

_LOOK_SECONDS: Final = 0.5  # how often the watching thread looks at the clock and at what a person asks
_GRACE_SECONDS: Final = 15.0  # what a cell that was interrupted has, to end


@dataclass(frozen=True, slots=True)
class Ending:
    """Why the work must end."""

    reason: StopReason
    said: str  # in words, for the agent and for the log


@dataclass(frozen=True, slots=True)
class StoppingLimits:
    """When the work is to end, beside the budget and the turns. None: that never ends it."""

    target_score: float | None = None  # percent, 0..100
    patience: int | None = None  # checkpoints
    max_seconds: float | None = None  # of the whole compile


class WorkStop:
    """Whether the agent's work must end, and why. Thread-safe.

    A checkpoint is a finished run on all of val, or on all of train where there is no val. Those of earlier processes
    count, the baseline as the score to beat. One whose verdicts are all reused uses up no patience. The score of each
    is the mean over all runs of its prompts there, so that a lucky run is set right when they run again.

    Args:
        worked: seconds that earlier processes have worked on this optimization.
        asked: why a person wants the work to end; None: nobody does. Called from any thread.
        clock: seconds; its present value is the start of this process's work.
    """

    def __init__(
        self,
        limits: StoppingLimits,
        gate: CallGate,
        store: StoreReader,
        data: Dataset,
        costs: CostLedger,
        *,
        worked: float = 0.0,
        asked: Callable[[], Ending | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = limits
        self.gate = gate
        self._store = store
        self._costs = costs
        split, rows = data.scored
        self._split, self._size = split, len(rows)
        self._asked = asked
        self._clock = clock
        self._stopped_at: float | None = None  # when the clock was stopped; None: it goes
        self._deadline = None if limits.max_seconds is None else clock() + limits.max_seconds - worked
        self._lock = threading.Lock()  # of the next one
        self._ending: Ending | None = None  # the first one stays

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline, not below 0; None: there is none."""
        if self._deadline is None:
            return None
        now = self._clock() if (stopped_at := self._stopped_at) is None else stopped_at
        return max(0.0, self._deadline - now)

    @contextmanager
    def clock_stopped(self) -> Generator[None]:
        """The time of the block does not count. Blocks do not nest."""
        self._stopped_at = began = self._clock()
        try:
            yield
        finally:
            if self._deadline is not None:
                self._deadline += self._clock() - began  # first: another thread must not see less than is left
            self._stopped_at = None

    def facts(self) -> dict[str, float]:
        """What the agent is told of the limits that are set."""
        limits = {
            "target_score": self._limits.target_score,
            "patience": self._limits.patience,
            "max_seconds": self._limits.max_seconds,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}

    def look(self) -> Ending | None:
        """Why the work must end; None: it goes on. When it must, the gate is closed."""
        asked = self._asked()
        with self._lock:
            ending = self._ending or asked or self._reached()
        return None if ending is None else self.end(ending)

    def look_before_root_call(self) -> Ending | None:
        """`look`, and whether `max_cost_usd` pays for one more turn."""
        ending = self.look()
        if ending is None:
            try:
                self._costs.check("root")
            except CostExceededError as refused:
                return self.end(Ending("max_cost_usd", str(refused)))
        return ending

    def end(self, ending: Ending) -> Ending:
        """End the work, unless it has ended: every call is refused from now on. Gives the ending in force."""
        with self._lock:
            in_force = self._ending = self._ending or ending
        self.gate.close(lambda: _refusal(in_force))
        return in_force

    def check_time(self, evaluations: int) -> None:
        """Raise `TimeExceededError` when so many evaluations of a run on val would not end before the deadline.

        Each is expected to take as long as in the quickest such run so far. Runs on train are cut at the deadline.
        """
        left = self.seconds_left
        if left is None:
            return
        whole = [run for run in self._store.runs() if self._is_checkpoint(run) and not run.reused_count]
        quickest = min((_seconds(run) / run.judged_count for run in whole), default=0.0)
        if (seconds := quickest * evaluations) > left:
            raise TimeExceededError(seconds, left)

    @contextmanager
    def watching(self, interrupt: Callable[[], None], kill: Callable[[], None]) -> Generator[None]:
        """Watch the deadline and what a person asks for the block, on a thread of its own.

        When the work is to end for that, `interrupt` is called; `kill`, where that has not ended the block after some
        seconds.
        """
        over = threading.Event()

        def watch() -> None:
            while (ending := self._asked() or self._timed_out()) is None:
                left = self.seconds_left
                if over.wait(_LOOK_SECONDS if left is None else min(left, _LOOK_SECONDS)):
                    return
            self.end(ending)
            interrupt()
            if not over.wait(_GRACE_SECONDS):
                kill()

        thread = threading.Thread(target=watch, name="rlmoptimizer-stop", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    # what is reached; under the lock

    def _reached(self) -> Ending | None:
        if (timed_out := self._timed_out()) is not None:
            return timed_out
        if self._limits.target_score is None and self._limits.patience is None:
            return None
        checkpoints = [run for run in self._store.runs() if self._is_checkpoint(run)]
        if not checkpoints:
            return None
        every = whole_scores(self._store, self._split, self._size)
        scores = {run.candidate: every[run.candidate] for run in checkpoints}
        return self._reached_target(checkpoints, scores) or self._ran_out_of_patience(checkpoints, scores)

    def _timed_out(self) -> Ending | None:
        if self.seconds_left != 0:
            return None
        return Ending("max_seconds", f"max_seconds={self._limits.max_seconds:g} is used up")

    def _is_checkpoint(self, run: RunRecord) -> bool:
        return run.covers(self._split, self._size)

    def _reached_target(self, checkpoints: list[RunRecord], scores: Mapping[str, float]) -> Ending | None:
        target, best = self._limits.target_score, best_measured_run(checkpoints, scores, self._split, self._size)
        if target is None or best is None or (score := 100 * scores[best.candidate]) < target - 1e-9:
            return None
        said = f"the prompts of run {best.run_id} scored {score:.2f} on all of {self._split}, and target_score is"
        return Ending("target_score", f"{said} {target:g}")

    def _ran_out_of_patience(self, checkpoints: list[RunRecord], scores: Mapping[str, float]) -> Ending | None:
        if self._limits.patience is None:
            return None
        before = max((scores[run.candidate] for run in checkpoints if run.baseline), default=0.0)
        looks = [run for run in checkpoints if not run.baseline and run.reused_count < run.judged_count]
        without = runs_without_better(before, [scores[run.candidate] for run in looks])
        if without < self._limits.patience:
            return None
        runs = "run was" if without == 1 else f"{without} runs were"
        said = f"the last {runs} not better than the best before, and patience is {self._limits.patience}"
        return Ending("patience", f"on all of {self._split} {said}")


def runs_without_better(before: float, scores: Iterable[float]) -> int:
    """How many of the last scores in a row are not above all that came before them, `before` included."""
    best, without = before, 0
    for score in scores:
        without = 0 if score > best else without + 1
        best = max(best, score)
    return without


def _refusal(ending: Ending) -> AgentError:
    if ending.reason == "max_cost_usd":
        return CostExceededError(0.0, 0.0)
    return OptimizationEnded(ending.reason, ending.said)


def _seconds(run: RunRecord) -> float:
    return 0.0 if run.finished_at is None else max(0.0, run.finished_at - run.started_at)
