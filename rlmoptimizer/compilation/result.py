"""The result: what a compile ends with, as a record in the store and as the program that is given back.

All of a result but the outcome itself is read from the store, so that a finished optimization gives the same again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dspy

from rlmoptimizer.agent import tool_answers as answers
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.setup_record import check_student, scored_split
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.records import best_run
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.program import apply_prompts, clone, fingerprint

__all__ = ["Outcome", "finished_program", "stored_best_program", "trajectory_of"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an optimization ended."""

    prompts: dict[str, str]  # of the program that is given back, by step
    problem: str | None  # why they are not a submission of the agent's; None: they are
    final_reasoning: str
    usage: dict[str, Any]  # of all LM calls, by role, as in the result
    cost_usd: float | None  # None: a price is not known

    @classmethod
    def of(cls, store: StoreReader) -> Outcome | None:
        """The one that is recorded; None: the optimization has not ended."""
        recorded = store.outcome()
        return None if recorded is None else cls(**recorded)

    def record(self, store: RunStore) -> None:
        store.record_outcome(asdict(self))


def trajectory_of(store: StoreReader) -> list[dict[str, Any]]:
    """`reasoning`, `code`, `output` of every turn."""
    return [
        {"reasoning": turn.reasoning, "code": turn.code, "output": turn.output} for turn in store.iterations()
    ]


def finished_program(setup: Setup, store: StoreReader, outcome: Outcome) -> dspy.Module:
    """The program that a compile gives back."""
    program = _with_prompts(setup.student, outcome.prompts)
    split, rows = setup.data.scored
    runs = store.runs()
    best = best_run(runs, split, len(rows))
    baseline = next(run for run in runs if run.baseline and run.split == "train" and run.state == "finished")
    attributes = {
        "optimized_dspy_program": dict(outcome.prompts),
        "latest_run_id": runs[-1].run_id,
        "best_run_id": None if best is None else best.run_id,
        "best_score": None if best is None else answers.percent(best.score),
        "baseline_run_id": baseline.run_id,
        "trial_logs": [answers.run_log(record) for record in runs],
        "agent_trajectory": trajectory_of(store),
        "agent_final_reasoning": outcome.final_reasoning,
        "usage": outcome.usage,
        "cost_usd": outcome.cost_usd,
    }
    for name, value in attributes.items():
        setattr(program, name, value)
    program._compiled = True  # pyright: ignore[reportPrivateUsage] # how DSPy's optimizers mark what they return
    return program


def stored_best_program(student: dspy.Module, directory: Path) -> dspy.Module:
    """A clone of `student` with the prompts of the best finished run in the newest store of a directory.

    Raises `InvalidSetup` when there is no store, no such run yet, or the store is about another student.
    """
    with StoreReader.open_in(directory) as store:
        setup = store.setup()
        best = None if setup is None else best_run(store.runs(), *scored_split(setup))
        if setup is None or best is None:
            raise InvalidSetup(f"the optimization in {store.path} has no finished run yet; ask again when it has one")
        check_student(setup, student)
    program = _with_prompts(student, best.prompts)
    for name, value in {"best_run_id": best.run_id, "best_score": answers.percent(best.score)}.items():
        setattr(program, name, value)
    return program


def _with_prompts(student: dspy.Module, prompts: dict[str, str]) -> dspy.Module:
    program = clone(student)
    apply_prompts(program, prompts, fingerprint(student))  # raises when more than the instructions would differ
    return program
