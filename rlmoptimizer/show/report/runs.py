"""The runs as the page shows them, and the line of the best score so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from rlmoptimizer.outcome.best_so_far import Checkpoint, UnitsSpent
from rlmoptimizer.outcome.run_totals import objective_names, run_log
from rlmoptimizer.records import RunRecord
from rlmoptimizer.show.report.json_values import as_json, points

__all__ = ["BestPoint", "best_points", "run_entries"]


class BestPoint(TypedDict):
    spent: int  # units
    score: float  # 0 to 100, of the best candidate then
    split: str
    run_id: str  # the run that had just ended


def run_entries(runs: Sequence[RunRecord], places: Mapping[str, int], spent: UnitsSpent) -> list[dict[str, Any]]:
    """The keys of `trial_logs` without `prompts`, and what the page needs beside them."""
    objectives = objective_names(runs)
    entries: list[dict[str, Any]] = []
    for run in runs:
        log = run_log(run, objectives)
        del log["prompts"]
        more = {
            # The page rounds, once: what is rounded twice may differ from the same figure elsewhere.
            "score": points(run.score),
            "standard_error": points(run.standard_error),
            "candidate": places.get(run.candidate),
            "turn": run.turn if run.turn or run.baseline else None,  # None: after the agent's work
            "started_at": run.started_at,
            "finished_at": run.finished_at,
            "spent": spent.in_all if run.finished_at is None else spent.at(run.finished_at),
            "planned_count": run.planned_count,
        }
        entries.append(as_json({**log, **more}))
    return entries


def best_points(checkpoints: Sequence[Checkpoint], split: str) -> list[BestPoint]:
    """Where the line changes its height."""
    changes: list[BestPoint] = []
    for one in checkpoints:
        if not changes or changes[-1]["score"] != one.best:
            changes.append({"spent": one.spent, "score": one.best, "split": split, "run_id": one.run_id})
    return changes
