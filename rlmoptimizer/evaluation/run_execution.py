"""How a run is carried out: evaluated, paid, stored and reported rollout by rollout, and closed when it ends."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Final

import dspy

from kernel_bridge.text import printable_line
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluate_callbacks import EvaluateCallbacks
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.run_under_way import RunUnderWay
from rlmoptimizer.events import EvaluationFinished, EvaluationStarted, ExamplesScored, Split
from rlmoptimizer.records import LM_FAILURES, ExampleResult, RunRecord
from rlmoptimizer.spending.cost_ledger import CostLedger

__all__ = ["SPACES", "RunExecution"]

logger = logging.getLogger(__name__)

# Parts of DSPy's cache. The cost of a run on train must not show what a run on val asked, or anybody before, about the
# examples of val: prompts can make a step ask anything.
SPACES: Final[dict[Split, str]] = {
    "train": "rlmoptimizer train",
    "val": "rlmoptimizer val",
    "test": "rlmoptimizer test",
}
_ERROR_CHARS: Final = 500  # of an example's error in a warning


class _Halt:
    """Set once no further example may begin, for ever: a run has no gaps."""

    def __init__(self, events: Sequence[Halt], costs: CostLedger) -> None:
        self._events = events
        self._costs = costs

    def is_set(self) -> bool:
        return self._costs.reached or any(event.is_set() for event in self._events)


class RunExecution:
    """Carries out runs of `program`, each with the prompts of its request. Thread-safe."""

    def __init__(self, program: dspy.Module, evaluator: Evaluator, accounts: Accounts) -> None:
        self._program = program
        self._evaluator = evaluator
        self._accounts = accounts
        self._store = accounts.store
        self._callbacks = EvaluateCallbacks(
            program, evaluator.metric, evaluator.num_threads, store=accounts.store, context=evaluator.context
        )
        self._lock = threading.Lock()  # of the next one
        self._warned = False

    def carry_out(self, run: RunUnderWay, ends: Sequence[Halt]) -> str:
        """Evaluate what is left of a run, until one of `ends` is set or the cost limit is reached.

        Gives the state in which it is to be closed: "finished" or "cancelled". Raises `MetricFailed`, and `LMsFailed`
        with the id of the run. DSPy's callbacks see an evaluation.
        """
        return self._callbacks.around(run, lambda: self._evaluate(run, ends))

    def _evaluate(self, run: RunUnderWay, ends: Sequence[Halt]) -> str:
        split = run.request.split
        self._accounts.emitter.emit(EvaluationStarted(run.run_id, split, run.total, run.baseline))
        try:
            results = self._evaluator.score(
                self._program,
                run.rows,
                prompts=run.request.prompts,
                on_results=lambda some: self._keep(run, some),
                cancelled=_Halt(ends, self._accounts.costs),
                space=SPACES[split],
                name=f"{run.run_id} {split}",
                detail=run.detail,
            )
        except LMsFailed as failure:
            failure.run_id = run.run_id
            if run.price.units is not None:
                self.warn_of_failed_lms(self._store.run(run.run_id))
            raise
        return "finished" if len(results) == len(run.rows) else "cancelled"

    def end(self, run: RunUnderWay, state: str) -> RunRecord:
        """Close a run in this state, and give its record."""
        # What this run reserved and did not use is free again when it ends.
        units = run.price.units
        left = self._accounts.ledger.left + (0 if units is None else units.open)
        record = self._store.finish_run(
            run.run_id, budget_left=left, cancelled=state == "cancelled", failed=state == "failed"
        )
        score = record.score if state == "finished" else None
        self._accounts.emitter.emit(
            EvaluationFinished(run.run_id, run.request.split, run.done, run.total, run.passed, score, left)
        )
        return record

    def warn_of_failed_lms(self, record: RunRecord) -> None:
        """Tell the person, once, when an LM failed in a run."""
        with self._lock:
            if self._warned or not record.unanswered_count:
                return
            self._warned = True
        if record.split == "train":
            error = next((one.error for one in self._store.examples(record.run_id) if not one.has_verdict), None) or ""
        else:  # a message may quote what was asked, and those rows are nobody's to see
            error = ", ".join(sorted(self._store.error_kinds(record.run_id).keys() & LM_FAILURES))
        logger.warning(
            "The LM that runs the program failed on %d of the evaluations of %s (%s). They have no verdict and are not "
            "in its score. The agent is told, and goes on; this is said once",
            record.unanswered_count,
            record.run_id,
            printable_line(error, _ERROR_CHARS),
        )

    def _keep(self, run: RunUnderWay, results: Sequence[ExampleResult]) -> None:
        """Store results together with what they cost, before anybody sees them. One call at a time for each run."""
        self._accounts.costs.flush()  # the dollars first, so that a stored result never lacks its cost
        run.price.settle(results, lambda kept, charge: self._store.append(run.run_id, *kept, charge=charge))
        run.add(results)
        if run.done:
            mean = run.score_sum / run.done
            self._accounts.emitter.emit(ExamplesScored(run.run_id, run.request.split, run.done, run.total, mean))
