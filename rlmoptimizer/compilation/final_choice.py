"""The final choice: the agent's submission is measured on val, and the prompts to give back are chosen."""

from __future__ import annotations

import logging

from kernel_bridge.text import printable
from rlmoptimizer.compilation.phase import phase
from rlmoptimizer.errors import BudgetExceededError, CostExceededError, MetricFailed, SelectionError
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import EvaluatorClosed, LMsFailed
from rlmoptimizer.evaluation.host_runs import HostRuns
from rlmoptimizer.events import AgentSubmitted, FellBack
from rlmoptimizer.outcome import run_totals as answers
from rlmoptimizer.outcome.choice import rival_of
from rlmoptimizer.outcome.ending import AgentOutcome, Choice
from rlmoptimizer.outcome.measured import best_measured_run, measured_scores, whole_scores
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import RunRecord
from rlmoptimizer.task.dataset import Dataset

__all__ = ["FinalChoice"]

logger = logging.getLogger(__name__)

_ENDED_AS_WANTED = frozenset(  # by the person, or by what the person has set
    {"target_score", "patience", "max_seconds", "max_cost_usd", "stopped_by_person", "branched"}
)


class FinalChoice:
    """Made when the agent's work has ended; nothing else is under way."""

    def __init__(self, host_runs: HostRuns, accounts: Accounts, data: Dataset) -> None:
        self._host_runs = host_runs
        self._accounts = accounts
        self._store = accounts.store
        self._data = data

    def make(self, agent: AgentOutcome, *, measured: bool = True) -> Choice:
        """The prompts to give back: the submission, unless there is none or another candidate is surely better.

        `measured` False: nothing more is run.
        """
        if agent.prompts is None:
            return self._without_submission(agent)
        self._accounts.emitter.emit(AgentSubmitted(agent.prompts))
        if self._data.val is None:
            return Choice(agent.prompts, None, "the agent submitted it; there is no validation set to check it on")
        submission = Prompts.of(agent.prompts)
        problem = self._measure(submission, measured)
        scores, size = measured_scores(self._store, "val"), len(self._data.val)
        if problem is not None:
            return Choice(agent.prompts, None, f"the agent submitted it; it was not measured on val: {problem}")
        rival = rival_of(scores, submission.digest, size)
        if rival is None:
            return Choice(agent.prompts, None, "the agent submitted it, and nothing scored better on val")
        compared, run = rival.compared.text, self._whole_val_run(rival.candidate)
        if not rival.replaces_submission:
            because = f"the agent submitted it; it may be as good on val as the best, run {run.run_id}: {compared}"
            return Choice(agent.prompts, None, because)
        logger.warning(
            "The agent's submission is not given back: on val it is worse than the prompts of run %s (%s), "
            "which are given back",
            run.run_id,
            compared,
        )
        reason = f"the submission is worse on val than run {run.run_id}: {compared}"
        self._accounts.emitter.emit(FellBack(reason, run.run_id))
        return Choice(dict(run.prompts), run.run_id, reason)

    def _measure(self, submission: Prompts, measured: bool) -> str | None:
        """Run the submission on val unless it has a score on all of it; gives why it has none at all."""
        if submission.digest in whole_scores(self._store, "val", len(self._data.val or ())):
            return None
        problem = self._final_check(submission) if measured else "the optimization was branched before that"
        return None if self._has_scores(submission) else problem or "the run was stopped before its end"

    def _final_check(self, submission: Prompts) -> str | None:
        with phase(self._accounts.emitter, "final_check"):
            try:
                self._host_runs.final_check(submission)
            except BudgetExceededError as refused:
                return f"it takes {refused.asked} units, and {refused.left} are left"
            except CostExceededError as refused:
                return refused.said
            except EvaluatorClosed:
                return "an evaluation of the agent never ended"
            except MetricFailed:
                return "the metric gave no score on any example"
            except LMsFailed:
                return "the LM that runs the program failed on every example"
            except SelectionError:
                return "too many evaluations have cost nothing"
        return None

    def _has_scores(self, prompts: Prompts) -> bool:
        return prompts.digest in measured_scores(self._store, "val")

    def _whole_val_run(self, candidate: str) -> RunRecord:
        """Its first one."""
        return next(
            run
            for run in self._store.runs()
            if run.split == "val" and run.state == "finished" and run.candidate == candidate
        )

    def _without_submission(self, agent: AgentOutcome) -> Choice:
        split, rows = self._data.scored
        scores = whole_scores(self._store, split, len(rows))
        best = best_measured_run(self._store.runs(), scores, split, len(rows))
        if best is None:  # an LM failed on examples of every run on the whole split
            best = next(run for run in self._store.runs() if run.baseline)
            found = f"no run has a score on the whole of {split}; the prompts stay as they were"
        else:
            found = f"taking the prompts of run {best.run_id}, the best on {split} with a score of "
            found += str(answers.percent(scores[best.candidate]))
            if best.candidate == next(run.candidate for run in self._store.runs() if run.baseline):
                found += ": those of the unchanged program"
        problem = str(agent.problem)
        was_ended = agent.stop_reason in _ENDED_AS_WANTED
        said = "the work ended before a submission" if was_ended else "there is no valid submission"
        logger.warning("%s (%s); %s", said.capitalize(), printable(problem), found)
        self._accounts.emitter.emit(FellBack(problem, best.run_id))
        return Choice(dict(best.prompts), best.run_id, f"{said} ({problem}); {found}")
