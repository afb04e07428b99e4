"""The agent's turns: how many there were, what is kept of each, and what the death of a kernel means for its runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kernel_bridge.cells import Death
from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.evaluation.accounts import Accounts
from rlmoptimizer.evaluation.runs import Runs
from rlmoptimizer.records import RunRecord

__all__ = ["Turns"]

_CUT_SECONDS = 20.0  # how long the agent's next turn waits for the examples under way in evaluations that were cut


class Turns:
    """Called by the agent's loop, on its thread; `count` may be read by any."""

    def __init__(self, runs: Runs, accounts: Accounts, gate: CallGate) -> None:
        self._runs = runs
        self._accounts = accounts
        self._gate = gate
        self.count = len(accounts.store.iterations())  # root LM calls, those of earlier processes too
        self._cut: tuple[str, ...] = ()  # runs that a dying kernel left behind
        self._kernel_died = False  # in this turn

    def record(
        self, reasoning: str, code: str, output: str, seconds: float, submission: Mapping[str, Any] | None = None
    ) -> None:
        """Keep one turn of the agent, and with it what it submitted, if it did."""
        answered = not self._kernel_died
        self._accounts.store.record_iteration(
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
        self._accounts.emit_usage()

    def kernel_died(self) -> None:
        """The agent's kernel is gone, and so is the code that waited: evaluations on train are cut, and none begins."""
        self._kernel_died = True
        self._cut = self._runs.kernel_died()
        self._gate.send_away()

    def death_of(self, interpreter: object) -> Death | None:
        """How the kernel of the agent's interpreter died in this turn; None: it did not."""
        death = getattr(interpreter, "death", None) if self._kernel_died else None
        return death if isinstance(death, Death) else None

    @property
    def has_died(self) -> bool:
        """Whether the kernel has died in this turn."""
        return self._kernel_died

    def cut_runs(self) -> list[RunRecord]:
        """The evaluations that were under way at the last death of the kernel; once."""
        cut, self._cut = self._cut, ()
        if cut:
            self._runs.wait_cut(_CUT_SECONDS)
        return [self._accounts.store.run(run_id) for run_id in cut]
