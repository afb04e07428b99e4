"""The agent's tools: each reads its arguments, does what they ask, and answers with a plain dict.

The tools may be called from any thread, several at once. A request that cannot be done raises an `AgentError`, which
the agent reads; anything else that goes wrong is kept in the gate, and the agent learns only that the work was stopped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.agent.current_prompts import CurrentPrompts
from rlmoptimizer.agent.program_trials import ProgramTrials
from rlmoptimizer.agent.race import Race
from rlmoptimizer.agent.race_request import RaceReader, RaceRequest
from rlmoptimizer.agent.request_reader import RequestReader, names_val
from rlmoptimizer.agent.run_comparison import compared_runs
from rlmoptimizer.agent.stopping import Ending, WorkStop
from rlmoptimizer.agent.tool_answers import ToolAnswers
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import LMsFailed
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.evaluation.run_under_way import Caller
from rlmoptimizer.evaluation.runs import Runs, is_cut_val
from rlmoptimizer.events import PromptUpdated
from rlmoptimizer.outcome.example_rows import PAGES_OF_RUNS
from rlmoptimizer.outcome.turn_rows import TurnRows

__all__ = ["AgentTools"]

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _tool(method: Callable[Concatenate[AgentTools, _P], _R]) -> Callable[Concatenate[AgentTools, _P], _R]:
    """A method that the agent calls, and that waits while a run on val is under way."""

    @functools.wraps(method)
    def call(self: AgentTools, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._gate.passing():  # pyright: ignore[reportPrivateUsage] # a method of it
            return method(self, *args, **kwargs)

    return call


class AgentTools:
    """The docstrings of these tools are what the model reads of them."""

    def __init__(
        self,
        requests: RequestReader,
        races: RaceReader,
        runs: Runs,
        prompts: CurrentPrompts,
        answers: ToolAnswers,
        trials: ProgramTrials,
        stop: WorkStop,
        accounts: Accounts,
    ) -> None:
        self._requests = requests
        self._races = races
        self._runs = runs
        self._prompts = prompts
        self._answers = answers
        self._trials = trials
        self._stop = stop
        self._gate = stop.gate
        self._accounts = accounts
        self._store = accounts.store
        self.turns = TurnRows(accounts.store)
        self._emitter = accounts.emitter

    def answer_to(self, interpreter: object) -> None:
        """From now on this interpreter's code gets the answers: long ones in pages, where it can read them."""
        self._answers.are_paged = PAGES_OF_RUNS in getattr(interpreter, "page_sources", ())

    @property
    def all(self) -> tuple[Callable[..., Any], ...]:
        """The tools, under the names that the agent knows."""
        return (
            self.evaluate_program,
            self.run_data,
            self.compare_runs,
            self.race_prompts,
            self.try_program,
            self.update_prompt,
            self.optimization_status,
        )

    def evaluate_program(
        self,
        split: Any = "train",
        limit: Any = None,
        ids: Any = None,
        sample: Any = "first",
        sample_seed: Any = None,
        failed_from_run: Any = None,
        prompts: Any = None,
        repeats: Any = 1,
        reuse: Any = False,
    ) -> dict[str, Any]:
        """Run the program on examples and score it. 1 unit per example. May run several times at once, from threads.

        split: "train", or "val": always whole, no selectors, and only totals come back; other calls wait for its end.
        ids: "3,7,12", "10-20", a list, or one number. limit: at most so many; sample: the "first", or "random" ones
        (the same again with sample_seed). failed_from_run: a run id; only what did not pass there.
        prompts: {step: text} for this run only; steps left out keep the prompt that is set.
        repeats: each example so often, 1 unit each time; a row then has scores, score is their mean, and the rest is
        the worst one's. reuse: True takes from earlier runs, for nothing, what these very prompts were scored on, and
        runs only the rest; such rows have reused: True.
        Returns {score: 0-100, standard_error: of score, evaluated_count, passed_count, error_count, run_id,
        remaining_budget, summary_line, split, config,
        examples: [{example_id, source_example_id, inputs, expected, predicted: dict or None, score: 0-1,
        passed: the score is 1, error: None or text, feedback: None or the metric's words,
        steps: [{step_index, step_name, signature_name, inputs, outputs}]}]}.
        examples of a long result is a list that reads its rows when they are touched: len, one row and a slice are
        cheap, a loop over all takes time and memory, once.
        steps has every call of a step, in the order in which they ended. Where there is something to say it also has
        feedback: the metric's on this step; truncated: True, an answer was cut at max_tokens; error: the step failed
        (outputs == {}); completion: what the model wrote, where that failed, was cut or left an output empty;
        first_completion: what it wrote first, when it was asked once more. Where there are some the totals also have
        truncated_count: examples with a cut answer, and objectives: the metric's other scores, means; each example has
        its own.
        error_kind "example_timeout": it took too long, score 0. Any other error_kind: no model was found, so it has no
        verdict, and costs nothing unless an earlier step was answered; the same call again runs what has none, and
        pays nothing twice.
        """
        given = {"limit": limit, "ids": ids, "sample": sample, "sample_seed": sample_seed}
        with self._caller_inside(alone=names_val(split)) as caller:
            request = self._requests.read_request(split, given, failed_from_run, prompts, repeats, reuse)
            return self._evaluated(request, caller) if request.rows else self._answers.no_failures(request)

    @_tool
    def run_data(self, run_id: Any, ids: Any = None) -> dict[str, Any]:
        """What the evaluation `run_id` returned, once more (without remaining_budget). ids: only these examples.

        It returns at once however long the run is; rows are read when they are touched.
        """
        return self._answers.run_data(run_id, ids)

    @_tool
    def read_page(self, key: Any, start: Any, stop: Any) -> list[dict[str, Any]]:
        """No tool, but what the agent's kernel reads the rows of long answers from; see `ExampleRows.read_page`."""
        return self._answers.rows.read_page(key, start, stop)

    @_tool
    def read_turns(self, key: Any, start: Any, stop: Any) -> list[dict[str, Any]]:
        """No tool, but what the agent's kernel reads its own earlier turns from; see `TurnRows.read_page`."""
        return self.turns.read_page(key, start, stop)

    @_tool
    def compare_runs(self, run_a: Any, run_b: Any) -> dict[str, Any]:
        """How run_b did against run_a on the examples that both evaluated, on one split.

        Returns {n, score_a, score_b: 0-100, difference: b - a in points, interval: [low, high] of 95%, better, worse,
        same: counts, p_value: sign test, summary_line}; on train also {fixed, broken: ids whose score rose or fell,
        first_changed_step: {id: step name or None}, of these, first_changed_counts: {step: count} over all}.
        """
        return compared_runs(self._store, run_a, run_b)

    def race_prompts(
        self,
        candidates: Any,
        ids: Any = None,
        limit: Any = None,
        sample: Any = "first",
        sample_seed: Any = None,
        keep: Any = 1,
        reuse: Any = False,
    ) -> dict[str, Any]:
        """Find the best of several prompts. 1 unit per example run, which is less than a run of each.

        candidates: a list of 2 to 32 {step: text} (None or {}: the current prompts). ids, limit, sample, sample_seed:
        which train examples, as in evaluate_program; all of train if none is given. All candidates run on the same
        ones, in rounds of 8, 8, 16, 32, ...; after each those leave that are beaten beyond doubt or cannot catch up,
        until `keep` are left. Refused when its worst case, len(candidates) * examples, does not fit. reuse: as in
        evaluate_program; so a race against prompts that ran on these examples before costs only the new ones.
        Returns {ranking: best first [{index: in candidates, prompts: {step: text} of every step, score: 0-100,
        evaluated_count, run_ids, left_after: the round, or None}], remaining_budget, summary_line}. The same call
        after a cut goes on, and pays nothing twice.
        """
        given = {"ids": ids, "limit": limit, "sample": sample, "sample_seed": sample_seed}
        with self._caller_inside() as caller:
            return self._raced(self._races.read(candidates, given, keep, reuse), caller)

    def try_program(self, inputs: Any, prompts: Any = None) -> dict[str, Any]:
        """Run the program once on inputs of your own, to see how the model takes a wording. 1 unit. No metric.

        inputs: {name: value} with exactly the input names of the examples. prompts: as in evaluate_program.
        Returns {outputs: what the program returned, or None, steps: as in evaluate_program, error: None or text,
        remaining_budget}. With an error_kind no model was found; it costs nothing unless a step was answered.
        """
        with self._caller_inside() as caller:
            return self._trials.answer(inputs, prompts, caller)

    @_tool
    def update_prompt(self, step: Any, text: Any) -> dict[str, Any]:
        """Replace the whole prompt of one step from now on. text: complete, at most 100,000 characters.

        Returns {step, changed, previous_text, summary_line}.
        """
        before, after = self._prompts.update(step, text)
        if after != before:
            self._emitter.emit(PromptUpdated(step, before, after))
        return self._answers.update(step, before, changed=after != before)

    @_tool
    def optimization_status(self) -> dict[str, Any]:
        """Where the optimization stands.

        Returns {remaining_budget, cost_usd, remaining_cost_usd, best_score: 0-100, best_run_id, latest_run_id,
        baseline_run_id, baseline_val_run_id, current_prompts: {step: text}, best_prompts: {step: text}, steps: [name],
        candidates: best first [{candidate: an id, is_current, changed_steps, train_evaluated, train_passed: different
        rows in all runs together, train_score, val_score: 0-100 or None, run_ids}],
        runs: [{run_id, split, score: 0-100, standard_error, evaluated_count, passed_count, error_count}], and further
        counts}; with max_seconds also remaining_seconds. "best" is by score on val, or on the whole of train when there
        is no val.
        """
        left = self._stop.seconds_left
        status = self._answers.status(self._prompts.current, self._prompts.original)
        return status | ({} if left is None else {"remaining_seconds": left})

    @contextmanager
    def _caller_inside(self, *, alone: bool = False) -> Generator[Caller]:
        """Inside the gate for the block, for the kernel and turn that ask now; a run may begin in a later turn."""
        caller = self._runs.caller()
        with self._gate.passing(alone=alone):
            if caller.is_gone:  # while the call waited
                raise OptimizationStopped
            yield caller

    def _raced(self, request: RaceRequest, caller: Caller) -> dict[str, Any]:
        def check() -> None:
            self._gate.check()
            if caller.is_gone:
                raise OptimizationStopped

        race = Race(request, self._runs, self._accounts, caller, check)
        race.run()
        if race.failure is not None:
            raise self._answers.lm_unavailable(*race.failure) from None
        answer = self._answers.race(race.answer())
        self._stop.look()  # the agent gets this answer and no other
        return answer

    def _evaluated(self, request: Request, caller: Caller) -> dict[str, Any]:
        if request.split == "val":
            self._stop.check_time(self._runs.needs(request, caller)[1])
        try:
            record = self._runs.paid(request, caller)
        except LMsFailed as failed:
            raise self._answers.lm_unavailable(request, failed) from None
        self._gate.check()  # a run that was cut short is no answer
        if is_cut_val(record):
            # By max_cost_usd. Any figure of units or dollars would now say how far it came.
            self._stop.end(Ending("max_cost_usd", "max_cost_usd is used up"))
            self._gate.check()
        answer = self._answers.run(record, remaining=record.budget_left, heard=not caller.is_gone)
        self._stop.look()  # the agent gets this answer and no other
        return answer
