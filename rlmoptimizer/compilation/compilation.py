"""One compile: from the baseline, or from where an earlier process left off, to the result.

The baseline; the agent's work; when that has ended, the final choice; then the held-out test. What of it an earlier
process has ended is not done again.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import dspy

from kernel_bridge.text import printable_line
from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.agent.kernels import kernel_started
from rlmoptimizer.agent.rlm_agent import Agent
from rlmoptimizer.agent.submission import SUBMISSION_FIELD
from rlmoptimizer.comparison import prepare_comparisons
from rlmoptimizer.compilation.agent_inputs import agent_inputs, note_strays
from rlmoptimizer.compilation.begin_and_end import emit_begin, emit_end
from rlmoptimizer.compilation.final_choice import FinalChoice
from rlmoptimizer.compilation.held_out_test import HeldOutTest
from rlmoptimizer.compilation.parts import Parts, make_parts
from rlmoptimizer.compilation.phase import phase
from rlmoptimizer.compilation.result import attach_record, program_with, trajectory_of
from rlmoptimizer.compilation.resume import EarlierWork, close_and_read_past, namespace_text
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.versions import versions
from rlmoptimizer.errors import BudgetExceededError, CostExceededError, SubmissionError
from rlmoptimizer.events import Split
from rlmoptimizer.lms.failures import note_role
from rlmoptimizer.lms.root_calls import RootCalls
from rlmoptimizer.lms.root_session import RootSession
from rlmoptimizer.outcome.ending import AgentOutcome, Choice, Outcome
from rlmoptimizer.outcome.result_warnings import data_set_warnings
from rlmoptimizer.records import RunRecord, total_usd, usage_dict
from rlmoptimizer.steering.branches import begin_branch
from rlmoptimizer.store.run_store import RunStore

__all__ = ["compiled"]

logger = logging.getLogger(__name__)

_IDLE_SECONDS = 600.0  # how long the end of a compile waits for evaluations under way
_HURRIED_SECONDS = 2.0


def compiled(setup: Setup, store: RunStore, namespace: Path | None) -> dspy.Module:
    """Optimize, in a new store or from where an earlier process left off in it; the setup is the store's.

    `namespace`: where the agent's variables are kept for another process to go on with; None: no other one will.
    """
    begin_branch(store)
    past = close_and_read_past(store)  # first: the parts count what is in the store
    with ExitStack() as stack:
        parts = make_parts(setup, store, namespace, stack)
        return _Compilation(setup, store, past, parts, resumable=namespace is not None).run()


class _Compilation:
    def __init__(self, setup: Setup, store: RunStore, past: EarlierWork, parts: Parts, *, resumable: bool) -> None:
        self._setup = setup
        self._settings = setup.settings
        self._store = store
        self._parts = parts
        self._bench = parts.bench
        self._accounts = parts.bench.accounts
        self._resumable = resumable
        self._past = past
        self._root_calls = RootCalls()
        self._test = HeldOutTest(setup.test, self._bench.runs, self._accounts, parts.evaluator, self._bench.gate.stop)

    def run(self) -> dspy.Module:
        emit_begin(self._setup, self._bench, self._past)
        setup = self._store.setup()
        said = [] if setup is None else data_set_warnings(setup)  # before anything is spent, and not once more
        self._warn(said)
        self._parts.evaluator.prepare(self._parts.program, self._setup.rows())
        agent = AgentOutcome.of(self._store) or self._agent_outcome()
        choice = Choice.of(self._store) or self._choice(agent)
        test_problem = self._tested(choice)
        self._raise_failure()
        program = program_with(self._setup.student, choice.prompts)  # before the end is recorded: it may refuse
        note_strays(self._store, seen=self._parts.evaluator.strays)
        self._accounts.costs.flush()
        usage = self._accounts.costs.usage()
        Outcome(test_problem, usage_dict(usage), total_usd(usage), versions()).record(self._store)
        result = attach_record(program, self._setup, self._store)
        self._parts.usage.warn_of_unpriced()
        self._warn(warning for warning in result.warnings if warning not in said)
        emit_end(self._setup, self._bench, result)
        return program

    def _tested(self, choice: Choice) -> str | None:
        if self._setup.test is not None and self._parts.person.is_branching:
            return "the optimization was branched before it"
        return self._test.run(self._bench.prompts.original, self._bench.prompts.stored(choice.prompts))

    def _warn(self, warnings: Iterable[str]) -> None:
        for warning in warnings:
            logger.warning("%s", printable_line(warning))

    def _agent_outcome(self) -> AgentOutcome:
        """What the agent leaves behind, once nothing of its work is under way any more."""
        with ExitStack() as ending:
            # Ended in this order: nothing new starts, the kernels go, what was under way is waited for.
            ending.push(self._come_to_rest)
            ending.callback(self._parts.kernels.close)
            ending.push(self._call_off)
            agent = self._work()
            # What the agent's threads have begun ends now, so that the result does not depend on when it is looked at.
            self._bench.gate.close()
            self._come_to_rest()
            self._parts.kernels.close()  # its variables are kept no longer
            ending.pop_all()
        agent.record(self._store)
        return agent

    def _choice(self, agent: AgentOutcome) -> Choice:
        self._test.hold_back_price()  # an earlier process may have ended the agent's work
        with ExitStack() as ending:
            ending.push(self._call_off)
            final = FinalChoice(self._bench.host_runs, self._accounts, self._setup.data)
            choice = final.make(agent, measured=not self._parts.person.is_branching)
            self._raise_failure()
            ending.pop_all()
        choice.record(self._store)
        return choice

    # its end

    def _call_off(self, kind: type[BaseException] | None, *_: object) -> None:
        self._bench.gate.stop()
        if _hurried(kind):
            self._parts.evaluator.abort()

    def _come_to_rest(self, kind: type[BaseException] | None = None, *_: object) -> None:
        """Wait for what is under way, but not for ever."""
        if not self._bench.gate.wait_empty(_HURRIED_SECONDS if _hurried(kind) else _IDLE_SECONDS):
            self._parts.evaluator.close(wait=False)

    # the agent

    def _work(self) -> AgentOutcome:
        """The agent's work, or as much of it as earlier processes have left to do."""
        turns, most = self._past.turns, self._settings.rlm_max_iterations
        if self._past.submission is not None:
            return self._submitted_before()
        if len(turns) >= most:
            self._finish_val_runs()
            baselines = self._known_baselines()
            self._test.hold_back_price()
            with self._agent(1) as agent, phase(self._accounts.emitter, "agent"):
                return agent.conclude(**self._inputs(baselines, "The REPL has ended."))
        kernels = self._parts.kernels
        kernels.start(on_failure=self._bench.gate.close)
        with note_role("eval"):
            baselines = self._known_baselines() if turns else self._baselines()
        self._raise_failure()
        self._test.hold_back_price()
        self._warn(self._unpaid_val())
        with phase(self._accounts.emitter, "agent"), self._agent(most - len(turns)) as agent:
            prepare_comparisons()
            with self._parts.waits.watch(("kernel", "")):
                interpreter = kernels.wait_started()
            self._accounts.emitter.emit(kernel_started(interpreter))
            self._finish_val_runs()
            inputs = self._inputs(baselines, namespace_text(interpreter, agent.signature.input_fields))
            with self._bench.stop.watching(kernels.interrupt, kernels.close):
                return agent.work(interpreter_factory=cast("Any", kernels), **inputs)

    def _baselines(self) -> Mapping[Split, RunRecord]:
        with phase(self._accounts.emitter, "baseline"):
            return self._bench.host_runs.baseline(self._bench.prompts.original)

    def _unpaid_val(self) -> Iterator[str]:
        """Why not even one run on val can be paid, if that is so."""
        val, accounts = len(self._setup.data.val or ()), self._accounts
        if not val:
            return
        try:
            with accounts.ledger.reserve(val, "validate"), accounts.costs.reserve(val, "validate"):
                return
        except BudgetExceededError as refused:
            why = f"it takes {refused.asked} units, and {refused.left} are left"
        except CostExceededError as refused:
            why = refused.said
        yield f"not even one run on val can be paid: {why}"

    def _finish_val_runs(self) -> None:
        """What a process left half done on val is whole before the agent sees a figure again."""
        try:
            self._bench.host_runs.finish_val(self._bench.prompts.stored, lambda: self._bench.gate.turn(alone=True))
        except OptimizationStopped:
            self._raise_failure()
            raise
        self._raise_failure()
        self._past = dataclasses.replace(self._past, runs=tuple(self._store.runs()))

    def _raise_failure(self) -> None:
        if (failure := self._bench.gate.failure) is not None:
            raise failure

    def _known_baselines(self) -> dict[Split, RunRecord]:
        """Those that were made before the agent's first turn."""
        runs = [run for run in self._past.runs if run.baseline and run.state == "finished"]
        return {cast("Split", run.split): run for run in runs}

    def _submitted_before(self) -> AgentOutcome:
        reasoning = self._past.turns[-1].reasoning if self._past.turns else ""
        try:
            prompts = self._bench.submission.prompts_in({SUBMISSION_FIELD: self._past.submission})
            return AgentOutcome(prompts, None, reasoning, "submitted")
        except SubmissionError as refused:
            problem = f"the submission that was stored is not valid: {refused}"
            return AgentOutcome(None, problem, reasoning, "submitted")

    @contextmanager
    def _agent(self, turns: int) -> Generator[Agent]:
        settings = self._settings
        # The program's adapter is for the program: evaluations have the context that `compile` was called in.
        adapter = settings.root_adapter or dspy.ChatAdapter()
        earlier = trajectory_of(self._store)
        with (
            dspy.context(adapter=adapter, trace=None),  # a trace would hold every turn, and nobody reads it
            RootSession(
                settings.root_lm,
                stateful=settings.root_stateful_session,
                multiturn_history=settings.rlm_multiturn_history,
                max_output_chars=settings.rlm_max_output_chars,
                max_history_chars=settings.rlm_max_history_chars,
                earlier_turns=len(earlier),
                asking=self._asking_root,
                notes=lambda: self._parts.person.notes,
            ) as session,
        ):
            agent = Agent(
                self._bench,
                settings,
                turns,
                person=self._parts.person,
                interpreter_factory=cast("Any", self._parts.kernels),
                earlier=earlier,
                resumable=self._resumable,
            )
            session.attach(agent)
            yield agent

    @contextmanager
    def _asking_root(self) -> Generator[None]:
        waiting = self._parts.waits.watch(("root", self._settings.root_lm.model))
        thinking = self._parts.kernels.while_root_thinks()
        with note_role("root"), self._parts.usage.calling("root"), self._root_calls.heard(), waiting, thinking:
            yield

    def _inputs(self, baselines: Mapping[Split, RunRecord], namespace: str) -> dict[str, Any]:
        strays = self._parts.evaluator.strays
        return agent_inputs(self._setup, self._bench, self._past, baselines, namespace=namespace, strays=strays)


def _hurried(kind: type[BaseException] | None) -> bool:
    # Whoever presses Ctrl-C does not want to wait for an LM's answer.
    return kind is not None and issubclass(kind, KeyboardInterrupt)
