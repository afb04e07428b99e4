"""The quota of the sub-agents of one agent: how many may be at work at once, and how much memory each may have."""

from __future__ import annotations

import threading
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from kernel_bridge.errors import SubAgentError

__all__ = ["Quota"]

MOST_KERNELS: Final = 4  # of sub-agents that run code of their own, at once, for one agent
MOST_CALLS: Final = 64  # of sub-agents at once, for one agent
LEAST_MEMORY: Final = 512 * 2**20  # bytes for the kernel of a sub-agent, unless the agent's own has less


class Quota:
    """What the sub-agents of one agent share, their own sub-agents included. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._kernels = 0

    @classmethod
    def current(cls) -> Quota | None:
        """That of the sub-agent under whose call this code runs; None: it runs under none."""
        return _CURRENT.get()

    @contextmanager
    def calling(self, *, runs_code: bool) -> Generator[None]:
        """Around one call of a sub-agent. Raises: SubAgentError when there are too many at once."""
        with self._lock:
            if self._calls >= MOST_CALLS:
                raise SubAgentError(f"{MOST_CALLS} calls of sub-agents are under way, and no more are accepted at once")
            if runs_code and self._kernels >= MOST_KERNELS:
                raise SubAgentError(
                    f"{MOST_KERNELS} sub-agents that run code are at work, and no more are accepted at once, those of "
                    "sub-agents included; call it when one of them has ended, or use dspy.Predict"
                )
            self._calls += 1
            self._kernels += runs_code
        before = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(before)
            with self._lock:
                self._calls -= 1
                self._kernels -= runs_code

    @staticmethod
    def memory_share(memory_bytes: int | None) -> int | None:
        """The memory of one sub-agent's kernel, so that all of them have about as much as the agent's own."""
        return None if memory_bytes is None else min(memory_bytes, max(memory_bytes // MOST_KERNELS, LEAST_MEMORY))


_CURRENT: Final[ContextVar[Quota | None]] = ContextVar("kernel_bridge_sub_agents", default=None)
