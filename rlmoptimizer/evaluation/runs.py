"""Runs: evaluations that are paid, stored and reported rollout by rollout. An example has one unless it is repeated.

A run that was cut is never lost and never paid twice. The same request (same split, prompts, selection and repeats)
continues it under its id, for the rollouts that have no verdict yet. A new run with the same prompts takes over the
results it needs from cut runs, for nothing. So a rollout that was paid although its LM failed later is run again for
nothing. A finished run counts as cut when nobody got its answer, because the process, the kernel or the turn that asked
was gone. A request that reuses verdicts takes them from every run that has ended.

A run on train is cut when nobody waits for it any more. A run on val goes on to its end unless everything is stopped:
the place where it was cut would tell of single examples.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace

import dspy

from rlmoptimizer.errors import MetricFailed, SelectionError
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.run_execution import RunExecution
from rlmoptimizer.evaluation.run_price import Funds, RunPrice, free_price, unit_price
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.run_under_way import AgentKernel, Caller, RunUnderWay
from rlmoptimizer.evaluation.side_by_side import side_by_side
from rlmoptimizer.evaluation.takeover import Takeover, find_takeover
from rlmoptimizer.records import Rollout, RunRecord
from rlmoptimizer.spending.ledger import Slot

__all__ = ["Runs", "is_cut_val"]

# Limits for runs that have cost nothing, so that they cannot fill the disk.
_MOST_FREE_RUNS = 1000
_MOST_FREE_BYTES = 64_000_000  # of what they were asked, which is mostly prompts
_MOST_REUSED = 1_000_000  # verdicts, in all runs together; each takes about 64 bytes
_Price = Callable[[Request, int, "frozenset[Rollout]"], AbstractContextManager[RunPrice]]
_LOOK_SECONDS = 0.2  # how often a wait for a run's end checks for a stop


def is_cut_val(record: RunRecord) -> bool:
    """A run on val that is not whole, so that nothing of it may be shown."""
    return record.split == "val" and record.state == "cancelled"


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
        self._execution = RunExecution(program, evaluator, accounts)
        self._accounts = accounts
        self._store = accounts.store
        self._closed = closed
        self._stopped = stopped
        self._lock = threading.Condition()  # of the next two, and of choosing what a request goes on with
        self._under_way: dict[str, RunUnderWay] = {}
        self._kernel = AgentKernel()

    def caller(self) -> Caller:
        """The agent as it asks now."""
        with self._lock:
            return Caller(self._kernel, self._kernel.turns)

    def paid(self, request: Request, caller: Caller) -> RunRecord:
        """A run that costs one unit for each example that gets a verdict, or shows answers without getting one.

        Raises `BudgetExceededError`, `CostExceededError` or, where too many have
        cost nothing, `SelectionError` before anything is spent, and `LMsFailed`.
        """
        (outcome,) = self.paid_together((request,), caller)
        if isinstance(outcome, LMsFailed):
            raise outcome
        return outcome

    def paid_together(
        self, requests: Sequence[Request], caller: Caller, funds: Funds | None = None
    ) -> list[RunRecord | LMsFailed]:
        """Runs as of `paid`, begun in their order and carried out side by side; no two of them for the same request.

        They are paid from `funds`; None: from the ledgers. A run without any verdict is an `LMsFailed` in the list.
        Raises as `paid`.
        """
        with ExitStack() as stack:
            with self._lock:
                self._wait_ending()
                price = functools.partial(unit_price, funds or Funds(self._accounts.ledger, self._accounts.costs))
                runs = self._all_begun(requests, caller, stack, price)
            return side_by_side([functools.partial(self._outcome, run) for run in runs], "rlmoptimizer-run")

    def needs(self, request: Request, caller: Caller) -> tuple[int, int]:
        """The units and the evaluations that `paid` would set aside for a request now."""
        with self._lock:
            self._wait_ending()
            if (record := self._open_run(request, caller)) is not None:
                if self._is_whole(request, record):
                    return 0, 0
                return record.missing_count - len(self._paid_before(request, record)), record.missing_count
            takeover = self._takeover(request, caller)
            rest = len(takeover.rest(request.rollouts))
            return rest - len(takeover.shown), rest

    def free_examples(self, request: Request, *, baseline: bool) -> int:
        """How many evaluations `free` would make."""
        record = self._free_record(request, baseline)
        return len(request.rows) * request.repeats if record is None else record.missing_count

    def free(
        self,
        request: Request,
        *,
        baseline: bool,
        dollars: Slot | None = None,
        begun: Callable[[], None] = lambda: None,
    ) -> RunRecord:
        """A run of the host, which costs no units; one that is complete already is returned as it is.

        `baseline`: of the unchanged program. `dollars`: what was set aside for it; None: it is set aside here. `begun`
        is called when the run has its id. Raises `CostExceededError` before anything is spent, and `LMsFailed`.
        """
        costs = self._accounts.costs if dollars is None else dollars
        if (record := self._free_record(request, baseline)) is not None:
            if record.state == "finished" and not record.missing_count:
                return record
            with free_price(costs, request, record.missing_count) as price:
                run = self._reopened(record, request, Caller(), price)
                begun()
                return self._carried_out(run)
        rows = request.rollouts
        with free_price(costs, request, len(rows)) as price:
            run_id = self._store.begin_run(
                request.split,
                request.config,
                request.prompts,
                baseline=baseline,
                planned_ids=[row.example_id for row in request.rows],
                repeats=request.repeats,
                request=request.asked,
            )
            begun()
            return self._carried_out(RunUnderWay(run_id, request, rows, price, Caller(), baseline))

    def _free_record(self, request: Request, baseline: bool) -> RunRecord | None:
        found = self._store.find_runs(request.split, request.prompts, request.asked, baseline=baseline)
        return found[0] if found else None

    def kernel_died(self) -> tuple[str, ...]:
        """Nobody waits for the runs under way any more: those on train begin no further example. Returns their ids."""
        with self._lock:
            self._kernel.gone.set()
            self._kernel = AgentKernel()
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

    def _wait_ending(self) -> None:
        # Runs of the agent's last kernel may still be ending; then a request continues one of them.
        while self._ending() and not self._closed.is_set():
            self._lock.wait(_LOOK_SECONDS)

    def _all_begun(
        self, requests: Sequence[Request], caller: Caller, stack: ExitStack, price: _Price
    ) -> list[RunUnderWay | RunRecord]:
        """A run for each request, new or resumed, or the answer of an earlier one; none when one cannot begin."""
        begun: list[RunUnderWay | RunRecord] = []
        try:
            for request in requests:
                run = self._resumed(request, caller, stack, price) or self._begun(request, caller, stack, price)
                begun.append(run)
                if isinstance(run, RunUnderWay):
                    self._under_way[run.run_id] = run
        except BaseException:
            for run in begun:
                if isinstance(run, RunUnderWay):
                    self._ended(run, "cancelled")
            raise
        return begun

    def _open_run(self, request: Request, caller: Caller) -> RunRecord | None:
        """The earlier run that a request goes on with; None: there is none."""
        for record in self._store.find_runs(request.split, request.prompts, request.asked):
            if record.run_id not in self._under_way and record.run_id not in caller.kernel.given:
                return record
        return None

    def _is_whole(self, request: Request, record: RunRecord) -> bool:
        """Whether nothing of an earlier run is left to be done."""
        return record.state == "finished" and (request.split == "val" or not record.unanswered_count)

    def _paid_before(self, request: Request, record: RunRecord) -> frozenset[Rollout]:
        return self._store.shown_rollouts(record.run_id) if request.split == "train" else frozenset[Rollout]()

    def _takeover(self, request: Request, caller: Caller) -> Takeover:
        return find_takeover(self._store, request, request.rollouts, {*self._under_way, *caller.kernel.given})

    def _resumed(
        self, request: Request, caller: Caller, stack: ExitStack, price: _Price
    ) -> RunUnderWay | RunRecord | None:
        """The answer of an earlier run, or that run to be continued; None: there is none."""
        record = self._open_run(request, caller)
        if record is None:
            return None
        if self._is_whole(request, record):
            caller.kernel.given.add(record.run_id)
            return replace(record, budget_left=self._accounts.ledger.left)
        paid_before = self._paid_before(request, record)
        paid = stack.enter_context(price(request, record.missing_count, paid_before))
        return self._reopened(record, request, caller, paid)

    def _begun(self, request: Request, caller: Caller, stack: ExitStack, price: _Price) -> RunUnderWay:
        """A new run, which takes over results of earlier ones."""
        self._check_free_runs(request)
        if request.draw is not None:
            request = request.draw(self._store.count_runs(request.split, request.prompts, request.asked))
        takeover = self._takeover(request, caller)
        rows = takeover.rest(request.rollouts)
        paid = stack.enter_context(price(request, len(rows), frozenset(takeover.shown)))
        run_id = self._store.begin_run(
            request.split,
            request.config,
            request.prompts,
            planned_ids=[row.example_id for row in request.rows],
            repeats=request.repeats,
            request=request.asked,
            turn=request.turn,
            spare=takeover.all,
        )
        run = RunUnderWay(run_id, request, rows, paid, caller)
        if takeover.judged:
            run.start_from(self._store.scores(run_id))
        return run

    def _check_free_runs(self, request: Request) -> None:
        """Raise `SelectionError` when runs that cost nothing have filled the place that they may fill."""
        if request.later_round:
            return
        count, size = self._store.free_runs()
        if count >= _MOST_FREE_RUNS or size >= _MOST_FREE_BYTES:
            raise SelectionError(
                f"{count:,} evaluations came to no verdict, because an LM failed or nobody waited for them, and have "
                "cost nothing; no others are begun. Make the same call as for one of them once more, or submit"
            )
        if request.reuse:
            count, size, reused = self._store.reusing_runs()
            if count >= _MOST_FREE_RUNS or size >= _MOST_FREE_BYTES or reused >= _MOST_REUSED:
                raise SelectionError(
                    f"{reused:,} verdicts were reused, {count:,} evaluations had nothing else; no more are. Read "
                    "earlier runs with run_data, or pass reuse=False"
                )

    def _reopened(self, record: RunRecord, request: Request, caller: Caller, price: RunPrice) -> RunUnderWay:
        by_id = {row.example_id: row for row in request.source}
        open_rollouts = self._store.reopen_run(record.run_id)
        rows = tuple(replace(by_id[example_id], rollout=number) for example_id, number in open_rollouts)
        run = RunUnderWay(record.run_id, request, rows, price, caller, record.baseline)
        run.start_from(self._store.scores(record.run_id))
        return run

    # how it is carried out

    def _outcome(self, run: RunUnderWay | RunRecord) -> RunRecord | LMsFailed:
        if isinstance(run, RunRecord):
            return run
        try:
            return self._carried_out(run)
        except LMsFailed as failed:
            return failed

    def _carried_out(self, run: RunUnderWay) -> RunRecord:
        state = "cancelled"
        try:
            ends = (self._closed, run.caller.kernel.gone) if run.may_be_cut else (self._stopped,)
            state = self._execution.carry_out(run, ends)
        except MetricFailed:
            state = "failed"  # its rows say nothing of the program: a metric that was mended starts afresh
            raise
        finally:
            record = self._ended(run, state)
        self._execution.warn_of_failed_lms(record)
        return record

    def _ended(self, run: RunUnderWay, state: str) -> RunRecord:
        record = self._execution.end(run, state)
        with self._lock:
            # The answer of a run on val that outlived its turn may have no reader: the cell was stopped.
            kernel, turn = run.caller.kernel, run.caller.turn
            read = turn == kernel.turns if run.request.split == "val" else not record.unanswered_count
            if state == "finished" and read:
                kernel.given.add(run.run_id)
            self._under_way.pop(run.run_id, None)
            self._lock.notify_all()
        return record
