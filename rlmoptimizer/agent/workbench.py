"""What the agent of one compile works with, put together."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import dataclass

import dspy

from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.requests import RequestReader
from rlmoptimizer.agent.submission import SubmissionCheck
from rlmoptimizer.agent.tool_answers import ToolAnswers
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.host_runs import HostRuns
from rlmoptimizer.evaluation.runs import Books, Runs
from rlmoptimizer.task.dataset import Dataset

__all__ = ["Workbench", "make_workbench"]


@dataclass(frozen=True, slots=True)
class Workbench:
    """The parts, each with one owner's job. The program itself stays with `runs`."""

    books: Books
    gate: CallGate
    meter: SubLMMeter
    runs: Runs
    prompts: CurrentPrompts
    turns: Turns
    submission: SubmissionCheck
    host_runs: HostRuns
    tools: AgentTools


def make_workbench(
    program: dspy.Module,
    data: Dataset,
    evaluator: Evaluator,
    books: Books,
    meter: SubLMMeter,
    gate: CallGate,
    seed: int,
) -> Workbench:
    """Args:
    program: a clone, which is never changed from now on.
    books: of a new compile, or of one that goes on: the prompts are then those that were set last.
    gate: every call of the agent passes it.
    seed: decides random samples that were asked for without a seed of their own.
    """
    runs = Runs(program, evaluator, books, gate.closed, gate.stopped)
    prompts = CurrentPrompts(program, books.store)
    turns = Turns(runs, books, gate)
    requests = RequestReader(data, prompts, turns, books.store, seed)
    answers = ToolAnswers(books, data, evaluator, meter, turns)
    return Workbench(
        books=books,
        gate=gate,
        meter=meter,
        runs=runs,
        prompts=prompts,
        turns=turns,
        submission=SubmissionCheck(prompts, books.emitter, gate),
        host_runs=HostRuns(runs, books, data, gate.closed),
        tools=AgentTools(requests, runs, prompts, answers, gate, books.emitter),
    )
