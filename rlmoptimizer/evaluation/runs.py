"""Runs: evaluate a program on rows and keep all of it, paid and told as it comes. Knows no agent.

A run that was cut short is never lost and never paid twice. Whoever asks for the same once more (same split, same
prompts, same request) goes on with it: under its id, and only for the examples that have no verdict yet. Whoever asks
for some of the same examples with the same prompts takes those over, for nothing. So an example that was paid for what
it shows and has no verdict, because its LM failed then, is run again for nothing. A run counts as cut also when it came
to its end but nobody has its answer, because the process, the kernel or the turn that asked for it was gone by then.

A run on train is cut when nobody waits for it any more. One on val never is: it comes to its end whatever becomes of
who asked, unless everything is stopped, for each way to cut it would tell of the examples before the cut.
"""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import dspy

from rlmoptimizer.errors import MetricFailed, SelectionError
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.events import Emitter, EvaluationFinished, EvaluationStarted, ExamplesScored, Split
from rlmoptimizer.records import ExampleResult, RunRecord
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import Slot, UnitLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Row
from rlmoptimizer.task.program import read_prompts

__all__ = ["Asked", "Caller", "Kernel", "Runs"]

# Of DSPy's cache. What a run on train costs must not tell what one on val has asked: prompts can make a step of the
# program ask whatever they like. Nor may it tell what somebody had asked before about the examples of val.
_SPACES: dict[Split, str] = {"train": "rlmoptimizer train", "val": "rlmoptimizer val"}
# What runs that have cost nothing may make of the run store.
_MOST_FREE_RUNS = 1000
_MOST_FREE_BYTES = 64_000_000  # of what they were asked, which is mostly prompts
_LOOK_SECONDS = 0.2  # how often a wait for a run's end looks whether everything was stopped


@dataclass(frozen=True, slots=True)
class Asked:
    """One evaluation as it was asked for."""

    split: Split
    rows: tuple[Row, ...]  # the examples chosen, in order
    config: dict[str, Any]  # what was chosen, as the agent gets it back
    request: Mapping[str, Any]  # what was asked, before anything was drawn; a cut run is found again by it
    turn: int = 0  # of the agent; 0: before the first
    # What it comes to in the run that begins after so many runs of the same request. None: nothing is left to chance.
    draw: Callable[[int], Asked] | None = None


@dataclass(slots=True)
class Kernel:
    """What ends with a kernel of the agent."""

    gone: threading.Event = field(default_factory=threading.Event)  # nobody waits for answers any more
    given: set[str] = field(default_factory=set[str])  # finished runs whose answers it got in this turn
    turns: int = 0  # that have ended


Caller: TypeAlias = "tuple[Kernel, int]"  # and the turn of that kernel in which it asked


@dataclass(slots=True)
class _Run:
    """One run under way: which it is, what of it is still to be done, and its totals, added by one thread at a time."""

    run_id: str
    asked: Asked
    rows: tuple[Row, ...]  # those that have no verdict yet
    slot: Slot | None  # None: free of charge
    cost_slot: Slot
    kernel: Kernel  # that asked for it
    turn: int  # of that kernel, in which it did
    # Examples among `rows` that were paid before, for what they show, and have no verdict, because their LM failed.
    owed: frozenset[str] = frozenset()
    done: int = 0
    passed: int = 0
    score_sum: float = 0.0

    @property
    def may_be_cut(self) -> bool:
        """Whether it ends early when nobody waits for it any more."""
        return self.asked.split == "train" or self.slot is None

    def price(self, result: ExampleResult) -> int:
        """Units. An example without a verdict has a price when the agent is shown what was answered in it."""
        shown = self.asked.split == "train" and result.shows_answers
        return int(result.example_id not in self.owed and (result.has_verdict or shown))

    def add(self, results: Sequence[ExampleResult]) -> None:
        judged = [result for result in results if result.has_verdict]
        self.done += len(judged)
        self.passed += sum(result.passed for result in judged)
        self.score_sum += sum(result.score for result in judged)


class _Halt:
    """Keeps a run from going on to another example. Once it said so it says so for ever: a run has no gaps."""

    def __init__(self, events: tuple[Halt, ...], costs: CostLedger) -> None:
        self._events = events
        self._costs = costs
        self._too_dear = False

    def is_set(self) -> bool:
        self._too_dear = self._too_dear or self._costs.reached
        return self._too_dear or any(event.is_set() for event in self._events)


class Runs:
    """Makes the runs of one compile. Thread-safe.

    Once `closed` is set no run on train, and no baseline, goes on to another example; no run at all once `stopped` is
    set or the limit of `costs` is reached.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: RunStore,
        ledger: UnitLedger,
        costs: CostLedger,
        emitter: Emitter,
        closed: threading.Event,
        stopped: threading.Event,
    ) -> None:
        self._evaluator = evaluator
        self._store = store
        self._ledger = ledger
        self._costs = costs
        self._emitter = emitter
        self._closed = closed
        self._stopped = stopped
        self._lock = threading.Condition()  # of the next two, and of choosing what a request goes on with
        self._under_way: dict[str, _Run] = {}
        self._kernel = Kernel()

    @property
    def kernel(self) -> Kernel:
        """The agent's present one."""
        return self._kernel

    def paid(self, program: dspy.Module, asked: Asked, source: Sequence[Row], caller: Caller) -> RunRecord:
        """A run that costs one unit for each example that gets a verdict now, or shows what was answered in it.

        `source` are all rows of the split, `caller` is who asks. Raises `BudgetExceededError`, `CostExceededError` or,
        where too many have cost nothing, `SelectionError` before anything is spent, and `LMsFailed`.
        """
        with ExitStack() as stack:
            with self._lock:
                # What the agent's last kernel had asked for may still be coming to its end; then it is gone on with.
                while self._ending() and not self._closed.is_set():
                    self._lock.wait(_LOOK_SECONDS)
                run = self._choose(read_prompts(program), asked, source, caller, stack)
                if isinstance(run, RunRecord):
                    return run
                self._under_way[run.run_id] = run
            return self._make(program, run)

    def free(self, program: dspy.Module, asked: Asked) -> RunRecord:
        """A baseline run, which costs no units; one that has been made before is given as it is.

        Raises `CostExceededError` before anything is spent, and `LMsFailed`.
        """
        prompts, purpose = read_prompts(program), _purpose(asked.split)
        for run_id in self._store.find_run(asked.split, prompts, asked.request, baseline=True):
            record = self._store.run(run_id)
            missing = record.planned_count - record.evaluated_count
            if record.state == "finished" and not missing:
                return record
            with self._costs.reserve(missing, purpose) as cost_slot:
                return self._make(program, self._reopened(run_id, asked, asked.rows, None, cost_slot, (Kernel(), 0)))
        planned = [row.example_id for row in asked.rows]
        with self._costs.reserve(len(planned), purpose) as cost_slot:
            run_id = self._store.begin_run(
                asked.split, asked.config, prompts, baseline=True, planned_ids=planned, request=asked.request
            )
            return self._make(program, _Run(run_id, asked, asked.rows, None, cost_slot, Kernel(), 0))

    def kernel_died(self) -> None:
        """Nobody waits for the runs under way any more: those on train begin no further example."""
        with self._lock:
            self._kernel.gone.set()
            self._kernel = Kernel()

    def given(self) -> tuple[str, ...]:
        """The finished runs whose answers the agent got in this turn."""
        with self._lock:
            return tuple(self._kernel.given)

    def turn_ended(self) -> None:
        """The agent has the results of all runs that were given to it."""
        with self._lock:
            self._kernel.given.clear()
            self._kernel.turns += 1

    def under_way(self) -> list[tuple[str, Asked]]:
        """The runs that have not ended, with what was asked for."""
        with self._lock:
            return [(run.run_id, run.asked) for run in self._under_way.values()]

    def wait_cut(self, seconds: float) -> None:
        """Wait until the runs that were cut have come to their end, but not longer than this."""
        with self._lock:
            self._lock.wait_for(lambda: not self._ending(), seconds)

    def _ending(self) -> bool:
        return any(run.may_be_cut and run.kernel.gone.is_set() for run in self._under_way.values())

    def _choose(
        self, prompts: Mapping[str, str], asked: Asked, source: Sequence[Row], caller: Caller, stack: ExitStack
    ) -> _Run | RunRecord:
        """The finished run, the cut one or the new one that answers a request. Called under the lock."""
        kernel, turn = caller
        purpose = _purpose(asked.split)
        busy = {*self._under_way, *kernel.given}
        for run_id in self._store.find_run(asked.split, prompts, asked.request):
            if run_id in busy:
                continue
            record = self._store.run(run_id)
            if record.state == "finished" and (asked.split == "val" or not record.unanswered_count):
                kernel.given.add(run_id)
                return replace(record, budget_left=self._ledger.left)
            missing = record.planned_count - record.evaluated_count
            owed = self._store.shown_ids(run_id) if asked.split == "train" else frozenset[str]()
            slot = stack.enter_context(self._ledger.reserve(missing - len(owed), purpose))
            cost_slot = stack.enter_context(self._costs.reserve(missing, purpose))
            return self._reopened(run_id, asked, source, slot, cost_slot, caller, owed)
        count, size = self._store.free_runs()
        if count >= _MOST_FREE_RUNS or size >= _MOST_FREE_BYTES:
            raise SelectionError(
                f"{count:,} evaluations came to no verdict, because an LM failed or nobody waited for them, and have "
                "cost nothing; no others are begun. Make the same call as for one of them once more, or submit"
            )
        if asked.draw is not None:
            # Counted in the store, where also those are that an earlier process began.
            asked = asked.draw(self._store.count_runs(asked.split, prompts, asked.request))
        planned = [row.example_id for row in asked.rows]
        spare = self._store.spare_rows(asked.split, prompts, but=busy)
        spare = {example_id: spare[example_id] for example_id in planned if example_id in spare}
        shown = self._store.spare_rows(asked.split, prompts, but=busy, judged=False) if asked.split == "train" else {}
        owed = {one: shown[one] for one in planned if one in shown and one not in spare}
        slot = stack.enter_context(self._ledger.reserve(len(planned) - len(spare) - len(owed), purpose))
        cost_slot = stack.enter_context(self._costs.reserve(len(planned) - len(spare), purpose))
        run_id = self._store.begin_run(
            asked.split,
            asked.config,
            prompts,
            planned_ids=planned,
            request=asked.request,
            turn=asked.turn,
            spare={**spare, **owed},
        )
        rows = tuple(row for row in asked.rows if row.example_id not in spare)
        return self._counted(_Run(run_id, asked, rows, slot, cost_slot, kernel, turn, frozenset(owed)))

    def _reopened(
        self,
        run_id: str,
        asked: Asked,
        source: Sequence[Row],
        slot: Slot | None,
        cost_slot: Slot,
        caller: Caller,
        owed: frozenset[str] = frozenset(),
    ) -> _Run:
        by_id = {row.example_id: row for row in source}
        rows = tuple(by_id[example_id] for example_id in self._store.reopen_run(run_id))
        return self._counted(_Run(run_id, asked, rows, slot, cost_slot, *caller, owed))

    def _counted(self, run: _Run) -> _Run:
        """The run with what it has already."""
        before = self._store.run(run.run_id)
        run.done, run.passed = before.evaluated_count, before.passed_count
        run.score_sum = (before.score or 0.0) * before.evaluated_count
        return run

    def _make(self, program: dspy.Module, run: _Run) -> RunRecord:
        asked, slot, total = run.asked, run.slot, run.done + len(run.rows)
        self._emitter.emit(EvaluationStarted(run.run_id, asked.split, total, slot is None))
        completed = failed = False
        try:
            halt = _Halt((self._closed, run.kernel.gone) if run.may_be_cut else (self._stopped,), self._costs)
            results = self._evaluator.score(
                program,
                run.rows,
                on_results=lambda some: self._keep(run, total, some),
                cancelled=halt,
                space=_SPACES[asked.split],
                told_as=f"{run.run_id} {asked.split}",
                nameless=asked.split == "val",
            )
            completed = len(results) == len(run.rows)
        except MetricFailed:
            failed = True  # its rows say nothing of the program: a metric that was mended starts afresh
            raise
        except LMsFailed as failure:
            failure.run_id = run.run_id
            raise
        finally:
            # What this run reserved and did not use flows back when it ends.
            left = self._ledger.left + (0 if slot is None else slot.open)
            record = self._store.finish_run(
                run.run_id, budget_left=left, cancelled=not completed and not failed, failed=failed
            )
            score = record.score if completed else None
            self._emitter.emit(
                EvaluationFinished(run.run_id, asked.split, run.done, total, run.passed, score, left)
            )
            with self._lock:
                # One on val that outlived the turn in which it was asked for may have no reader: the cell was stopped.
                read = run.turn == run.kernel.turns if asked.split == "val" else not record.unanswered_count
                if completed and read:
                    run.kernel.given.add(run.run_id)
                self._under_way.pop(run.run_id, None)
                self._lock.notify_all()
        return record

    def _keep(self, run: _Run, total: int, results: Sequence[ExampleResult]) -> None:
        """Results and their price: durable together, before anybody sees them. One call at a time for each run."""
        self._costs.flush()  # no later than its result: dollars that a result has cost are never lost
        # What was paid and comes to nothing once more shows nothing new, so that it need not be paid again.
        kept = [result for result in results if result.has_verdict or result.example_id not in run.owed]
        price = sum(run.price(result) for result in kept)
        if run.slot is None or not price:
            self._store.append(run.run_id, *kept)
        else:
            run.slot.settle(price, lambda charge: self._store.append(run.run_id, *kept, charge=charge))
        run.cost_slot.settle(len(results))
        run.add(results)
        if run.done:
            mean = run.score_sum / run.done
            self._emitter.emit(ExamplesScored(run.run_id, run.asked.split, run.done, total, mean))


def _purpose(split: Split) -> str:
    return "evaluate" if split == "train" else "validate"
