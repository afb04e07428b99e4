"""The workbench: the agent's tools as plain methods. Validates, reserves, does, records, answers; knows no kernel.

The tools may be called from any thread, several at once. A request that cannot be done raises an `AgentError`, which
the agent reads; anything else that goes wrong is kept in `failure`, the agent is told only that the work was stopped.
"""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import dspy

from rlmoptimizer.agent import tool_answers as answers
from rlmoptimizer.agent.call_gate import Gate, OptimizationStopped
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.submission import SUBMISSION_FIELD, read_submission
from rlmoptimizer.errors import (
    BudgetExceededError,
    CostExceededError,
    CostLimitReached,
    LMUnavailable,
    PromptUpdateError,
    SelectionError,
    SubmissionError,
    UnknownRunError,
)
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.run_warnings import warn_of_failed_lms
from rlmoptimizer.evaluation.runs import Asked, Caller, Kernel, Runs
from rlmoptimizer.events import Emitter, LMUsageCounted, PromptUpdated, Split, SubmissionRefused
from rlmoptimizer.records import RunRecord, best_run, dollars, usage_dict
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Dataset, Row, Selection, parse_selection, select
from rlmoptimizer.task.program import apply_prompts, clone, fingerprint, read_prompts, set_prompt, step_names
from rlmoptimizer.task.seeds import drawn_seed
from rlmoptimizer.text import brief

__all__ = ["Workbench"]

_LONGEST_PROMPT = 100_000  # characters of a prompt of the agent's; of a student's own they may be more
# What setting prompts, which costs nothing, may make of the run store.
_MOST_UPDATES = 10_000
_MOST_PROMPT_BYTES = 64_000_000
_LONGEST_NAME = 100  # characters of what may be a split, a run id or a step
_CUT_SECONDS = 20.0  # how long the agent's next turn waits for the examples under way in evaluations that were cut

_P = ParamSpec("_P")
_R = TypeVar("_R")


def _tool(method: Callable[Concatenate[Workbench, _P], _R]) -> Callable[Concatenate[Workbench, _P], _R]:
    """A method that the agent calls, and that waits while a run on val is under way."""

    @functools.wraps(method)
    def call(self: Workbench, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        with self._gate.passing():  # pyright: ignore[reportPrivateUsage] # a method of it
            return method(self, *args, **kwargs)

    return call


class Workbench:
    """Owns the program being worked on, and is the only one that spends the budget on examples.

    Args:
        program: a clone that the workbench may change.
        store: a new one, or one whose run goes on: the prompts are then those that were set last.
        seed: decides random samples that were asked for without a seed of their own.
        gate: every call of the agent passes it.
        costs: what the LM calls cost, and may cost.
    """

    def __init__(
        self,
        program: dspy.Module,
        data: Dataset,
        *,
        evaluator: Evaluator,
        ledger: UnitLedger,
        meter: SubLMMeter,
        store: RunStore,
        emitter: Emitter,
        gate: Gate,
        seed: int,
        num_threads: int,
        costs: CostLedger | None = None,
    ) -> None:
        self._program = program
        self._fingerprint = fingerprint(program)
        self._data = data
        self._ledger = ledger
        self._meter = meter
        self._store = store
        self._emitter = emitter
        self._gate = gate
        self._costs = costs if costs is not None else CostLedger()
        self._evaluator = evaluator
        self._told_of_strays = False
        self._told_of_failed_lms = False
        self._runs = Runs(evaluator, store, ledger, self._costs, emitter, gate.closed, gate.stopped)
        self._seed = seed
        self._num_threads = num_threads
        self._lock = threading.Lock()  # of the program's prompts
        self._cut: tuple[str, ...] = ()  # runs that a dying kernel left behind; written by the agent's loop
        self._kernel_died = False  # in this turn
        self.steps = step_names(program)
        self._longest_prompt = max(_LONGEST_PROMPT, *map(len, read_prompts(program).values()))
        self.root_lm_calls = len(store.iterations())  # turns, earlier processes' too; written by the agent's loop
        self._updates, self._prompt_bytes = store.prompts_set()  # guarded by `_lock`
        set_before = store.prompts()
        if set_before is None:
            store.set_prompts(read_prompts(program))
        else:
            apply_prompts(program, set_before)

    # what the host asks

    @property
    def failure(self) -> BaseException | None:
        """What went wrong that is not the agent's to mend; `compile()` raises it."""
        return self._gate.failure

    @property
    def unaffordable(self) -> str | None:
        """Why the root LM may not be asked once more; None: it may."""
        try:
            self._costs.check("root")
        except CostExceededError as refused:
            return str(refused)
        return None

    @property
    def left(self) -> int:
        """Budget units left."""
        return self._ledger.left

    @property
    def _turn(self) -> int:
        return self.root_lm_calls

    @property
    def agent_tools(self) -> tuple[Callable[..., Any], ...]:
        """The tools, under the names that the agent knows."""
        return self.evaluate_program, self.run_data, self.update_prompt, self.optimization_status

    def begin_turn(self, code: str) -> None:
        """The agent's code is about to run."""
        self._store.begin_iteration(code)

    def record_turn(
        self, reasoning: str, code: str, output: str, seconds: float, submission: Mapping[str, Any] | None = None
    ) -> None:
        """Keep one turn of the agent, and with it what it submitted, if it did."""
        answered = not self._kernel_died
        self._store.record_iteration(
            reasoning,
            code,
            output,
            seconds=seconds,
            answered=answered,
            val_given=self._runs.given(),
            submission=submission,
        )
        if answered:
            self._runs.turn_ended()
        self._kernel_died = False
        self._tell_usage()

    def kernel_died(self) -> None:
        """The agent's kernel is gone, and with it whoever waits: evaluations on train are cut, and none begins."""
        self._kernel_died = True
        self._cut = tuple(run_id for run_id, _ in self._runs.under_way())
        self._runs.kernel_died()
        self._gate.send_away()

    def cut_runs(self) -> list[str]:
        """One line for each evaluation that was under way at the last death of the kernel; once."""
        cut, self._cut = self._cut, ()
        if cut:
            self._runs.wait_cut(_CUT_SECONDS)
        return [answers.cut_line(self._store.run(run_id)) for run_id in cut]

    def evaluate_baseline(self, program: dspy.Module) -> dict[Split, RunRecord]:
        """Evaluate `program`, as it was given, on every split; costs no units, and what is done is not done again.

        Raises `CostLimitReached`, and the LM's own error when it failed on every example.
        """
        splits: dict[Split, tuple[Row, ...]] = {"train": self._data.train}
        if self._data.val is not None:
            splits["val"] = self._data.val
        baselines: dict[Split, RunRecord] = {
            split: self._baseline_run(program, rows, split)
            for split, rows in splits.items()
            if not self._gate.closed.is_set()
        }
        self._tell_usage()
        return baselines

    def finish_val_runs(self) -> None:
        """Bring the runs on val to their end that were cut when an earlier process ended: none is seen in parts.

        What cannot be paid or answered stays cut, and is not told.
        """
        cut = [run for run in self._store.runs() if not run.baseline and _is_cut_val(run)]
        for record in cut:
            asked = Asked("val", self._data.val or (), dict(record.config), Selection().as_config(), record.turn)
            with (
                contextlib.suppress(BudgetExceededError, CostExceededError, LMsFailed),
                self._gate.turn(alone=True),  # somebody may be at a console already
            ):
                # Asked by no kernel, so that the agent may still ask for it.
                self._runs.paid(self._candidate(record.prompts), asked, self._data.val or (), (Kernel(), 0))

    def best_run(self) -> RunRecord | None:
        """The finished run with the best score on val, or on the whole of train without a validation set.

        The earliest one of equals, so a change that gains nothing never replaces what was there.
        """
        split, rows = self._data.scored
        return best_run(self._store.runs(), split, len(rows))

    def check_submission(self, fields: Mapping[str, Any]) -> dict[str, str]:
        """The prompts in the fields of a SUBMIT call, in the order of the steps.

        Raises `SubmissionError`, also for a text that the program cannot take.
        """
        try:
            prompts = read_submission(fields.get(SUBMISSION_FIELD), self.steps)
            try:
                for step, text in prompts.items():
                    self._check_prompt(step, text)
                candidate = self._candidate(prompts)
            except PromptUpdateError as refused:
                raise SubmissionError(f"the text for step {refused.step!r} cannot be used: {refused.reason}") from None
            if fingerprint(candidate) != self._fingerprint:
                raise SubmissionError("more than the instructions would change; submit other texts")
        except SubmissionError as refused:
            self._emitter.emit(SubmissionRefused(str(refused)))
            raise
        return prompts

    def wait_quiet(self) -> None:
        """Wait while a run on val is under way."""
        self._gate.wait_quiet()

    def cancel(self) -> None:
        """Start nothing more: evaluations under way end with the examples that are running, but for a run on val."""
        self._gate.close()

    def stop(self) -> None:
        """As `cancel`, and a run on val ends too."""
        self._gate.stop()

    def wait_idle(self, seconds: float) -> bool:
        """Wait for tool calls under way, for a run on val without limit; call `cancel` or `stop` first.

        False: it gave up.
        """
        return self._gate.wait_empty(seconds)

    # what the agent calls; these docstrings are what the model reads

    def evaluate_program(
        self,
        split: Any = "train",
        limit: Any = None,
        ids: Any = None,
        sample: Any = "first",
        sample_seed: Any = None,
        failed_from_run: Any = None,
        prompts: Any = None,
    ) -> dict[str, Any]:
        """Run the program on examples and score it. Costs 1 budget unit per example; refused whole if it does not fit.
        An example whose LM fails has no verdict; it costs nothing, or 1 once if it shows what was answered before.

        split: "train", or "val": always the whole set, and only totals come back (examples == []).
        limit: at most so many examples. sample: which ones, "first" or "random" (repeatable with sample_seed).
        ids: which examples: "3,7,12", "10-20", a list, or one number.
        failed_from_run: only examples that did not pass in that run; if all passed, nothing is run or spent.
        prompts: {step: text} to try in this run only, without setting them.
        Returns {score: 0-100, evaluated_count, passed_count, run_id, remaining_budget, summary_line, split, config,
        examples: [{example_id, source_example_id, inputs, expected, predicted, score: 0-1, passed, error, feedback,
        steps: [{step_index, step_name, signature_name, inputs, outputs}]}]}. A step that failed has outputs == {}, an
        error, and, where its LM answered, the completion that could not be used.
        Several calls may run at once, from threads; while val is evaluated every other call waits for its end.
        """
        given = {"limit": limit, "ids": ids, "sample": sample, "sample_seed": sample_seed}
        kernel = self._runs.kernel
        turn = kernel.turns  # the one in which somebody waits for the answer; the run may begin in a later one
        with self._gate.passing(alone=_names_val(split)):
            if kernel.gone.is_set():  # while the call waited
                raise OptimizationStopped
            return self._evaluate((kernel, turn), split, given, failed_from_run, prompts)

    def _evaluate(
        self, caller: Caller, split: Any, given: Mapping[str, Any], failed_from_run: Any, prompts: Any
    ) -> dict[str, Any]:
        which = _read_split(split, self._data)
        candidate_prompts = self._read_candidate(prompts)
        candidate = self._candidate(candidate_prompts or {})
        if which == "val":
            ignored = [name for name, value in given.items() if value is not None and value != "first"]
            ignored += ["failed_from_run"] if failed_from_run is not None else []
            config = _config(which, Selection(), candidate_prompts, ignored)
            asked = Asked(which, self._data.val or (), config, Selection().as_config(), self._turn)
            return self._evaluated(candidate, asked, self._data.val or (), caller)
        wanted = parse_selection(failed_from_run=failed_from_run, rows=len(self._data.train), **given)
        failed = None if wanted.failed_from_run is None else self._failed_ids(wanted.failed_from_run)

        def draw(begun: int) -> Asked:
            selection = self._with_seed(candidate, wanted, begun)
            config = _config(which, selection, candidate_prompts, ())
            rows = select(self._data.train, selection, failed)
            return Asked(which, rows, config, wanted.as_config(), self._turn)

        asked = draw(0)
        if not asked.rows:
            source = str(wanted.failed_from_run)
            return answers.empty_answer(asked.config, failed_from_run=source, remaining=self._ledger.left)
        if wanted.sample == "random" and wanted.sample_seed is None:
            asked = replace(asked, draw=draw)
        return self._evaluated(candidate, asked, self._data.train, caller)

    @_tool
    def run_data(self, run_id: Any) -> dict[str, Any]:
        """What the evaluation `run_id` returned, in the same shape (without remaining_budget). Costs nothing."""
        record = self._ended_run(run_id)
        return self._answer(record, remaining=None)

    @_tool
    def update_prompt(self, step: Any, text: Any) -> dict[str, Any]:
        """Replace the whole prompt of one step from now on. Costs nothing.

        step: a name from program_steps. text: the complete new prompt, not an addition; at most 100,000 characters.
        Returns {step, changed, previous_text, summary_line}.
        """
        self._check_prompt(step, text)
        with self._lock:
            before = read_prompts(self._program)[step]
            set_prompt(self._program, step, text)
            after = read_prompts(self._program)
            changed = after[step] != before
            if changed:
                try:
                    self._keep_prompts(step, after)
                except PromptUpdateError:
                    set_prompt(self._program, step, before)
                    raise
        if changed:
            self._emitter.emit(PromptUpdated(step, before, after[step]))
        return {
            "step": step,
            "changed": changed,
            "previous_text": before,
            "summary_line": f"step {step} " + ("has a new prompt" if changed else "had this very prompt already"),
        }

    @_tool
    def optimization_status(self) -> dict[str, Any]:
        """Where the optimization stands. Costs nothing.

        Returns {remaining_budget, budget, spent_budget, reserved_budget, evaluated_examples, root_lm_calls,
        sub_lm_calls, num_threads, cost_usd, remaining_cost_usd, best_score: 0-100, best_run_id, latest_run_id,
        baseline_run_id, baseline_val_run_id, current_prompts: {step: text}, best_prompts: {step: text}, steps: [name],
        runs: [{run_id, split, score: 0-100, evaluated_count, passed_count}]}.
        "best" is by score on val, or on the whole of train when there is no validation set. cost_usd is None when a
        price is not known, remaining_cost_usd when there is no limit on it.
        """
        with self._lock:
            current = read_prompts(self._program)
        return answers.status_answer(
            budget=self._ledger.state(),
            runs=[record for record in self._store.runs() if record.state != "running" and not _is_cut_val(record)],
            best=self.best_run(),
            current_prompts=current,
            root_lm_calls=self.root_lm_calls,
            sub_lm_calls=self._meter.calls,
            num_threads=self._num_threads,
            usage=self._costs.usage(),
            costs=self._costs.state(),
        )

    # how it is done

    def _keep_prompts(self, step: str, prompts: Mapping[str, str]) -> None:
        if self._updates >= _MOST_UPDATES or self._prompt_bytes >= _MOST_PROMPT_BYTES:
            raise PromptUpdateError(
                step,
                f"prompts were set {self._updates:,} times, and {self._prompt_bytes:,} bytes of them are kept; no more "
                f"are (at most {_MOST_UPDATES:,} times or {_MOST_PROMPT_BYTES:,} bytes). "
                "evaluate_program(prompts=...) still takes others, and so does SUBMIT",
            )
        self._prompt_bytes += self._store.set_prompts(prompts)
        self._updates += 1

    def _tell_usage(self) -> None:
        self._emitter.emit(LMUsageCounted(usage_dict(self._costs.usage())))

    def _baseline_run(self, program: dspy.Module, rows: tuple[Row, ...], split: Split) -> RunRecord:
        done = 0
        record = failure = None
        try:
            asked = Asked(split, rows, _config(split, Selection(), None, ()), Selection().as_config())
            record = self._runs.free(program, asked)
            done = record.evaluated_count
        except CostExceededError:
            pass
        except LMsFailed as failed:
            failure = failed.__cause__
        if failure is not None:  # here, so that ours is no context of it
            raise failure
        costs = self._costs.state()
        if done < len(rows) and costs.limit is not None and (record is None or self._costs.reached):
            raise CostLimitReached(
                dollars(costs.limit), dollars(costs.spent), done=done, total=len(rows), split=split
            )
        assert record is not None  # refused only where there is a limit
        self._tell_of_failed_lms(record.run_id)
        return record

    def _evaluated(self, candidate: dspy.Module, asked: Asked, source: Sequence[Row], caller: Caller) -> dict[str, Any]:
        try:
            record = self._runs.paid(candidate, asked, source, caller)
        except LMsFailed as failed:
            self._tell_of_failed_lms(failed.run_id)
            raise self._lm_unavailable(asked, failed) from None
        self._tell_of_failed_lms(record.run_id)
        self._gate.check()  # a run that was cut short is no answer
        if _is_cut_val(record):
            # By max_cost_usd. Whatever is told of units and dollars now would tell how far it came.
            self._gate.refuse_all(_used_up)
            raise _used_up()
        return self._answer(record, remaining=record.budget_left)

    def _answer(self, record: RunRecord, *, remaining: int | None) -> dict[str, Any]:
        results = self._store.examples(record.run_id) if record.split == "train" else ()
        kinds = self._store.error_kinds(record.run_id) if record.unanswered_count else None
        costs = None if remaining is None else self._costs.state()
        note = self._note()
        return answers.run_answer(
            record,
            results,
            remaining=remaining,
            costs=costs,
            error_kinds=kinds,
            paid_unanswered=self._paid_unanswered(record.split, record.run_id) if record.unanswered_count else 0,
            note=note,
        )

    def _tell_of_failed_lms(self, run_id: str | None) -> None:
        if run_id is None:
            return
        with self._lock:
            self._told_of_failed_lms = self._told_of_failed_lms or warn_of_failed_lms(self._store, run_id)

    def _note(self) -> str | None:
        """What the agent must know about the program and has not been told; None: nothing."""
        with self._lock:
            if not self._evaluator.strays or self._told_of_strays:
                return None
            self._told_of_strays = True
        return (
            "note that the program calls steps in threads of its own without DSPy's settings: those calls are answered "
            "by another LM than the others, and are not in `steps`"
        )

    def _lm_unavailable(self, asked: Asked, failed: LMsFailed) -> LMUnavailable:
        run_id = failed.run_id or "?"
        cause = failed.__cause__
        if asked.split == "train":
            told = f"{type(cause).__name__}: {cause}"
        else:  # an LM's message may quote what it was asked, and the error is that of one example
            told = answers.kinds_text(self._store.error_kinds(run_id))
        return LMUnavailable(run_id, len(asked.rows), told, self._paid_unanswered(asked.split, run_id))

    def _paid_unanswered(self, split: str, run_id: str) -> int:
        """How many examples of a run were paid and have no verdict."""
        return len(self._store.shown_ids(run_id)) if split == "train" else 0

    def _candidate(self, prompts: Mapping[str, str]) -> dspy.Module:
        """A clone with the prompts that are set now, and `prompts` on top."""
        with self._lock:
            candidate = clone(self._program)
        if prompts:
            apply_prompts(candidate, prompts)
        return candidate

    def _read_candidate(self, prompts: Any) -> dict[str, str] | None:
        """The `prompts` argument of `evaluate_program`; what else is wrong with a text is found when it is applied."""
        if prompts is None:
            return None
        if not isinstance(prompts, Mapping):
            raise PromptUpdateError("prompts", f"prompts must be a dict {{step: text}}, got {type(prompts).__name__}")
        given = dict(cast("Mapping[Any, Any]", prompts))
        for step, text in given.items():
            self._check_prompt(step, text)
        return given

    def _check_prompt(self, step: Any, text: Any) -> None:
        """Raise `PromptUpdateError` for a step that there is not, or a text that is too long as it is or becomes."""
        if not isinstance(step, str) or step not in self.steps:
            raise PromptUpdateError(_name(step), f"there is no such step; the steps are {', '.join(self.steps)}")
        if not isinstance(text, str):
            return
        most, length, became = self._longest_prompt, len(text), ""
        if length <= most < length + 7 * text.count("\t"):
            length, became = len(text.expandtabs()), " once its tabs are spaces, as DSPy makes them"
        if length > most:
            raise PromptUpdateError(step, f"the text has {length:,} characters{became}, and at most {most:,} are taken")

    def _with_seed(self, candidate: dspy.Module, selection: Selection, begun: int) -> Selection:
        """The selection with a seed of its own if it needs one and has none; `begun` runs answered the same request.

        It goes into the run's config, so that the agent can ask for the same sample again. It depends on the request
        and on how often a run was begun for it, not on what else happened: threads and interruptions change nothing.
        """
        if selection.sample != "random" or selection.sample_seed is not None:
            return selection
        key = encode([selection.as_config(), read_prompts(candidate)])
        return replace(selection, sample_seed=drawn_seed(self._seed, "sample", key, begun))

    def _ended_run(self, run_id: Any) -> RunRecord:
        if not isinstance(run_id, str) or len(run_id) > _LONGEST_NAME:
            raise UnknownRunError(_name(run_id), [record.run_id for record in self._store.runs()])
        record = self._store.run(run_id)
        if record.state == "running":
            raise SelectionError(f"run {run_id} is still being evaluated; ask again when it has ended")
        if _is_cut_val(record):
            raise SelectionError(
                f"run {run_id} on val was cut, and val is told whole or not at all; the same call of evaluate_program "
                "goes on with the rest of it"
            )
        return record

    def _failed_ids(self, run_id: str) -> tuple[str, ...]:
        return self._store.failed_ids(self._ended_run(run_id).run_id)


def _is_cut_val(record: RunRecord) -> bool:
    return record.split == "val" and record.state == "cancelled"


def _used_up() -> CostExceededError:
    return CostExceededError(0.0, 0.0, "validate")


def _names_val(split: Any) -> bool:
    return isinstance(split, str) and len(split) <= _LONGEST_NAME and split.strip().lower() == "val"


def _read_split(split: Any, data: Dataset) -> Split:
    name = split.strip().lower() if isinstance(split, str) and len(split) <= _LONGEST_NAME else split
    if name == "train":
        return "train"
    if name == "val" and data.val is not None:
        return "val"
    if name == "val":
        raise SelectionError('there is no validation set in this optimization; use split="train"')
    raise SelectionError(f'split must be "train" or "val", got {brief(split, 100)}')


def _name(given: Any) -> str:
    return given[:_LONGEST_NAME] if isinstance(given, str) else brief(given, _LONGEST_NAME)


def _config(
    split: Split, selection: Selection, prompts: Mapping[str, str] | None, ignored: Sequence[str]
) -> dict[str, Any]:
    """What a run was asked to be, in the words of `evaluate_program`."""
    return {
        "split": split,
        **selection.as_config(),
        "prompts": None if prompts is None else dict(prompts),
        "ignored": list(ignored),
    }
