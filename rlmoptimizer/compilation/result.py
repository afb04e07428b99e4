"""The program that a compile gives back, and what it tells of the optimization.

All of that is read from the store, so that a finished optimization gives the same again.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy

from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.setup_record import check_student, scored_split
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome import run_totals as answers
from rlmoptimizer.outcome.ending import AgentOutcome, Choice
from rlmoptimizer.outcome.measured import best_measured_run, whole_scores
from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.program import apply_prompts, clone, fingerprint

__all__ = ["attach_record", "finished_program", "program_with", "stored_best_program", "trajectory_of"]


def trajectory_of(store: StoreReader) -> list[dict[str, Any]]:
    """`reasoning`, `code`, `output` of every turn."""
    return [
        {"reasoning": turn.reasoning, "code": turn.code, "output": turn.output} for turn in store.iterations()
    ]


def finished_program(setup: Setup, store: StoreReader) -> dspy.Module:
    """The program that a compile gives back, of an optimization that has ended."""
    choice = Choice.of(store)
    assert choice is not None  # recorded before the end
    program = program_with(setup.student, choice.prompts)
    attach_record(program, setup, store)
    return program


def attach_record(program: dspy.Module, setup: Setup, store: StoreReader) -> OptimizationResult:
    """Give the program that is given back the attributes that tell of an optimization that has ended."""
    result = OptimizationResult.of(store, temporary=setup.settings.run_storage_dir is None)
    agent = AgentOutcome.of(store)
    assert agent is not None
    split, rows = setup.data.scored
    runs = store.runs()
    objectives = answers.objective_names(runs)
    scores = whole_scores(store, split, len(rows))
    best = best_measured_run(runs, scores, split, len(rows))
    baseline = next(run for run in runs if run.baseline and run.split == "train" and run.state == "finished")
    attributes = {
        "optimization_result": result,
        "optimized_dspy_program": dict(result.prompts_after),
        "latest_run_id": runs[-1].run_id,
        "best_run_id": None if best is None else best.run_id,
        "best_score": None if best is None else answers.percent(scores[best.candidate]),
        "baseline_run_id": baseline.run_id,
        "trial_logs": [answers.run_log(record, objectives) for record in runs],
        "agent_trajectory": trajectory_of(store),
        "agent_final_reasoning": agent.final_reasoning,
        "usage": result.usage,
        "cost_usd": result.cost_usd,
    }
    for name, value in attributes.items():
        setattr(program, name, value)
    program._compiled = True  # pyright: ignore[reportPrivateUsage] # how DSPy's optimizers mark what they return
    return result


def stored_best_program(student: dspy.Module, directory: Path) -> dspy.Module:
    """A clone of `student` with the best prompts that were measured in the newest store of a directory.

    Raises `InvalidSetup` when there is no store, no such run yet, or the store is about another student.
    """
    with StoreReader.open_in(directory) as store:
        setup = store.setup()
        best, scores = None, dict[str, float]()
        if setup is not None:
            split, examples = scored_split(setup)
            scores = whole_scores(store, split, examples)
            best = best_measured_run(store.runs(), scores, split, examples)
        if setup is None or best is None:
            raise InvalidSetup(f"the optimization in {store.path} has no finished run yet; ask again when it has one")
        check_student(setup, student)
    program = program_with(student, best.prompts)
    for name, value in {"best_run_id": best.run_id, "best_score": answers.percent(scores[best.candidate])}.items():
        setattr(program, name, value)
    return program


def program_with(student: dspy.Module, prompts: dict[str, str]) -> dspy.Module:
    """A clone of `student` with these prompts; of all else nothing differs."""
    program = clone(student)
    apply_prompts(program, prompts, fingerprint(student))  # raises when more than the instructions would differ
    return program
