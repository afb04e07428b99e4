"""The candidates of an optimization in a table for the agent: what all runs of each together say."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["candidate_table"]

_MOST: Final = 50  # candidates
_MOST_RUNS: Final = 20  # ids of runs of one of them


def candidate_table(
    store: StoreReader,
    runs: Iterable[RunRecord],
    on_val: Mapping[str, float],
    original: Mapping[str, str],
    current: str,
) -> list[dict[str, Any]]:
    """One dict for each of the 50 candidates that were run last and the best one, best first.

    `runs` are those that the agent may know of, which have ended; `on_val` has the score, 0..1, of the
    candidates that were measured on the whole of val; `current` is the id of the prompts that are set.
    Best is by score on val; then come those that val has not seen, by score on train.
    """
    by_candidate: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_candidate.setdefault(run.candidate, []).append(run)
    train = store.train_totals()
    table = [
        _line(candidate, own, train, on_val.get(candidate), original, current)
        for candidate, own in by_candidate.items()
    ]
    best_first = sorted(table, key=_by_score)
    last_run = {candidate: position for position, candidate in enumerate(_in_order_of_last_run(by_candidate))}
    newest = {candidate for candidate, position in last_run.items() if len(last_run) - position <= _MOST}
    return [line for place, line in enumerate(best_first) if place == 0 or line["candidate"] in newest]


def _line(
    candidate: str,
    runs: list[RunRecord],
    train: Mapping[str, tuple[int, int, float]],
    val_score: float | None,
    original: Mapping[str, str],
    current: str,
) -> dict[str, Any]:
    evaluated, passed, score = train.get(candidate, (0, 0, None))
    prompts = runs[0].prompts
    return {
        "candidate": candidate,
        "is_current": candidate == current,
        "changed_steps": changed_steps(prompts, original),
        "train_evaluated": evaluated,
        "train_passed": passed,
        "train_score": percent(score),
        "val_score": percent(val_score),
        "run_ids": [run.run_id for run in runs[-_MOST_RUNS:]],
    }


def _in_order_of_last_run(by_candidate: Mapping[str, list[RunRecord]]) -> list[str]:
    return sorted(by_candidate, key=lambda candidate: by_candidate[candidate][-1].started_at)


def _by_score(line: Mapping[str, Any]) -> tuple[float, float, int]:
    def down(score: float | None) -> float:
        return 1.0 if score is None else -score

    return down(line["val_score"]), down(line["train_score"]), -line["train_evaluated"]
