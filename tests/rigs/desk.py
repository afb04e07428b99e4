"""The agent's tools with all that stands behind them, for tests: no kernel and no agent, everything else real."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import toy

from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.agent.stopping import StoppingLimits, WorkStop
from rlmoptimizer.agent.workbench import Workbench
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.events import Emitter, Event
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import build_dataset
from rlmoptimizer.task.program import clone


@dataclass
class Desk:
    """A workbench and what stands behind it."""

    bench: Workbench
    ledger: UnitLedger
    store: RunStore
    meter: SubLMMeter
    events: list[Event]

    def finish_val_runs(self) -> None:
        self.bench.host_runs.finish_val(self.bench.prompts.stored, lambda: self.bench.gate.turn(alone=True))

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.bench.tools.evaluate_program(*args, **kwargs)


@contextlib.contextmanager
def desk(
    path: Path,
    *,
    train: int = 6,
    val: int | None = 4,
    budget: int = 100,
    ceiling: int = 50,
    baseline: bool = True,
    lm: dspy.LM | None = None,
    program: dspy.Module | None = None,
    metric: Any = toy.metric,
    threads: int = 4,
    again: bool = False,
    costs: CostLedger | None = None,
    max_prompt_tokens: int | None = None,
    example_timeout: float | None = None,
    limits: StoppingLimits | None = None,
    clock: Callable[[], float] = time.monotonic,
    callbacks: Sequence[Callable[[Event], None]] = (),
) -> Iterator[Desk]:
    """`again`: on the store that is there, as after the end of a process. `clock`: of the deadline in `limits`.

    `callbacks`: get every event, as soon as it is in `events`.
    """
    events: list[Event] = []
    emitter = Emitter([events.append, *callbacks])
    data = build_dataset(toy.trainset(train), None if val is None else toy.valset(val))
    with (
        RunStore.open_in(path) if again else RunStore.create_in(path) as store,
        Evaluator(metric, lm or toy.eval_lm(), threads, example_timeout=example_timeout) as evaluator,
    ):
        ledger = UnitLedger(budget, journal=store)
        gate = CallGate()
        meter = SubLMMeter(ceiling, ledger, emitter, gate)
        accounts = Accounts(store, ledger, costs or CostLedger(), emitter)
        stop = WorkStop(limits or StoppingLimits(), gate, store, data, accounts.costs, clock=clock)
        bench = Workbench(clone(program or toy.Triage()), data, evaluator, accounts, meter, stop, 0, max_prompt_tokens)
        if baseline:
            bench.host_runs.baseline(bench.prompts.original)
            events.clear()
        yield Desk(bench, ledger, store, meter, events)
        bench.gate.close()
        bench.gate.wait_empty(10)
