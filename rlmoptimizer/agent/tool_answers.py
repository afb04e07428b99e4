"""What the agent gets back from its tools."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable
from typing import Any

from rlmoptimizer.agent.baseline_evidence import STRAYS
from rlmoptimizer.agent.candidate_table import candidate_table
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.prompt_review import PromptReview
from rlmoptimizer.agent.request_reader import ended_run, visible_runs
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.comparison import mean_interval
from rlmoptimizer.errors import LMUnavailable, SelectionError
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.runs import is_cut_val
from rlmoptimizer.outcome.constant_answers import constant_answers
from rlmoptimizer.outcome.example_rows import ExampleRows
from rlmoptimizer.outcome.measured import best_measured_run, whole_scores
from rlmoptimizer.outcome.run_totals import objective_names, percent, progress, reused, run_totals
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import (
    LM_FAILURES,
    ExampleResult,
    RunRecord,
    dollars,
    mean,
    total_usd,
)
from rlmoptimizer.task.dataset import Dataset, ids_text, parse_selection, select
from rlmoptimizer.text import usd_text

__all__ = ["ToolAnswers"]


class ToolAnswers:
    """Answers from what `accounts` hold. Thread-safe.

    The only place where scores are percentages, 0 to 100; only `examples[].score` stays a fraction, 0 to 1. Nothing of
    a run on val but its totals is put into an answer.
    """

    def __init__(
        self,
        accounts: Accounts,
        data: Dataset,
        evaluator: Evaluator,
        meter: SubLMMeter,
        turns: Turns,
        review: PromptReview,
    ) -> None:
        self._accounts = accounts
        self._store = accounts.store
        self._data = data
        self._evaluator = evaluator
        self._meter = meter
        self._turns = turns
        self._review = review
        self.rows = ExampleRows(self._store)
        self.are_paged = False  # whether who gets the answers can read rows in pages
        self._lock = threading.Lock()  # of the next one
        self._noted_strays = False

    def run(
        self, record: RunRecord, *, remaining: int | None, ids: Collection[str] | None = None, heard: bool = True
    ) -> dict[str, Any]:
        """What an evaluation returns. `remaining` None: for `run_data`, which tells nothing of the budget.

        `ids`: only these examples; None: all that the agent may see. `heard` False: whoever asked is gone, so what is
        said once is kept for the next.
        """
        given = self.rows.paged if self.are_paged else self.rows.whole
        rows = given(record, ids) if record.split == "train" else []
        totals = run_totals(record, self._objectives(record))
        del totals["run_id"], totals["split"]
        summary = self._summary(record, remaining)
        if remaining is not None and heard:
            # What failed before is alike in its answers, so it tells nothing of all.
            is_whole = record.split == "train" and record.config.get("failed_from_run") is None
            results = self._store.each_example(record.run_id, steps=False) if is_whole else ()
            summary += self._beware(Prompts.of(record.prompts), results)
        if heard:
            summary += self._note()
        return {
            **totals,
            **({"unanswered_count": record.unanswered_count} if record.unanswered_count else {}),
            "run_id": record.run_id,
            **({} if remaining is None else {"remaining_budget": remaining}),
            "summary_line": summary,
            "split": record.split,
            "config": dict(record.config),
            "examples": rows,
        }

    def run_data(self, run_id: Any, ids: Any = None) -> dict[str, Any]:
        """What `run_data` returns. Raises the `AgentError` for what the agent may not see."""
        record = ended_run(self._store, run_id)
        return self.run(record, remaining=None, ids=None if ids is None else self._named(record, ids))

    def _named(self, record: RunRecord, ids: Any) -> frozenset[str]:
        """The examples of a run that `ids` names."""
        if record.split != "train":
            raise SelectionError(
                f"run {record.run_id} is on {record.split}, whose examples are not shown; call run_data without ids"
            )
        train = self._data.train
        named = {row.example_id for row in select(train, parse_selection(ids=ids, rows=len(train)))}
        has = self._store.result_ids(record.run_id)
        if named.isdisjoint(has):
            raise SelectionError(f"run {record.run_id} has none of these examples; it has {ids_text(train, has)}")
        return frozenset(named.intersection(has))

    def no_failures(self, request: Request) -> dict[str, Any]:
        """What an evaluation of the failures of a run without failures returns: no run was made, no score exists."""
        remaining = self._accounts.ledger.left
        return {
            "score": None,
            "standard_error": None,
            "evaluated_count": 0,
            "passed_count": 0,
            "error_count": 0,
            "run_id": None,
            "remaining_budget": remaining,
            "summary_line": (
                f"nothing to evaluate: every example of run {request.config['failed_from_run']} passed; "
                f"nothing was spent, {remaining} budget units left"
            ),
            "split": "train",
            "config": dict(request.config),
            "examples": [],
        }

    def update(self, step: str, before: str, *, changed: bool) -> dict[str, Any]:
        """What `update_prompt` returns."""
        said = "has a new prompt" if changed else "had this very prompt already"
        return {"step": step, "changed": changed, "previous_text": before, "summary_line": f"step {step} {said}"}

    def status(self, current: Prompts, original: Prompts) -> dict[str, Any]:
        """What `optimization_status` returns."""
        split, rows = self._data.scored
        scores = whole_scores(self._store, split, len(rows))  # before the runs, so that the best one is among them
        every = visible_runs(self._store)
        runs = [record for record in every if record.state != "running" and not is_cut_val(record)]
        best = best_measured_run(every, scores, split, len(rows))
        known = objective_names(runs)
        baselines = {record.split: record.run_id for record in runs if record.baseline}
        budget, costs = self._accounts.ledger.state(), self._accounts.costs.state()
        return {
            "remaining_budget": budget.left,
            "budget": budget.limit,
            "spent_budget": budget.spent,
            "reserved_budget": budget.reserved,
            "evaluated_examples": sum(run.judged_count - run.reused_count for run in runs if not run.baseline),
            "root_lm_calls": self._turns.count,
            "sub_lm_calls": self._meter.calls,
            "num_threads": self._evaluator.num_threads,
            "cost_usd": total_usd(self._accounts.costs.usage()),
            "remaining_cost_usd": None if costs.left is None else dollars(costs.left),
            "best_score": None if best is None else percent(scores[best.candidate]),
            "best_run_id": None if best is None else best.run_id,
            "latest_run_id": runs[-1].run_id if runs else None,
            "baseline_run_id": baselines.get("train"),
            "baseline_val_run_id": baselines.get("val"),
            "current_prompts": dict(current),
            "best_prompts": dict(current if best is None else best.prompts),
            "steps": list(current),
            "candidates": candidate_table(
                self._store, runs, scores if split == "val" else {}, original, current.digest
            ),
            "runs": [run_totals(record, known) for record in runs],
        }

    def lm_unavailable(self, request: Request, failed: LMsFailed) -> LMUnavailable:
        """What the agent gets when no example of a run has a verdict."""
        run_id, cause = failed.run_id, failed.__cause__
        # An LM's message may quote what it was asked, and on val that is an example.
        said = f"{type(cause).__name__}: {cause}" if request.split == "train" else self._error_kinds(run_id)
        return LMUnavailable(run_id, len(request.rows), said, self._paid_unanswered(request.split, run_id))

    def _objectives(self, record: RunRecord) -> Collection[str]:
        """Those that may be told of a run."""
        return objective_names([record] if record.split == "train" or not record.objectives else self._store.runs())

    def _summary(self, record: RunRecord, remaining: int | None) -> str:
        line = f"run {record.run_id} on {record.split}: {self._score(record)}, "
        line += f"{record.passed_count}/{record.evaluated_count} passed"
        if record.error_count:
            line += f", {record.error_count} with an error"
        if record.truncated_count:
            line += f", {record.truncated_count} in which an LM's answer was cut at max_tokens"
        if record.unanswered_count:
            line += self._unanswered(record)
        if record.repeats > 1:
            line += f"; each example {record.repeats} times, it passed when it did every time"
        if record.reused_count:
            line += f"; {reused(record)}"
        if remaining is not None:
            line += self._all_runs(record)
        if record.state == "cancelled":
            line += f"; stopped after {progress(record)}"
        if remaining is not None:
            line += f"; {remaining} budget unit{'' if remaining == 1 else 's'} left"
            line += self._price_of_val(remaining)
            costs = self._accounts.costs.state()
            if costs.left is not None:
                left = f"; {usd_text(dollars(costs.left))} of max_cost_usd left"
                line += left if costs.left > 0 else "; max_cost_usd is reached: submit now"
        return line

    def race(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer of a race, with what is suspicious in the prompts that did best and in their results."""
        best = answer["ranking"][0]
        results = itertools.chain.from_iterable(self._store.each_example(one, steps=False) for one in best["run_ids"])
        return {**answer, "summary_line": answer["summary_line"] + self._beware(Prompts.of(best["prompts"]), results)}

    def _beware(self, prompts: Prompts, results: Iterable[ExampleResult]) -> str:
        """What a summary line says of suspicious results, and of suspicious prompts once; "" when all is well."""
        found = [*constant_answers(results), *self._review.news(prompts)]
        return f"; beware: {'; '.join(found)}" if found else ""

    def _all_runs(self, record: RunRecord) -> str:
        """What these prompts come to on train in all their runs together, where that is more than this one."""
        if record.split != "train":
            return ""
        count, passed, score = self._store.train_totals(record.candidate).get(record.candidate, (0, 0, 0.0))
        if count <= record.evaluated_count:
            return ""
        return f"; these prompts in all their runs: score {percent(score):.2f}, {passed}/{count} of train passed"

    def _price_of_val(self, remaining: int) -> str:
        """What a run on val costs, once not much more is left: without one the submission stays unmeasured."""
        price = len(self._data.val or ())
        return f" (a run on val takes {price})" if price and remaining < 3 * price else ""

    def _score(self, record: RunRecord) -> str:
        """The score with its interval: how far off it may be, going by how few examples there are."""
        interval = mean_interval([mean(scores) for scores in self._store.scores(record.run_id).values()])
        if record.score is None or interval is None:
            return "no score"
        low, high = (100 * bound for bound in interval)
        return f"score {percent(record.score):.2f} (95% interval {low:.0f}-{high:.0f})"

    def _unanswered(self, record: RunRecord) -> str:
        again = "all of val, as always" if record.split == "val" else "only those"
        line = (
            f"; {record.unanswered_count} more have no verdict because the LM failed on them "
            f"({self._error_kinds(record.run_id)}), and "
        )
        if paid := self._paid_unanswered(record.split, record.run_id):
            return line + (
                f"{paid} of these {'is' if paid == 1 else 'are'} paid, for the answers of steps before that, and run "
                f"again for nothing: the same call again runs {again}"
            )
        return line + f"were not paid: the same call again runs {again}"

    def _note(self) -> str:
        """What the agent must know about the program, once."""
        with self._lock:
            if not self._evaluator.strays or self._noted_strays:
                return ""
            self._noted_strays = True
        return f"; note that {STRAYS}"

    def _error_kinds(self, run_id: str) -> str:
        """How often an LM failed in a run, by kind, in words."""
        counts = self._store.error_kinds(run_id)
        return ", ".join(f"{kind}: {counts[kind]}" for kind in sorted(counts) if kind in LM_FAILURES)

    def _paid_unanswered(self, split: str, run_id: str) -> int:
        """How many examples of a run were paid and have no verdict."""
        return len(self._store.shown_rollouts(run_id)) if split == "train" else 0
