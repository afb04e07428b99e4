"""The sub-LM as the agent reaches it, and the meter that every prompt passes first. Knows no tools and no kernel."""

# DSPy ships no type information.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import dspy

from .budget import Ledger
from .errors import BudgetExceededError
from .events import BudgetCharged, Emitter

try:
    from dspy.clients._deprecation import adapter_message_call as _marked_as_an_adapters
except ImportError:  # DSPy 3.5 drops it together with the warning
    _marked_as_an_adapters = None

__all__ = ["PURPOSE", "SubLM", "SubLMMeter"]

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


class SubLM:
    """An LM that takes the message lists of DSPy's sub-agents without a deprecation warning; else the LM itself.

    DSPy 3.4 wraps the LM of sub-agents and so no longer knows its own adapter's calls: it warns, in the name of
    whoever called a tool, about messages that nobody but DSPy wrote. With warnings as errors no sub-agent would run.
    """

    def __init__(self, lm: dspy.BaseLM) -> None:
        self._lm = lm

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._marked(kwargs):
            return self._lm(*args, **kwargs)

    async def acall(self, *args: Any, **kwargs: Any) -> Any:
        with self._marked(kwargs):
            return await self._lm.acall(*args, **kwargs)

    def copy(self, **kwargs: Any) -> SubLM:
        return SubLM(self._lm.copy(**kwargs))

    def __getattr__(self, name: str) -> Any:
        if name == "_lm":  # not there yet: while being copied or unpickled
            raise AttributeError(name)
        return getattr(self._lm, name)

    def _marked(self, kwargs: dict[str, Any]) -> AbstractContextManager[Any]:
        if _marked_as_an_adapters is None:
            return nullcontext()
        return _marked_as_an_adapters(self._lm, kwargs.get("messages"))
