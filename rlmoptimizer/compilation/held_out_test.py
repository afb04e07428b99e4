"""The held-out test: both programs, the unchanged one and the one given back, on rows that nothing else has touched.

They run at the same time, so that a provider whose answers drift treats both alike. It costs no units.
"""

from __future__ import annotations

import concurrent.futures
import contextvars
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from kernel_bridge.threads.daemon_pool import DaemonPool
from rlmoptimizer.compilation.phase import phase
from rlmoptimizer.errors import CostExceededError, MetricFailed
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator, EvaluatorClosed, LMsFailed
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.runs import Runs
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.spending.ledger import Slot
from rlmoptimizer.task.dataset import Row

__all__ = ["HeldOutTest"]

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5  # how long a wait lasts before a Ctrl-C is noticed, where the system does not wake it
_GRACE_SECONDS = 2.0  # how long an end waits for what is being written down


class HeldOutTest:
    """The test of one compile. Nothing of its rows leaves the run store.

    Args:
        rows: of the test set; None: there is none, and nothing is done.
        stop: lets nothing more begin.
    """

    def __init__(
        self,
        rows: tuple[Row, ...] | None,
        runs: Runs,
        accounts: Accounts,
        evaluator: Evaluator,
        stop: Callable[[], None],
    ) -> None:
        self._rows = rows
        self._runs = runs
        self._accounts = accounts
        self._evaluator = evaluator
        self._stop = stop
        self._priced = False  # its price is held back, or does not fit

    def hold_back_price(self) -> None:
        """Keep its expected price from the agent, once the baseline has told what an example costs. Idempotent."""
        if self._priced or self._rows is None:
            return
        self._priced = True
        # With what may be under way when the agent reaches its limit, and is finished.
        examples = 2 * len(self._rows) + self._evaluator.num_threads
        try:
            self._accounts.costs.hold_back(examples)
        except CostExceededError as refused:
            logger.warning("The test set may not be paid at the end: %s", refused.said)

    def run(self, before: Prompts, after: Prompts) -> str | None:
        """Score both programs, equal ones once. Gives why that could not be done; None: it was, or there is no test.

        What an earlier process has scored is not scored again. Raises what stops a compile.
        """
        if self._rows is None:
            return None
        self._accounts.costs.release()
        programs = [before] if before == after else [before, after]
        requests = [Request.whole("test", self._rows, prompts) for prompts in programs]
        to_do = sum(self._runs.free_examples(request, baseline=not place) for place, request in enumerate(requests))
        with phase(self._accounts.emitter, "test"):
            try:
                with self._accounts.costs.reserve(to_do, "test") as dollars:  # of both or of neither
                    problems = self._side_by_side(requests, dollars)
            except CostExceededError as refused:
                return refused.said
        return next((problem for problem in problems if problem is not None), None)

    def _side_by_side(self, requests: Sequence[Request], dollars: Slot) -> list[str | None]:
        pool = DaemonPool(len(requests), "rlmoptimizer-test")
        runs: list[Future[str | None]] = []
        try:
            for place, request in enumerate(requests):
                begun = threading.Event()
                score = functools.partial(self._score, request, dollars, begun.set, baseline=not place)
                runs.append(_submitted(pool, score, begun.set))
                begun.wait()  # so that the runs have the same ids every time
            while (waited := concurrent.futures.wait(runs, _POLL_SECONDS)).not_done:
                for run in waited.done:
                    run.result()  # raises, so that the other one is not waited for
            return [run.result() for run in runs]
        except BaseException as error:
            self._stop()
            if isinstance(error, KeyboardInterrupt):
                self._evaluator.abort()
            concurrent.futures.wait(runs, _GRACE_SECONDS)
            self._evaluator.close(wait=False)
            raise
        finally:
            pool.close()
            pool.join(_GRACE_SECONDS)

    def _score(self, request: Request, dollars: Slot, begun: Callable[[], None], *, baseline: bool) -> str | None:
        """Make one of the runs; gives why it has no score. What a row says is in no reason."""
        try:
            record = self._runs.free(request, baseline=baseline, dollars=dollars, begun=begun)
        except EvaluatorClosed:
            return "an evaluation of the agent never ended"
        except LMsFailed:
            return "an LM failed on every example"
        except MetricFailed:
            return "the metric gave no score on any example"
        if record.state == "finished":
            return None
        reached = self._accounts.costs.reached
        why = "max_cost_usd was reached" if reached else "everything was stopped"
        return f"{why} after {record.evaluated_count} of {record.planned_count} examples"


def _submitted(pool: DaemonPool, score: Callable[[], str | None], ended: Callable[[], None]) -> Future[str | None]:
    """What `score` will give, on a thread of the pool; `ended` is called when it has."""
    run: Future[str | None] = Future()
    context = contextvars.copy_context()

    def work() -> None:
        try:
            run.set_result(context.run(score))
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            run.set_exception(error)
        ended()

    pool.submit(work)
    return run
