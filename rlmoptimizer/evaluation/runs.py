"""Runs: evaluations that are paid, stored and reported example by example.

A run that was cut is never lost and never paid twice. The same request (same split, prompts and selection) continues
it under its id, for the examples that have no verdict yet. A new run with the same prompts takes over the results it
needs from cut runs, for nothing. So an example that was paid although its LM failed later is run again for nothing. A
finished run counts as cut when nobody got its answer, because the process, the kernel or the turn that asked was gone.

A run on train is cut when nobody waits for it any more. A run on val goes on to its end unless everything is stopped:
the place where it was cut would tell of single examples.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import dspy

from kernel_bridge.text import printable_line
from rlmoptimizer.errors import MetricFailed, SelectionError
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.row_runner import Detail
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.events import Emitter, EvaluationFinished, EvaluationStarted, ExamplesScored, LMUsageCounted, Split
from rlmoptimizer.records import LM_FAILURES, ExampleResult, Rollout, RunRecord, usage_dict
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import Slot, UnitLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Row

__all__ = ["Accounts", "Caller", "Runs", "is_cut_val"]

logger = logging.getLogger(__name__)

# Parts of DSPy's cache. The cost of a run on train must not show what a run on val asked, or anybody before, about the
# examples of val: prompts can make a step ask anything.
_SPACES: dict[Split, str] = {"train": "rlmoptimizer train", "val": "rlmoptimizer val", "test": "rlmoptimizer test"}
_ERROR_CHARS = 500  # of an example's error in a warning
# Limits for runs that have cost nothing, so that they cannot fill the disk.
_MOST_FREE_RUNS = 1000
_MOST_FREE_BYTES = 64_000_000  # of what they were asked, which is mostly prompts
_LOOK_SECONDS = 0.2  # how often a wait for a run's end checks for a stop


@dataclass(frozen=True, slots=True)
class Accounts:
    """Where all that happens in one compile is written down."""

    store: RunStore
    ledger: UnitLedger
    costs: CostLedger
    emitter: Emitter

    def emit_usage(self) -> None:
        self.emitter.emit(LMUsageCounted(usage_dict(self.costs.usage())))


def is_cut_val(record: RunRecord) -> bool:
    """A run on val that is not whole, so that nothing of it may be shown."""
    return record.split == "val" and record.state == "cancelled"


@dataclass(slots=True)
class _Kernel:
    """What ends with a kernel of the agent."""

    gone: threading.Event = field(default_factory=threading.Event)  # nobody waits for answers any more
    given: set[str] = field(default_factory=set[str])  # finished runs whose answers it got in this turn
    turns: int = 0  # that have ended


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the answer: a kernel of the agent in one of its turns; by default the host itself."""

    kernel: _Kernel = field(default_factory=_Kernel)
    turn: int = 0

    @property
    def is_gone(self) -> bool:
        return self.kernel.gone.is_set()


@dataclass(frozen=True, slots=True)
class _Price:
    """What one run is paid from."""

    units: Slot | None  # None: free of charge
    dollars: Slot
    # Rollouts that were paid before, for what they show, and have no verdict, because their LM failed.
    paid_before: frozenset[Rollout] = frozenset()


@dataclass(slots=True)
class _Run:
    """One run under way: which it is, what of it is still to be done, and its totals, added by one thread at a time."""

    run_id: str
    request: Request
    rows: tuple[Row, ...]  # those that have no verdict yet
    price: _Price
    caller: Caller
    baseline: bool = False
    done: int = 0
    passed: int = 0
    score_sum: float = 0.0

    @property
    def may_be_cut(self) -> bool:
        """Whether it ends early when nobody waits for it any more."""
        return self.request.split == "train" or (self.baseline and self.request.split == "val")

    @property
    def detail(self) -> Detail:
        """How much of its examples is kept: all of the baseline on train, next to nothing beside the results of val."""
        if self.request.split != "train":
            return "totals"
        return "requests" if self.price.units is None else "rows"

    def start_from(self, record: RunRecord) -> None:
        """Count what it has already."""
        self.done, self.passed = record.judged_count, record.passed_count
        self.score_sum = (record.score or 0.0) * record.judged_count

    def units(self, result: ExampleResult) -> int:
        """What a result costs. One without a verdict costs a unit when the agent is shown what was answered in it."""
        shown = self.request.split == "train" and result.shows_answers
        is_paid = (result.example_id, result.rollout) in self.price.paid_before
        return int(not is_paid and (result.has_verdict or shown))

    def add(self, results: Sequence[ExampleResult]) -> None:
        judged = [result for result in results if result.has_verdict]
        self.done += len(judged)
        self.passed += sum(result.passed for result in judged)
        self.score_sum += sum(result.score for result in judged)


class _Halt:
    """Set once no further example may begin, for ever: a run has no gaps."""

    def __init__(self, events: tuple[Halt, ...], costs: CostLedger) -> None:
        self._events = events
        self._costs = costs

    def is_set(self) -> bool:
        return self._costs.reached or any(event.is_set() for event in self._events)


class Runs:
    """Makes the runs of one compile, of `program` with the prompts of each request. Thread-safe.

    Once `closed` is set no run on train and no baseline begins another example; no run at all once `stopped` is set or
    the cost limit is reached.
    """

    def __init__(
        self,
        program: dspy.Module,
        evaluator: Evaluator,
        accounts: Accounts,
        closed: threading.Event,
        stopped: threading.Event,
    ) -> None:
        self._program = program
        self._evaluator = evaluator
        self._accounts = accounts
        self._store = accounts.store
        self._closed = closed
        self._stopped = stopped
        self._lock = threading.Condition()  # of the next three, and of choosing what a request goes on with
        self._under_way: dict[str, _Run] = {}
        self._kernel = _Kernel()
        self._warned = False

    def caller(self) -> Caller:
        """The agent as it asks now."""
        with self._lock:
            return Caller(self._kernel, self._kernel.turns)

    def paid(self, request: Request, caller: Caller) -> RunRecord:
        """A run that costs one unit for each example that gets a verdict, or shows answers without getting one.

        Raises `BudgetExceededError`, `CostExceededError` or, where too many have
        cost nothing, `SelectionError` before anything is spent, and `LMsFailed`.
        """
        with ExitStack() as stack:
            with self._lock:
                # Runs of the agent's last kernel may still be ending; then this request continues one of them.
                while self._ending() and not self._closed.is_set():
                    self._lock.wait(_LOOK_SECONDS)
                run = self._resumed(request, caller, stack) or self._begun(request, caller, stack)
                if isinstance(run, RunRecord):
                    return run
                self._under_way[run.run_id] = run
            return self._carried_out(run)

    def free_examples(self, request: Request, *, baseline: bool) -> int:
        """How many examples `free` would evaluate."""
        record = self._free_record(request, baseline)
        return len(request.rows) if record is None else record.missing_count

    def free(self, request: Request, *, baseline: bool) -> RunRecord:
        """A run of the host, which costs no units; one that is complete already is returned as it is.

        `baseline`: of the unchanged program. Raises `CostExceededError` before anything is spent, and `LMsFailed`.
        """
        if (record := self._free_record(request, baseline)) is not None:
            missing = record.missing_count
            if record.state == "finished" and not missing:
                return record
            with self._accounts.costs.reserve(missing, request.purpose) as cost_slot:
                run = self._reopened(record, request, Caller(), _Price(None, cost_slot))
                return self._carried_out(run)
        with self._accounts.costs.reserve(len(request.rows), request.purpose) as cost_slot:
            run_id = self._store.begin_run(
                request.split,
                request.config,
                request.prompts,
                baseline=baseline,
                planned_ids=[row.example_id for row in request.rows],
                request=request.asked,
            )
            run = _Run(run_id, request, request.rows, _Price(None, cost_slot), Caller(), baseline)
            return self._carried_out(run)

    def _free_record(self, request: Request, baseline: bool) -> RunRecord | None:
        found = self._store.find_runs(request.split, request.prompts, request.asked, baseline=baseline)
        return found[0] if found else None

    def kernel_died(self) -> tuple[str, ...]:
        """Nobody waits for the runs under way any more: those on train begin no further example. Returns their ids."""
        with self._lock:
            self._kernel.gone.set()
            self._kernel = _Kernel()
            return tuple(self._under_way)

    def given(self) -> tuple[str, ...]:
        """The finished runs whose answers the agent got in this turn."""
        with self._lock:
            return tuple(self._kernel.given)

    def turn_ended(self) -> None:
        """The agent has the results of all runs that were given to it."""
        with self._lock:
            self._kernel.given.clear()
            self._kernel.turns += 1

    def wait_cut(self, seconds: float) -> None:
        """Wait until the runs that were cut have ended, at most so long."""
        with self._lock:
            self._lock.wait_for(lambda: not self._ending(), seconds)

    def _ending(self) -> bool:
        return any(run.may_be_cut and run.caller.is_gone for run in self._under_way.values())

    # which run answers a request; called under the lock

    def _resumed(self, request: Request, caller: Caller, stack: ExitStack) -> _Run | RunRecord | None:
        """The answer of an earlier run, or that run to be continued; None: there is none."""
        for record in self._store.find_runs(request.split, request.prompts, request.asked):
            run_id = record.run_id
            if run_id in self._under_way or run_id in caller.kernel.given:
                continue
            if record.state == "finished" and (request.split == "val" or not record.unanswered_count):
                caller.kernel.given.add(run_id)
                return replace(record, budget_left=self._accounts.ledger.left)
            paid_before = self._store.shown_rollouts(run_id) if request.split == "train" else frozenset[Rollout]()
            price = self._price(request, stack, record.missing_count, paid_before)
            return self._reopened(record, request, caller, price)
        return None

    def _begun(self, request: Request, caller: Caller, stack: ExitStack) -> _Run:
        """A new run, which takes over results of cut runs."""
        count, size = self._store.free_runs()
        if count >= _MOST_FREE_RUNS or size >= _MOST_FREE_BYTES:
            raise SelectionError(
                f"{count:,} evaluations came to no verdict, because an LM failed or nobody waited for them, and have "
                "cost nothing; no others are begun. Make the same call as for one of them once more, or submit"
            )
        if request.draw is not None:
            request = request.draw(self._store.count_runs(request.split, request.prompts, request.asked))
        planned = [row.example_id for row in request.rows]
        rollouts = [(example_id, 0) for example_id in planned]
        busy = {*self._under_way, *caller.kernel.given}
        judged, shown = self._store.spare_rows(request.split, request.prompts, but=busy)
        spare = {one: judged[one] for one in rollouts if one in judged}
        if request.split == "train":
            spare |= {one: shown[one] for one in rollouts if one in shown and one not in spare}
        rows = tuple(row for row in request.rows if (row.example_id, row.rollout) not in judged)
        price = self._price(request, stack, len(rows), frozenset(spare.keys() - judged.keys()))
        run_id = self._store.begin_run(
            request.split,
            request.config,
            request.prompts,
            planned_ids=planned,
            request=request.asked,
            turn=request.turn,
            spare=spare,
        )
        run = _Run(run_id, request, rows, price, caller)
        if spare:
            run.start_from(self._store.run(run_id))
        return run

    def _price(self, request: Request, stack: ExitStack, missing: int, paid_before: frozenset[Rollout]) -> _Price:
        """Set aside what `missing` examples may cost, until the end of `stack`."""
        units = stack.enter_context(self._accounts.ledger.reserve(missing - len(paid_before), request.purpose))
        dollars = stack.enter_context(self._accounts.costs.reserve(missing, request.purpose))
        return _Price(units, dollars, paid_before)

    def _reopened(self, record: RunRecord, request: Request, caller: Caller, price: _Price) -> _Run:
        by_id = {row.example_id: row for row in request.source}
        open_rollouts = self._store.reopen_run(record.run_id)
        rows = tuple(replace(by_id[example_id], rollout=number) for example_id, number in open_rollouts)
        run = _Run(record.run_id, request, rows, price, caller, record.baseline)
        run.start_from(record)
        return run

    # how it is carried out

    def _carried_out(self, run: _Run) -> RunRecord:
        split, total = run.request.split, run.done + len(run.rows)
        self._accounts.emitter.emit(EvaluationStarted(run.run_id, split, total, run.baseline))
        completed = failed = False
        try:
            ends = (self._closed, run.caller.kernel.gone) if run.may_be_cut else (self._stopped,)
            results = self._evaluator.score(
                self._program,
                run.rows,
                prompts=run.request.prompts,
                on_results=lambda some: self._keep(run, total, some),
                cancelled=_Halt(ends, self._accounts.costs),
                space=_SPACES[split],
                name=f"{run.run_id} {split}",
                detail=run.detail,
            )
            completed = len(results) == len(run.rows)
        except MetricFailed:
            failed = True  # its rows say nothing of the program: a metric that was mended starts afresh
            raise
        except LMsFailed as failure:
            failure.run_id = run.run_id
            if run.price.units is not None:
                self._warn_of_failed_lms(self._store.run(run.run_id))
            raise
        finally:
            record = self._ended(run, total, "failed" if failed else "finished" if completed else "cancelled")
        self._warn_of_failed_lms(record)
        return record

    def _ended(self, run: _Run, total: int, state: str) -> RunRecord:
        # What this run reserved and did not use is free again when it ends.
        units = run.price.units
        left = self._accounts.ledger.left + (0 if units is None else units.open)
        completed = state == "finished"
        record = self._store.finish_run(
            run.run_id, budget_left=left, cancelled=state == "cancelled", failed=state == "failed"
        )
        score = record.score if completed else None
        self._accounts.emitter.emit(
            EvaluationFinished(run.run_id, run.request.split, run.done, total, run.passed, score, left)
        )
        with self._lock:
            # The answer of a run on val that outlived its turn may have no reader: the cell was stopped.
            kernel, turn = run.caller.kernel, run.caller.turn
            read = turn == kernel.turns if run.request.split == "val" else not record.unanswered_count
            if completed and read:
                kernel.given.add(run.run_id)
            self._under_way.pop(run.run_id, None)
            self._lock.notify_all()
        return record

    def _keep(self, run: _Run, total: int, results: Sequence[ExampleResult]) -> None:
        """Store results together with what they cost, before anybody sees them. One call at a time for each run."""
        self._accounts.costs.flush()  # the dollars first, so that a stored result never lacks its cost
        # An example that was paid before and failed again stays as it was, so that it shows nothing unpaid.
        paid = run.price.paid_before
        kept = [result for result in results if result.has_verdict or (result.example_id, result.rollout) not in paid]
        units = sum(run.units(result) for result in kept)
        if run.price.units is None or not units:
            self._store.append(run.run_id, *kept)
        else:
            run.price.units.settle(units, lambda charge: self._store.append(run.run_id, *kept, charge=charge))
        run.price.dollars.settle(len(results))
        run.add(results)
        if run.done:
            mean = run.score_sum / run.done
            self._accounts.emitter.emit(ExamplesScored(run.run_id, run.request.split, run.done, total, mean))

    def _warn_of_failed_lms(self, record: RunRecord) -> None:
        with self._lock:
            if self._warned or not record.unanswered_count:
                return
            self._warned = True
        if record.split == "train":
            error = next((one.error for one in self._store.examples(record.run_id) if not one.has_verdict), None) or ""
        else:  # a message may quote what was asked, and those rows are nobody's to see
            error = ", ".join(sorted(self._store.error_kinds(record.run_id).keys() & LM_FAILURES))
        logger.warning(
            "The LM that runs the program failed on %d of the examples of %s (%s). They have no verdict and are not in "
            "its score. The agent is told, and goes on; this is said once",
            record.unanswered_count,
            record.run_id,
            printable_line(error, _ERROR_CHARS),
        )
