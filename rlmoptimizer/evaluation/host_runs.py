"""The runs that the host makes by itself: the baseline, and runs on val that an earlier process left unfinished."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from rlmoptimizer.errors import BudgetExceededError, CostExceededError, CostLimitReached
from rlmoptimizer.evaluation.evaluator import LMsFailed
from rlmoptimizer.evaluation.runs import Books, Caller, Request, Runs, is_cut_val
from rlmoptimizer.events import Split
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord, dollars
from rlmoptimizer.task.dataset import Dataset

__all__ = ["evaluate_baseline", "finish_val_runs"]


def evaluate_baseline(
    runs: Runs, books: Books, data: Dataset, original: Prompts, closed: threading.Event
) -> dict[Split, RunRecord]:
    """Evaluate the program as it was given on every split; costs no units, and what is done is not done again.

    Once `closed` is set no split is begun. Raises `CostLimitReached`, and the LM's own error when it failed on every
    example.
    """
    requests = [Request.whole("train", data.train, original)]
    if data.val is not None:
        requests.append(Request.whole("val", data.val, original))
    records: dict[Split, RunRecord] = {
        request.split: _baseline(runs, books, request) for request in requests if not closed.is_set()
    }
    books.emit_usage()
    return records


def _baseline(runs: Runs, books: Books, request: Request) -> RunRecord:
    record = failure = None
    try:
        record = runs.free(request)
    except CostExceededError:
        pass
    except LMsFailed as failed:
        failure = failed.__cause__
    if failure is not None:  # here, so that ours is no context of it
        raise failure
    costs, total = books.costs.state(), len(request.rows)
    done = 0 if record is None else record.evaluated_count
    if done < total and costs.limit is not None and (record is None or books.costs.reached):
        raise CostLimitReached(
            dollars(costs.limit), dollars(costs.spent), done=done, total=total, split=request.split
        )
    assert record is not None  # refused only where there is a limit
    return record


def finish_val_runs(
    runs: Runs,
    books: Books,
    data: Dataset,
    stored: Callable[[Mapping[str, str]], Prompts],
    alone: Callable[[], AbstractContextManager[None]],
) -> None:
    """Bring the runs on val to their end that were cut when an earlier process ended: none is seen in parts.

    `stored` checks prompts that were in the store, `alone` is entered for each run. What cannot be paid or answered
    stays cut, and is not told.
    """
    rows = data.val or ()
    for record in books.store.runs():
        if record.baseline or not is_cut_val(record):
            continue
        request = Request.whole("val", rows, stored(record.prompts), record.config, record.turn)
        with (
            contextlib.suppress(BudgetExceededError, CostExceededError, LMsFailed),
            alone(),  # somebody may be at a console already
        ):
            # Asked by no kernel, so that the agent may still ask for it.
            runs.paid(request, Caller())
