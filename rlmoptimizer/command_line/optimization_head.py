"""What is said of an optimization as a whole: its state, its budget, and what it was branched from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.run_table import score_text, steps_before
from rlmoptimizer.command_line.table import fit
from rlmoptimizer.errors import StoreInUse
from rlmoptimizer.outcome.recorded_setup import branch_in, unit_limit
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.steering.branches import check_parent_at_rest
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["OptimizationHead"]


@dataclass(frozen=True, slots=True)
class OptimizationHead:
    """The optimization in one store, at one moment."""

    store: Path  # its file
    state: OptimizationState
    spent: int  # units
    limit: int | None  # units; None: the setup is not recorded yet
    branch: dict[str, Any] | None  # what it was branched from, as the setup has it; None: it is no branch
    branch_steps: tuple[str, ...]  # whose first prompts are not the unchanged program's
    begins_by_itself: bool  # a branch that has not begun, and whose parent is still at work
    pause_asked: bool  # of an agent that does not wait yet

    @classmethod
    def of(cls, store: StoreReader) -> OptimizationHead:
        """Read it. Raises `StoreCorrupt`."""
        state, setup = state_of(store), store.setup()
        branch = branch_in(setup)
        return cls(
            store.path,
            state,
            store.spent(),
            None if setup is None else unit_limit(setup),
            branch,
            () if branch is None else tuple(changed_steps(branch["prompts"], steps_before(store))),
            _waits_for_parent(store),
            state in ("running", "interrupted") and Requests(store.path).pausing,
        )

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes of it."""
        left = None if self.limit is None else self.limit - self.spent
        of = self.branch
        return {
            "store": str(self.store),
            "state": self.state,
            "budget": {"limit": self.limit, "spent": self.spent, "left": left},
            "pause_asked": self.pause_asked,
            "branch": None if of is None else {name: of[name] for name in ("store", "run_id", "begun")},
        }

    def lines(self, width: int) -> Iterator[str]:
        """The same in a line or two."""
        limit = "" if self.limit is None else f" of {self.limit}"
        yield fit(printable_line(f"{self.store.name}: {self._state_text()}, {self.spent}{limit} units spent"), width)
        if self.branch is not None:
            yield fit(printable_line(self._branch_text(self.branch)), width)

    def _state_text(self) -> str:
        if self.branch is not None and not self.branch["begun"]:
            if self.begins_by_itself:
                return f"begins once {self.branch['store']} has ended"
            return "not begun, to be resumed"
        if self.state == "interrupted":
            return "interrupted, to be resumed and then paused" if self.pause_asked else "interrupted, to be resumed"
        return f"{self.state}, to be paused after this turn" if self.pause_asked else self.state

    def _branch_text(self, branch: dict[str, Any]) -> str:
        run = branch["run"]
        whose = f"run {branch['run_id']} ({run['split']}, {score_text(run['score'])}) of {branch['store']}"
        return f"a branch from {whose}; prompts changed: {', '.join(self.branch_steps) or 'none'}"


def _waits_for_parent(store: StoreReader) -> bool:
    try:
        check_parent_at_rest(store)
    except StoreInUse:
        return True
    return False
