"""The runs that the host makes on its own: the baseline, the final check, and runs on val that were left unfinished."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from kernel_bridge.text import printable_line
from rlmoptimizer.errors import BudgetExceededError, CostExceededError, CostLimitReached
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import LMsFailed
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.run_under_way import Caller
from rlmoptimizer.evaluation.runs import Runs, is_cut_val
from rlmoptimizer.events import Split
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import METRIC_ERRORS, RunRecord, dollars
from rlmoptimizer.task.dataset import Dataset

__all__ = ["HostRuns"]

logger = logging.getLogger(__name__)

_ERROR_CHARS = 500


class HostRuns:
    """Made for one compile. Once `closed` is set no further split of the baseline is begun."""

    def __init__(self, runs: Runs, accounts: Accounts, data: Dataset, closed: threading.Event) -> None:
        self._runs = runs
        self._accounts = accounts
        self._data = data
        self._closed = closed

    def baseline(self, original: Prompts) -> dict[Split, RunRecord]:
        """Evaluate the program as it was given on every split, for no units. What is done already is not done again.

        Raises `CostLimitReached`, and the LM's own error when it failed on every example.
        """
        requests = [Request.whole("train", self._data.train, original)]
        if self._data.val is not None:
            requests.append(Request.whole("val", self._data.val, original))
        records: dict[Split, RunRecord] = {
            request.split: self._baseline(request) for request in requests if not self._closed.is_set()
        }
        self._accounts.emit_usage()
        if "train" in records:
            self._warn_of_no_score(records["train"])
        if "val" in records:
            self._warn_of_val(records["val"])
        return records

    def _warn_of_no_score(self, baseline: RunRecord) -> None:
        """A wrong key or a metric without a score looks like bad prompts. Answers that do not parse are the agent's."""
        if not baseline.evaluated_count or baseline.error_count < baseline.evaluated_count:
            self._warn_of_wrong_scores(baseline)
            return
        error = self._accounts.store.examples(baseline.run_id, limit=1)[0].error or ""
        logger.warning(
            "Not one of the %d examples of %s could be scored before anything was changed. The first error: %s. "
            "If that is not the prompts' fault, stop here and look at eval_lm, the data and the metric",
            baseline.evaluated_count,
            baseline.split,
            printable_line(error, _ERROR_CHARS),
        )

    def _warn_of_wrong_scores(self, baseline: RunRecord) -> None:
        """A metric that gives 100 for a right answer and no `perfect_score` makes right answers count as wrong ones."""
        wrong = self._without_score(baseline)
        if not wrong:
            return
        rows = self._accounts.store.examples(baseline.run_id)
        error = next((row.error for row in rows if row.error_kind in METRIC_ERRORS), None) or ""
        logger.warning(
            "Of the %d examples of %s, %d count as 0 because the metric gave no valid score. The first error: %s. "
            "Stop here and mend that: the optimization would take such answers for wrong ones",
            baseline.evaluated_count,
            baseline.split,
            wrong,
            printable_line(error, _ERROR_CHARS),
        )

    def _warn_of_val(self, baseline: RunRecord) -> None:
        """The same of val, and that its examples all fail. An error may quote an example, so none is shown."""
        wrong, count = self._without_score(baseline), baseline.evaluated_count
        if wrong:
            what = f"{wrong} count as 0 because the metric gave no valid score"
        elif count and baseline.error_count == count:
            what = "none could be scored: the program fails on each"
        else:
            return
        logger.warning("Of the %d examples of %s, %s. Stop here and mend that", count, baseline.split, what)

    def _without_score(self, run: RunRecord) -> int:
        """On how many examples of a run the metric raised, or returned no score."""
        kinds = self._accounts.store.error_kinds(run.run_id)
        return sum(kinds.get(kind, 0) for kind in METRIC_ERRORS)

    def _baseline(self, request: Request) -> RunRecord:
        record = failure = None
        try:
            record = self._runs.free(request, baseline=True)
        except CostExceededError:
            pass
        except LMsFailed as failed:
            failure = failed.__cause__
        if failure is not None:  # raised here, so that `LMsFailed` is not its context
            raise failure
        costs, total = self._accounts.costs.state(), len(request.rows)
        done = 0 if record is None else record.evaluated_count
        if done < total and costs.limit is not None and (record is None or self._accounts.costs.reached):
            raise CostLimitReached(
                dollars(costs.limit), dollars(costs.spent), done=done, total=total, split=request.split
            )
        assert record is not None  # refused only where there is a limit
        return record

    def final_check(self, submission: Prompts) -> RunRecord:
        """Evaluate what the agent has submitted on val, for a unit an example. What is done already is not done again.

        Raises `BudgetExceededError` or `CostExceededError` before anything is spent, and `LMsFailed`.
        """
        request = Request.whole("val", self._data.val or (), submission)
        return self._runs.paid(replace(request, charged_as="final_check"), Caller())

    def finish_val(
        self, stored: Callable[[Mapping[str, str]], Prompts], alone: Callable[[], AbstractContextManager[None]]
    ) -> None:
        """Complete the runs on val that were cut when an earlier process ended: the agent sees none in parts.

        `stored` checks prompts from the store, `alone` is entered for each run. A run that cannot be paid or answered
        stays cut and is not shown.
        """
        for record in self._accounts.store.runs():
            if record.baseline or not is_cut_val(record):
                continue
            prompts = stored(record.prompts)
            request = Request.whole(
                "val",
                self._data.val or (),
                prompts,
                record.config,
                record.turn,
                repeats=record.repeats,
                reuse=bool(record.config["reuse"]),
            )
            with (
                contextlib.suppress(BudgetExceededError, CostExceededError, LMsFailed),
                alone(),  # somebody may be at a console already
            ):
                self._runs.paid(request, Caller())  # asked by no kernel, so that the agent may still ask for it
