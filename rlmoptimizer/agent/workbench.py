"""What the agent of one compile works with, put together."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

from dataclasses import dataclass

import dspy

from rlmoptimizer.agent.call_gate import Gate
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.requests import RequestReader
from rlmoptimizer.agent.submission import SubmissionCheck
from rlmoptimizer.agent.tool_answers import ToolAnswers
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.host_runs import evaluate_baseline, finish_val_runs
from rlmoptimizer.evaluation.runs import Books, Runs
from rlmoptimizer.events import Split
from rlmoptimizer.records import RunRecord
from rlmoptimizer.task.dataset import Dataset

__all__ = ["Workbench", "make_workbench"]


@dataclass(frozen=True, slots=True)
class Workbench:
    """The parts, each with one owner's job. The program itself stays with `runs`."""

    data: Dataset
    books: Books
    gate: Gate
    meter: SubLMMeter
    runs: Runs
    prompts: CurrentPrompts
    turns: Turns
    submission: SubmissionCheck
    tools: AgentTools

    def evaluate_baseline(self) -> dict[Split, RunRecord]:
        """See there."""
        return evaluate_baseline(self.runs, self.books, self.data, self.prompts.original, self.gate.closed)

    def finish_val_runs(self) -> None:
        """See there."""
        finish_val_runs(
            self.runs, self.books, self.data, self.prompts.stored, lambda: self.gate.turn(alone=True)
        )


def make_workbench(
    program: dspy.Module,
    data: Dataset,
    evaluator: Evaluator,
    books: Books,
    meter: SubLMMeter,
    gate: Gate,
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
        data=data,
        books=books,
        gate=gate,
        meter=meter,
        runs=runs,
        prompts=prompts,
        turns=turns,
        submission=SubmissionCheck(prompts, books.emitter, gate),
        tools=AgentTools(requests, runs, prompts, answers, gate),
    )
