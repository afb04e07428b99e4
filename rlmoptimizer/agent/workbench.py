"""What the agent of one compile works with, put together."""

from __future__ import annotations

import dspy

from rlmoptimizer.agent.call_recording import CallRecording
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.program_trials import ProgramTrials
from rlmoptimizer.agent.prompt_review import PromptReview
from rlmoptimizer.agent.race_request import RaceReader
from rlmoptimizer.agent.request_reader import RequestReader
from rlmoptimizer.agent.stopping import WorkStop
from rlmoptimizer.agent.submission import SubmissionCheck
from rlmoptimizer.agent.tool_answers import ToolAnswers
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.host_runs import HostRuns
from rlmoptimizer.evaluation.runs import Runs
from rlmoptimizer.task.dataset import Dataset

__all__ = ["Workbench"]


class Workbench:
    """The parts, each with one owner's job.

    Args:
        program: a clone, which is never changed from now on.
        accounts: of a new compile, or of one that goes on: the prompts are then those that were set last.
        stop: what may end the work before the agent does; every call of the agent passes its gate.
        seed: decides random samples that were asked for without a seed of their own.
        max_prompt_tokens: of a prompt of the agent's; None: no limit.
    """

    def __init__(
        self,
        program: dspy.Module,
        data: Dataset,
        evaluator: Evaluator,
        accounts: Accounts,
        meter: SubLMMeter,
        stop: WorkStop,
        seed: int,
        max_prompt_tokens: int | None = None,
    ) -> None:
        self.accounts = accounts
        self.stop = stop
        self.gate = gate = stop.gate
        self.meter = meter
        self.runs = Runs(program, evaluator, accounts, gate.closed, gate.stopped)
        self.host_runs = HostRuns(self.runs, accounts, data, gate.closed)
        self.prompts = CurrentPrompts(program, accounts.store, max_prompt_tokens)
        self.turns = Turns(self.runs, accounts, gate)
        self.calls = CallRecording(accounts.store, lambda: self.turns.count, gate)
        self.submission = SubmissionCheck(self.prompts, accounts.emitter, gate)
        requests = RequestReader(data, self.prompts, self.turns, accounts.store, seed)
        races = RaceReader(data, self.prompts, self.turns, seed)
        review = PromptReview(accounts.store, self.prompts.original)
        answers = ToolAnswers(accounts, data, evaluator, meter, self.turns, review)
        trials = ProgramTrials(program, evaluator, accounts, data, self.prompts, self.turns, gate)
        self.tools = AgentTools(requests, races, self.runs, self.prompts, answers, trials, stop, accounts)
