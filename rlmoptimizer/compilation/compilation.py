"""One compile: every part of it, put together, worked with, and taken apart again. Knows one run store, not which."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextvars
import dataclasses
import itertools
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import dspy
from dspy.primitives.code_interpreter import CodeInterpreter

from kernel_bridge.text import printable
from rlmoptimizer.agent import tool_answers as answers
from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.kernels import AgentKernels, InterpreterFactory, kernel_started
from rlmoptimizer.agent.llm_tools import PURPOSE, SubLMMeter
from rlmoptimizer.agent.rlm_agent import Agent, AgentLimits, AgentOutcome
from rlmoptimizer.agent.submission import SUBMISSION_FIELD
from rlmoptimizer.agent.task_facts import describe_steps, describe_task
from rlmoptimizer.agent.workbench import make_workbench
from rlmoptimizer.compilation.result import Outcome, finished_program, trajectory_of
from rlmoptimizer.compilation.resume import namespace_text, take_up
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.errors import SubmissionError
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.run_warnings import warn_of_a_dead_baseline
from rlmoptimizer.evaluation.runs import Books
from rlmoptimizer.evaluation.wait_monitor import Pending, Waited, WaitMonitor
from rlmoptimizer.events import (
    AgentSubmitted,
    CompileFinished,
    CompileResumed,
    CompileStarted,
    Emitter,
    Event,
    ExamplesScored,
    FellBack,
    PromptUpdated,
    Split,
    StillWaiting,
    SubmissionRefused,
    TurnFinished,
)
from rlmoptimizer.lms.failures import asked_as
from rlmoptimizer.lms.root_session import root_session
from rlmoptimizer.records import RunRecord, best_run, total_usd, usage_dict
from rlmoptimizer.show.display import Display
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.program import clone

__all__ = ["Compilation"]

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 600.0  # how long the end of a compile waits for evaluations under way
_HURRIED_SECONDS = 2.0
_STALL_SECONDS = 60.0  # after so long without an example, an answer or a kernel, a line says what is waited for
_MOST_REFUSALS = 1000  # submissions refused that are kept as events


class Compilation:
    """Made with all its parts in the order in which they need each other; `stack` ends them in reverse.

    Args:
        store: a new one, or one that is gone on with; its setup is this one's.
        namespace: where the agent's variables are kept for another process to go on with; None: nowhere, for
            no other one will.
    """

    def __init__(self, setup: Setup, store: RunStore, namespace: Path | None, stack: ExitStack) -> None:
        options = setup.settings
        self.options = options
        self.student = student = setup.student
        self.data = data = setup.data
        self.metric = setup.metric
        self.store = store
        recorded = store.setup()
        assert recorded is not None  # when the store was opened
        self._resumable = namespace is not None
        self._sub_lm = options.sub_or_root_lm
        self._gave_up = False  # on evaluations that hang
        self.past = take_up(store)
        gate = CallGate(on_failure=lambda: self.kernels.interrupt())
        lms = {id(lm): lm for users in setup.lms().values() for lm in users}
        self.usage = UsageMeter(CostLedger(options.max_cost_usd, journal=store), lms.values(), gate.fail)
        stack.callback(self.usage.close)
        # The LM and adapter that are set for the agent's turns must not reach the program.
        with self.usage.role("eval"):
            context = contextvars.copy_context()
        self.waits = WaitMonitor(self._tell_of_wait, _STALL_SECONDS)
        self.evaluator = stack.enter_context(
            Evaluator(setup.metric, setup.eval_lm, options.num_threads, context=context, waits=self.waits)
        )
        self.evaluator.metric_works = store.metric_works()
        display = Display(verbose=options.verbose)
        stack.callback(display.close)
        self.emitter = Emitter([_recorder(store), display])
        stack.callback(self.emitter.close)
        stack.callback(self.waits.close)
        val_count = len(data.val or ())
        self.ledger = UnitLedger(options.max_iterations * len(data.train) + val_count, journal=store)
        self.meter = SubLMMeter(
            options.rlm_max_llm_calls,
            self.ledger,
            self.emitter,
            gate,
            self.usage,
            calls=store.spent(PURPOSE),
            waiting=lambda count: self.waits.watch(("sub", self._sub_lm.model), count),
        )
        books = Books(store, self.ledger, self.usage.ledger, self.emitter)
        self.bench = make_workbench(
            clone(student), data, self.evaluator, books, self.meter, gate, recorded["drawn_seed"]
        )
        self.kernels = AgentKernels(
            _kernel_factory(options.kernel),
            self.bench.submission.validate,
            on_death=self._kernel_died,
            checkpoint_file=namespace,
            sub_agents=self.meter.check if options.sub_agents else None,
        )
        # Ended in this order: nothing new starts, the kernels go, what was under way is waited for.
        stack.push(self._wait_idle)
        stack.callback(self.kernels.close)
        stack.push(self._call_off)
        self.emitter.emit(CompileStarted(self.bench.prompts.steps, len(data.train), val_count, self.ledger.limit))
        if self.past.runs:
            self.emitter.emit(CompileResumed(len(self.past.turns), len(self.past.runs), self.ledger.left))

    def run(self) -> dspy.Module:
        baselines, agent_outcome = self._worked()
        # What the agent's threads have begun ends now, so that the result does not depend on when it is looked at.
        self.bench.gate.close()
        self._come_to_rest(_IDLE_SECONDS)
        self.kernels.close()  # its variables are kept no longer
        prompts = self._choose(agent_outcome)
        self.usage.ledger.flush()
        usage = self.usage.ledger.usage()
        outcome = Outcome(
            prompts, agent_outcome.problem, agent_outcome.final_reasoning, usage_dict(usage), total_usd(usage)
        )
        split, rows = self.data.scored
        result = finished_program(self.student, self.store, outcome, (split, len(rows)))
        outcome.record(self.store)
        best = self._best_run()
        self.emitter.emit(
            CompileFinished(
                baselines[split].score,
                None if best is None else best.score,
                self.ledger.spent,
                self.bench.turns.count,
                outcome.usage,
            )
        )
        return result

    # its end

    def _call_off(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self.bench.gate.stop()
        if _hurried(kind):
            self.evaluator.abort()

    def _wait_idle(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        self._come_to_rest(_HURRIED_SECONDS if _hurried(kind) else _IDLE_SECONDS)

    def _come_to_rest(self, seconds: float) -> None:
        """Wait for what is under way, once: what was given up is waited for by nobody any more."""
        if not self._gave_up and not self.bench.gate.wait_empty(seconds):
            self._gave_up = True
            self.evaluator.close(wait=False)

    # the agent

    def _worked(self) -> tuple[Mapping[Split, RunRecord], AgentOutcome]:
        """The agent's work, or as much of it as earlier processes have left to do."""
        turns = self.past.turns
        if self.past.submission is not None:
            return self._known_baselines(), self._submitted_before()
        if len(turns) >= self.options.rlm_max_iterations:
            baselines = self._known_baselines()
            self._finish_val_runs()
            with self._agent(1) as agent:
                return baselines, agent.conclude(**self._inputs(baselines, "The REPL has ended."))
        self.kernels.start(on_failure=self.bench.gate.close)
        with asked_as("eval"):
            baselines = self._known_baselines() if turns else self.bench.host_runs.baseline(self.bench.prompts.original)
        if self.bench.gate.failure is not None:
            raise self.bench.gate.failure
        with self.waits.watch(("kernel", "")):
            interpreter = self.kernels.wait_started()
        self.emitter.emit(kernel_started(interpreter))
        if not turns:
            warn_of_a_dead_baseline(self.store, baselines["train"])
        self._finish_val_runs()
        with self._agent(self.options.rlm_max_iterations - len(turns)) as agent:
            inputs = self._inputs(baselines, namespace_text(interpreter, agent.signature.input_fields))
            return baselines, agent.work(interpreter_factory=cast("Any", self.kernels), **inputs)

    def _finish_val_runs(self) -> None:
        """What a process left half done on val is whole before the agent sees a figure again."""
        self.bench.host_runs.finish_val(self.bench.prompts.stored, lambda: self.bench.gate.turn(alone=True))
        self.past = dataclasses.replace(self.past, runs=tuple(self.store.runs()))

    def _known_baselines(self) -> dict[Split, RunRecord]:
        """Those that were made before the agent's first turn."""
        runs = [run for run in self.past.runs if run.baseline and run.state == "finished"]
        return {cast("Split", run.split): run for run in runs}

    def _submitted_before(self) -> AgentOutcome:
        reasoning = self.past.turns[-1].reasoning if self.past.turns else ""
        try:
            prompts = self.bench.submission.prompts_in({SUBMISSION_FIELD: self.past.submission})
            return AgentOutcome(prompts, None, reasoning)
        except SubmissionError as refused:
            return AgentOutcome(None, f"the submission that was stored is not valid: {refused}", reasoning)

    @contextmanager
    def _agent(self, turns: int) -> Generator[Agent]:
        options = self.options
        with root_session(
            options.root_lm,
            stateful=options.root_stateful_session,
            multiturn_history=options.rlm_multiturn_history,
            max_output_chars=options.rlm_max_output_chars,
            asking=self._asking_root,
        ) as session:
            agent = Agent(
                self.bench,
                sub_lm=self._sub_lm,
                interpreter_factory=cast("Any", self.kernels),
                limits=AgentLimits(turns, options.rlm_max_llm_calls, options.rlm_max_output_chars),
                sub_agents=options.sub_agents,
                earlier=trajectory_of(self.store),
                resumable=self._resumable,
            )
            session.attach(agent)
            yield agent

    @contextmanager
    def _asking_root(self) -> Generator[None]:
        with asked_as("root"), self.usage.calling("root"), self.waits.watch(("root", self.options.root_lm.model)):
            yield

    def _tell_of_wait(self, waited: Waited, pending: Pending, seconds: float) -> None:
        kind, name = waited
        count, names = pending
        self.emitter.emit(StillWaiting(cast("Any", kind), name, count, tuple(names), seconds))

    def _inputs(self, baselines: Mapping[Split, RunRecord], namespace: str) -> dict[str, Any]:
        options = self.options
        return {
            "program_steps": describe_steps(self.student),
            "baseline_runs": {
                split: answers.run_totals(baselines[split]) if split in baselines else None
                for split in ("train", "val")
            },
            "task_facts": describe_task(
                self.student,
                self.metric,
                self.data,
                budget=self.ledger.limit,
                num_threads=options.num_threads,
                max_turns=options.rlm_max_iterations,
                max_llm_calls=options.rlm_max_llm_calls,
                max_cost_usd=options.max_cost_usd,
            ),
            "previous_trajectory": self.past.trajectory(),
            "work_so_far": self.past.summary(
                max_turns=options.rlm_max_iterations, budget_left=self.ledger.left, namespace=namespace
            )
            if self.past.turns
            else "",
        }

    def _kernel_died(self) -> str:
        self.bench.turns.kernel_died()
        untouched = "What is on the host is untouched: budget, runs, prompts and everything that tool calls did."
        return "\n".join([untouched, *map(answers.cut_line, self.bench.turns.cut_runs())])

    # the choice

    def _choose(self, outcome: AgentOutcome) -> dict[str, str]:
        """The submitted prompts, else those of the best run."""
        if outcome.prompts is not None:
            self.emitter.emit(AgentSubmitted(outcome.prompts))
            return outcome.prompts
        best = self._best_run()
        if best is None:  # the baseline is one, so a store was tampered with or this is a bug
            raise RuntimeError("there is no finished run to fall back to")
        logger.warning(
            "There is no valid submission (%s); taking the prompts of run %s, the best on %s with a score of %s",
            printable(str(outcome.problem)),
            best.run_id,
            best.split,
            answers.percent(best.score),
        )
        self.emitter.emit(FellBack(str(outcome.problem), best.run_id))
        return dict(best.prompts)

    def _best_run(self) -> RunRecord | None:
        split, rows = self.data.scored
        return best_run(self.store.runs(), split, len(rows))


def _hurried(kind: type[BaseException] | None) -> bool:
    # Whoever presses Ctrl-C does not want to wait for an LM's answer.
    return kind is not None and issubclass(kind, KeyboardInterrupt)


def _recorder(store: RunStore) -> Callable[[Event], None]:
    """An observer that keeps what is not kept otherwise: results, prompts and turns have tables of their own."""
    refused = itertools.count(1)

    def record(event: Event) -> None:
        if isinstance(event, (ExamplesScored, TurnFinished)):
            return
        if isinstance(event, SubmissionRefused) and next(refused) > _MOST_REFUSALS:
            return  # it costs an agent nothing to be refused
        data = {"step": event.step} if isinstance(event, PromptUpdated) else dataclasses.asdict(event)
        store.record_event(type(event).__name__, data)

    return record


def _kernel_factory(kernel: Callable[[], CodeInterpreter] | None) -> InterpreterFactory:
    if kernel is not None:
        return cast("InterpreterFactory", kernel)
    from kernel_bridge import KernelInterpreter

    return cast("InterpreterFactory", KernelInterpreter.factory())
