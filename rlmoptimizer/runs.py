"""Runs: evaluate a program on rows and keep all of it, paid and told as it comes. Knows no agent."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from .budget import Ledger, Slot
from .costs import CostLedger, CostSlot
from .dataset import Row
from .evaluation import Evaluator, ExampleResult
from .events import Emitter, EvaluationFinished, EvaluationStarted, ExamplesScored, Split
from .program import read_prompts
from .run_store import RunRecord, RunStore

__all__ = ["Runs"]


@dataclass(slots=True)
class _Tally:
    """The running totals of one evaluation. Used by one thread."""

    done: int = 0
    passed: int = 0
    score_sum: float = 0.0

    def add(self, results: Sequence[ExampleResult]) -> None:
        self.done += len(results)
        self.passed += sum(result.passed for result in results)
        self.score_sum += sum(result.score for result in results)


class _Halt:
    """Keeps a run from going on to another example. Once it said so it says so for ever: a run has no gaps."""

    def __init__(self, stopped: threading.Event, costs: CostLedger) -> None:
        self._stopped = stopped
        self._costs = costs
        self._too_dear = False

    def is_set(self) -> bool:
        self._too_dear = self._too_dear or self._costs.reached
        return self._too_dear or self._stopped.is_set()


class Runs:
    """Makes the runs of one compile. Thread-safe.

    Once `stopped` is set, or the limit of `costs` is reached, no run goes on to another example.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        store: RunStore,
        ledger: Ledger,
        costs: CostLedger,
        emitter: Emitter,
        stopped: threading.Event,
    ) -> None:
        self._evaluator = evaluator
        self._store = store
        self._ledger = ledger
        self._costs = costs
        self._emitter = emitter
        self._stopped = stopped

    def paid(
        self, program: dspy.Module, rows: Sequence[Row], split: Split, config: dict[str, Any]
    ) -> tuple[RunRecord, list[ExampleResult]]:
        """A run that costs one unit for each example.

        Raises `BudgetExceededError` or `CostExceededError` before anything is spent.
        """
        purpose = _purpose(split)
        with self._ledger.reserve(len(rows), purpose) as slot, self._costs.examples(len(rows), purpose) as cost_slot:
            return self._make(program, rows, split, config, slot, cost_slot)

    def free(self, program: dspy.Module, rows: Sequence[Row], split: Split, config: dict[str, Any]) -> RunRecord:
        """A baseline run: costs no units. Raises `CostExceededError` before anything is spent."""
        with self._costs.examples(len(rows), _purpose(split)) as cost_slot:
            return self._make(program, rows, split, config, None, cost_slot)[0]

    def _make(
        self,
        program: dspy.Module,
        rows: Sequence[Row],
        split: Split,
        config: dict[str, Any],
        slot: Slot | None,
        cost_slot: CostSlot,
    ) -> tuple[RunRecord, list[ExampleResult]]:
        baseline = slot is None
        planned = [row.example_id for row in rows]
        run_id = self._store.begin_run(split, config, read_prompts(program), baseline=baseline, planned_ids=planned)
        self._emitter.emit(EvaluationStarted(run_id, split, len(rows), baseline))
        tally = _Tally()

        def on_results(results: Sequence[ExampleResult]) -> None:
            # What it cost is durable first, then the results, paid after that, and seen by the agent last: nothing
            # that is paid for is ever lost.
            self._costs.flush()
            self._store.append(run_id, *results)
            if slot is not None:
                slot.settle(len(results))
            cost_slot.finish(len(results))
            tally.add(results)
            self._emitter.emit(ExamplesScored(run_id, split, tally.done, len(rows), tally.score_sum / tally.done))

        completed = False
        try:
            halt = _Halt(self._stopped, self._costs)
            results = self._evaluator.score(program, rows, on_results=on_results, cancelled=halt)
            completed = len(results) == len(rows)
        finally:
            # What this run reserved and did not use flows back when it ends.
            left = self._ledger.left + (0 if slot is None else slot.open)
            record = self._store.finish_run(run_id, budget_left=left, cancelled=not completed)
            score = record.score if completed else None
            self._emitter.emit(EvaluationFinished(run_id, split, tally.done, len(rows), tally.passed, score, left))
        return record, results


def _purpose(split: Split) -> str:
    return "evaluate" if split == "train" else "validate"
