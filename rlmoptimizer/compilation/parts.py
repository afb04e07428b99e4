"""The parts of one compile, put together: made in the order in which they need each other, and ended in reverse."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextvars
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dspy

from kernel_bridge import KernelInterpreter
from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.kernels import AgentKernels, InterpreterFactory
from rlmoptimizer.agent.llm_tools import PURPOSE, SubLMMeter
from rlmoptimizer.agent.person_requests import PersonRequests
from rlmoptimizer.agent.stopping import StoppingLimits, WorkStop
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.agent.workbench import Workbench
from rlmoptimizer.compilation.observers import make_emitter
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.wait_monitor import Pending, Waited, WaitMonitor
from rlmoptimizer.events import StillWaiting
from rlmoptimizer.outcome.example_rows import PAGES_OF_RUNS
from rlmoptimizer.outcome.recorded_setup import branch_in, unit_limit
from rlmoptimizer.outcome.run_totals import cut_line
from rlmoptimizer.outcome.turn_rows import PAGES_OF_TURNS
from rlmoptimizer.show.terminal.display import Display
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.program import clone

__all__ = ["Parts", "make_parts"]

_STALL_SECONDS = 60.0  # after so long without an example, an answer or a kernel, a line says what is waited for


@dataclass(frozen=True, slots=True)
class Parts:
    """What a compile works with."""

    program: dspy.Module  # a clone of the student, which all runs run a clone of
    usage: UsageMeter
    waits: WaitMonitor
    evaluator: Evaluator
    bench: Workbench
    kernels: AgentKernels
    person: PersonRequests


def make_parts(setup: Setup, store: RunStore, namespace: Path | None, stack: ExitStack) -> Parts:
    """Make what a compile works with; `stack` ends it.

    `namespace`: where the agent's variables are kept for another process to go on with; None: no other one will.
    """
    settings, data, recorded = setup.settings, setup.data, store.setup()
    assert recorded is not None  # when the store was opened
    gate = CallGate(on_failure=lambda: kernels.interrupt())
    lms = {id(lm): lm for users in setup.lms().values() for lm in users}
    before = 0 if (branch := branch_in(recorded)) is None else branch["picodollars_before"]
    costs = CostLedger(settings.max_cost_usd, journal=store, spent_before=before)
    usage = UsageMeter(costs, lms.values(), gate.fail)
    stack.callback(usage.close)
    waits = WaitMonitor(
        lambda waited, pending, seconds: emitter.emit(_still_waiting(waited, pending, seconds)), _STALL_SECONDS
    )
    evaluator = stack.enter_context(_evaluator(setup, usage, waits))
    evaluator.metric_works = store.metric_works()
    display = Display(verbose=settings.verbose)
    stack.callback(display.close)
    emitter = make_emitter(store, display, settings.callbacks, stack, kept=namespace is not None)
    stack.callback(waits.close)
    budget = UnitLedger(unit_limit(recorded), journal=store)
    meter = SubLMMeter(
        settings.rlm_max_llm_calls,
        budget,
        emitter,
        gate,
        usage,
        calls=store.spent(PURPOSE),
        waiting=lambda count: waits.watch(("sub", settings.sub_or_root_lm.model), count),
    )
    accounts = Accounts(store, budget, usage.ledger, emitter)
    limits = StoppingLimits(settings.target_score, settings.patience, settings.max_seconds)
    person = PersonRequests(Requests(store.path), store, emitter)
    stop = WorkStop(limits, gate, store, data, usage.ledger, worked=store.worked_seconds(), asked=person.ending)
    program = clone(setup.student)
    bench = Workbench(
        program, data, evaluator, accounts, meter, stop, recorded["drawn_seed"], settings.max_prompt_tokens
    )
    kernels = _kernels(setup, bench, meter, namespace)
    return Parts(program, usage, waits, evaluator, bench, kernels, person)


def _evaluator(setup: Setup, usage: UsageMeter, waits: WaitMonitor) -> Evaluator:
    settings = setup.settings
    # The LM and adapter that are set for the agent's turns must not reach the program.
    with usage.role("eval"):
        context = contextvars.copy_context()
    return Evaluator(
        bind_metric(setup.metric, settings.perfect_score),
        setup.eval_lm,
        settings.num_threads,
        executor=settings.executor,
        count=usage.count_heard,
        context=context,
        waits=waits,
        example_timeout=settings.example_timeout,
    )


def _kernels(setup: Setup, bench: Workbench, meter: SubLMMeter, namespace: Path | None) -> AgentKernels:
    settings = setup.settings
    return AgentKernels(
        cast("InterpreterFactory", settings.kernel or KernelInterpreter.factory()),
        bench.calls.judging(bench.submission.validate),
        on_death=lambda: _kernel_died(bench.turns),
        checkpoint_file=namespace,
        page_sources={PAGES_OF_RUNS: bench.tools.read_page, PAGES_OF_TURNS: bench.tools.read_turns},
        sub_agents=meter.check if settings.sub_agents else None,
    )


def _still_waiting(waited: Waited, pending: Pending, seconds: float) -> StillWaiting:
    (kind, name), (count, names) = waited, pending
    return StillWaiting(cast("Any", kind), name, count, tuple(names), seconds)


def _kernel_died(turns: Turns) -> str:
    """What the agent reads about the host after its kernel has died."""
    turns.kernel_died()
    untouched = "What is on the host is untouched: budget, runs, prompts and everything that tool calls did."
    return "\n".join([untouched, *map(cut_line, turns.cut_runs())])
