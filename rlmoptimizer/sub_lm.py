"""The meter of sub-LM prompts: one ceiling and the ledger, both asked before either is touched. Knows no LM."""

from __future__ import annotations

import threading

from .budget import Ledger
from .errors import BudgetExceededError
from .events import BudgetCharged, Emitter

__all__ = ["PURPOSE", "SubLMMeter"]

PURPOSE = "llm_query"  # of every charge for a sub-LM prompt


class SubLMMeter:
    """Every prompt to the sub-LM passes `reserve` first, by whatever road the agent reached it. Thread-safe.

    It has the one method that `dspy.RLM` and its sub-agents call on their own counter, so it can stand in for it.
    """

    def __init__(self, ceiling: int, ledger: Ledger, emitter: Emitter) -> None:
        self._ceiling = ceiling  # prompts in one compile
        self._ledger = ledger
        self._emitter = emitter
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = False

    @property
    def calls(self) -> int:
        return self._calls

    def reserve(self, n: int = 1) -> None:
        """Spend `n` units for `n` prompts that are about to be sent.

        Raises `BudgetExceededError` when all `n` do not fit under the ceiling or into the budget; nothing is spent.
        """
        # One lock over both: else one thread could take the place under the ceiling that another one, refused by
        # the ledger, was about to give back.
        with self._lock:
            if self._closed:
                raise BudgetExceededError(n, 0, PURPOSE)
            if self._calls + n > self._ceiling:
                raise BudgetExceededError(n, self._ceiling - self._calls, "rlm_max_llm_calls")
            self._ledger.charge(n, PURPOSE)
            self._calls += n
        self._emitter.emit(BudgetCharged(units=n, left=self._ledger.left))

    def close(self) -> None:
        """Refuse everything from now on: the agent is gone, its sub-agents must not go on spending."""
        with self._lock:
            self._closed = True
