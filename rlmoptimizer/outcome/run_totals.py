"""How a run looks in a list of runs, and in words: its totals, how far it came, what is said when it was cut."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from rlmoptimizer.records import RunRecord

__all__ = ["cut_line", "objective_names", "percent", "progress", "reused", "run_log", "run_totals"]


def progress(record: RunRecord) -> str:
    """How far a run came."""
    if record.repeats == 1:
        return f"{record.evaluated_count} of {record.planned_count} examples"
    return f"{record.judged_count} of {record.planned_count * record.repeats} evaluations"


def reused(record: RunRecord) -> str:
    """How much of a run was not run, but taken over."""
    if record.reused_count == record.judged_count:
        return "all of it reused from earlier runs, for nothing"
    return f"{record.reused_count} of {record.judged_count} evaluations reused from earlier runs, for nothing"


def percent(score: float | None) -> float | None:
    """A fraction, or a difference of two, as the percentage that people and the agent see; None stays None."""
    return None if score is None else round(100.0 * score, 2) + 0.0  # never -0.0


def objective_names(records: Iterable[RunRecord]) -> frozenset[str]:
    """The objectives that may be told of runs on val and test: a metric may make names of what stands in an example."""
    return frozenset(name for record in records if record.split == "train" for name in record.objectives)


def run_totals(record: RunRecord, objectives: Collection[str]) -> dict[str, Any]:
    """One line of a list of runs; of the metric's objectives only these."""
    means = {name: round(mean, 4) for name, mean in record.objectives.items() if name in objectives}
    return {
        "run_id": record.run_id,
        "split": record.split,
        "score": percent(record.score),
        "standard_error": percent(record.standard_error),
        "evaluated_count": record.evaluated_count,
        "passed_count": record.passed_count,
        "error_count": record.error_count,
        **({"truncated_count": record.truncated_count} if record.truncated_count else {}),
        **({"objectives": means} if means else {}),
        **({"repeats": record.repeats} if record.repeats > 1 else {}),
        **({"reused_count": record.reused_count} if record.reused_count else {}),
    }


def run_log(record: RunRecord, objectives: Collection[str]) -> dict[str, Any]:
    """One entry of the result's `trial_logs`; of the metric's objectives only these."""
    return {
        **run_totals(record, objectives),
        "baseline": record.baseline,
        "state": record.state,
        "unanswered_count": record.unanswered_count,
        "remaining_budget": record.budget_left,
        "config": dict(record.config),
        "prompts": dict(record.prompts),
    }


def cut_line(record: RunRecord) -> str:
    """What is said of a run that was under way when nobody waited for it any more, in the place of its answer."""
    run = f"run {record.run_id} on {record.split}"
    call = "race_prompts" if "race_round" in record.config else "evaluate_program"
    if record.split == "val" and record.state == "running":
        return (
            f"{run} goes on to its end: the same call of evaluate_program waits for it and has its answer, for nothing"
        )
    if record.split == "val" and record.state == "cancelled":
        return f"{run} was cut; val is told whole or not at all: the same call of evaluate_program does the rest"
    if not record.missing_count:
        return f"{run} came to its end: run_data({record.run_id!r}) has it, for nothing"
    ending = "is ending" if record.state == "running" else "ended"
    return (
        f"{run} was cut and {ending} after {progress(record)}; "
        f"what did not run is not paid. run_data({record.run_id!r}) has what did, and "
        f"the same call of {call} goes on with the rest"
    )
