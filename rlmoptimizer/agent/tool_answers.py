"""The dicts that the agent gets back from its tools.

The only place where scores are percentages, 0 to 100; only `examples[].score` stays a fraction, 0 to 1. Nothing of a
run on `val` but its totals is put into an answer.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from rlmoptimizer.agent.answer_size import fit
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.requests import ended_run
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.errors import LMUnavailable
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.runs import Books, Request, is_cut_val
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import (
    LM_FAILURES,
    ExampleResult,
    Role,
    RoleUsage,
    RunRecord,
    best_run,
    dollars,
    total_usd,
)
from rlmoptimizer.spending.ledger import LedgerState
from rlmoptimizer.task.dataset import Dataset
from rlmoptimizer.text import usd_text

__all__ = ["ToolAnswers", "cut_line", "percent", "run_log", "run_totals"]


class ToolAnswers:
    """Answers for one compile: what `books` hold, as the agent gets it. Thread-safe."""

    def __init__(self, books: Books, data: Dataset, evaluator: Evaluator, meter: SubLMMeter, turns: Turns) -> None:
        self.books = books
        self._store = books.store
        self._data = data
        self._evaluator = evaluator
        self._meter = meter
        self._turns = turns
        self._lock = threading.Lock()  # of the next one
        self._told_of_strays = False

    def run(self, record: RunRecord, *, remaining: int | None) -> dict[str, Any]:
        """`run_answer` for a run that has ended."""
        return run_answer(
            record,
            self._store.examples(record.run_id) if record.split == "train" else (),
            remaining=remaining,
            costs=None if remaining is None else self.books.costs.state(),
            error_kinds=self._store.error_kinds(record.run_id) if record.unanswered_count else None,
            paid_unanswered=self._paid_unanswered(record.split, record.run_id) if record.unanswered_count else 0,
            note=self._note(),
        )

    def run_data(self, run_id: Any) -> dict[str, Any]:
        return self.run(ended_run(self._store, run_id), remaining=None)

    def nothing_to_do(self, request: Request) -> dict[str, Any]:
        source = str(request.config["failed_from_run"])
        return empty_answer(request.config, failed_from_run=source, remaining=self.books.ledger.left)

    def status(self, current: Prompts) -> dict[str, Any]:
        runs = self._store.runs()
        split, rows = self._data.scored
        return status_answer(
            budget=self.books.ledger.state(),
            runs=[record for record in runs if record.state != "running" and not is_cut_val(record)],
            best=best_run(runs, split, len(rows)),
            current_prompts=current,
            root_lm_calls=self._turns.count,
            sub_lm_calls=self._meter.calls,
            num_threads=self._evaluator.num_threads,
            usage=self.books.costs.usage(),
            costs=self.books.costs.state(),
        )

    def lm_unavailable(self, request: Request, failed: LMsFailed) -> LMUnavailable:
        """What the agent gets when no example of a run has a verdict."""
        run_id, cause = failed.run_id or "?", failed.__cause__
        if request.split == "train":
            said = f"{type(cause).__name__}: {cause}"
        else:  # an LM's message may quote what it was asked, and the error is that of one example
            said = kinds_text(self._store.error_kinds(run_id))
        return LMUnavailable(run_id, len(request.rows), said, self._paid_unanswered(request.split, run_id))

    def _note(self) -> str | None:
        """What the agent must know about the program, once; None: nothing."""
        with self._lock:
            if not self._evaluator.strays or self._told_of_strays:
                return None
            self._told_of_strays = True
        return (
            "note that the program calls steps in threads of its own without DSPy's settings: those calls are answered "
            "by another LM than the others, and are not in `steps`"
        )

    def _paid_unanswered(self, split: str, run_id: str) -> int:
        """How many examples of a run were paid and have no verdict."""
        return len(self._store.shown_ids(run_id)) if split == "train" else 0


def percent(score: float | None) -> float | None:
    """A fraction as the percentage that people and the agent see; None stays None."""
    return None if score is None else round(100.0 * score, 2)


def run_answer(
    record: RunRecord,
    results: Sequence[ExampleResult],
    *,
    remaining: int | None,
    costs: LedgerState | None = None,
    error_kinds: Mapping[str, int] | None = None,
    paid_unanswered: int = 0,
    note: str | None = None,
) -> dict[str, Any]:
    """What an evaluation returns. `remaining` None: the answer of `run_data`, which tells nothing of the budget.

    Texts are cut when they are too long together to be sent; the summary says so. `error_kinds`, how many errors of
    each kind there were, and `paid_unanswered`, how many of the unanswered ones were paid, are needed when the record
    has unanswered examples. `note` ends the summary; None: nothing to add.
    """
    shown = results if record.split == "train" else ()
    rows, longest = fit([result.as_row() for result in shown])
    unanswered = {"unanswered_count": record.unanswered_count} if record.unanswered_count else {}
    totals = run_totals(record)
    return {
        "score": totals["score"],
        "evaluated_count": totals["evaluated_count"],
        "passed_count": totals["passed_count"],
        **unanswered,
        "run_id": record.run_id,
        **({} if remaining is None else {"remaining_budget": remaining}),
        "summary_line": _run_line(record, remaining, costs, longest, error_kinds or {}, paid_unanswered)
        + ("" if note is None else f"; {note}"),
        "split": record.split,
        "config": dict(record.config),
        "examples": rows,
    }


def empty_answer(config: Mapping[str, Any], *, failed_from_run: str, remaining: int) -> dict[str, Any]:
    """What an evaluation of the failures of a run without failures returns: no run was made, no score exists."""
    return {
        "score": None,
        "evaluated_count": 0,
        "passed_count": 0,
        "run_id": None,
        "remaining_budget": remaining,
        "summary_line": (
            f"nothing to evaluate: every example of run {failed_from_run} passed; "
            f"nothing was spent, {remaining} budget units left"
        ),
        "split": "train",
        "config": dict(config),
        "examples": [],
    }


def run_totals(record: RunRecord) -> dict[str, Any]:
    """One line of a list of runs."""
    return {
        "run_id": record.run_id,
        "split": record.split,
        "score": percent(record.score),
        "evaluated_count": record.evaluated_count,
        "passed_count": record.passed_count,
    }


def run_log(record: RunRecord) -> dict[str, Any]:
    """One entry of the result's `trial_logs`."""
    return {
        **run_totals(record),
        "baseline": record.baseline,
        "state": record.state,
        "error_count": record.error_count,
        "unanswered_count": record.unanswered_count,
        "remaining_budget": record.budget_left,
        "config": dict(record.config),
        "prompts": dict(record.prompts),
    }


def status_answer(
    *,
    budget: LedgerState,
    runs: Sequence[RunRecord],
    best: RunRecord | None,
    current_prompts: Mapping[str, str],
    root_lm_calls: int,
    sub_lm_calls: int,
    num_threads: int,
    usage: Mapping[Role, RoleUsage],
    costs: LedgerState,
) -> dict[str, Any]:
    """What `optimization_status` returns. `runs` are those that ended and may be told, oldest first."""
    baselines = {record.split: record.run_id for record in runs if record.baseline}
    return {
        "remaining_budget": budget.left,
        "budget": budget.limit,
        "spent_budget": budget.spent,
        "reserved_budget": budget.reserved,
        "evaluated_examples": sum(run.evaluated_count - run.reused_count for run in runs if not run.baseline),
        "root_lm_calls": root_lm_calls,
        "sub_lm_calls": sub_lm_calls,
        "num_threads": num_threads,
        "cost_usd": total_usd(usage),
        "remaining_cost_usd": None if costs.left is None else dollars(costs.left),
        "best_score": None if best is None else percent(best.score),
        "best_run_id": None if best is None else best.run_id,
        "latest_run_id": runs[-1].run_id if runs else None,
        "baseline_run_id": baselines.get("train"),
        "baseline_val_run_id": baselines.get("val"),
        "current_prompts": dict(current_prompts),
        "best_prompts": dict(current_prompts if best is None else best.prompts),
        "steps": list(current_prompts),
        "runs": [run_totals(record) for record in runs],
    }


def cut_line(record: RunRecord) -> str:
    """What is said of a run that was under way when nobody waited for it any more, in the place of its answer."""
    run = f"run {record.run_id} on {record.split}"
    if record.split == "val" and record.state == "running":
        return (
            f"{run} goes on to its end: the same call of evaluate_program waits for it and has its answer, for nothing"
        )
    if record.split == "val" and record.state == "cancelled":
        return f"{run} was cut; val is told whole or not at all: the same call of evaluate_program does the rest"
    rest = record.planned_count - record.evaluated_count
    if not rest:
        return f"{run} came to its end: run_data({record.run_id!r}) has it, for nothing"
    ending = "is ending" if record.state == "running" else "ended"
    return (
        f"{run} was cut and {ending} after {record.evaluated_count} of {record.planned_count} examples; "
        f"what did not run is not paid. run_data({record.run_id!r}) has what did, and "
        "the same call of evaluate_program goes on with the rest"
    )


def kinds_text(error_kinds: Mapping[str, int]) -> str:
    """How often an LM failed, by kind, in words."""
    return ", ".join(f"{kind}: {error_kinds[kind]}" for kind in sorted(error_kinds) if kind in LM_FAILURES)


def _run_line(
    record: RunRecord,
    remaining: int | None,
    costs: LedgerState | None,
    longest: int | None,
    error_kinds: Mapping[str, int],
    paid_unanswered: int,
) -> str:
    score = "no score" if record.score is None else f"score {percent(record.score):.2f}"
    parts = [
        f"run {record.run_id} on {record.split}: {score}",
        f"{record.passed_count}/{record.evaluated_count} passed",
    ]
    if record.error_count:
        parts.append(f"{record.error_count} with an error")
    line = ", ".join(parts)
    if record.unanswered_count:
        again = "all of val, as always" if record.split == "val" else "only those"
        line += (
            f"; {record.unanswered_count} more have no verdict because the LM failed on them "
            f"({kinds_text(error_kinds)}), and "
        )
        if paid_unanswered:
            line += (
                f"{paid_unanswered} of these {'is' if paid_unanswered == 1 else 'are'} paid, for the answers of steps "
                f"before that, and run again for nothing: the same call again runs {again}"
            )
        else:
            line += f"were not paid: the same call again runs {again}"
    if record.state == "cancelled":
        line += f"; stopped after {record.evaluated_count} of {record.planned_count} examples"
    ignored = record.config.get("ignored") or ()
    if ignored:
        line += f"; ignored, because val always runs whole: {', '.join(ignored)}"
    if remaining is not None:
        line += f"; {remaining} budget unit{'' if remaining == 1 else 's'} left"
    if costs is not None and costs.left is not None:
        left = f"; {usd_text(dollars(costs.left))} of max_cost_usd left"
        line += left if costs.left > 0 else "; max_cost_usd is reached: submit now"
    if longest is not None:
        line += f"; too much text to send: what is longer than {longest:,} characters has lost its middle"
    return line
