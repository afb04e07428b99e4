"""What the agent is told of budget and costs: the present, but not what a run on val spends before it has ended.

Units and dollars that go one by one would tell how long an example of val took and at what length it was answered, and
the prompts that decide both are the agent's. Knows no runs and no examples.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from .budget import Ledger, LedgerState
from .costs import CostLedger, CostState, Role, RoleUsage

__all__ = ["Told"]


@dataclass(frozen=True, slots=True)
class _Before:
    """How things stood when the first of the runs on val that are under way began."""

    spent: int  # units
    usage: Mapping[Role, RoleUsage]
    costs: CostState


class Told:
    """The figures of two ledgers as the agent may see them. Thread-safe."""

    def __init__(self, ledger: Ledger, costs: CostLedger) -> None:
        self._ledger = ledger
        self._costs = costs
        self._lock = threading.Lock()
        self._under_way = 0
        self._before: _Before | None = None

    @contextmanager
    def at_its_end(self) -> Generator[None]:
        """What is spent in this block, and beside it, is told when no such block is left."""
        with self._lock:
            self._under_way += 1
            if self._before is None:
                self._before = _Before(self._ledger.spent, self._costs.usage(), self._costs.state())
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                if not self._under_way:
                    self._before = None

    def budget(self) -> LedgerState:
        """Units; what is not to be told as spent is told as reserved, so that the sum and what is left are true."""
        with self._lock:
            now = self._ledger.state()
            spent = now.spent if self._before is None else self._before.spent
        return LedgerState(now.limit, spent, now.limit - now.left - spent, now.left)

    def usage(self) -> Mapping[Role, RoleUsage]:
        """What every role has used."""
        with self._lock:
            return self._costs.usage() if self._before is None else self._before.usage

    def costs(self) -> CostState:
        """What was spent, and may be."""
        with self._lock:
            return self._costs.state() if self._before is None else self._before.costs
