"""The root LM's calls in DSPy's histories: the newest ones whole, older ones without what was sent.

Each request tells the turns before it, so together they would take memory with the square of the turns.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final

import dspy

from rlmoptimizer.spending.call_meter import HeardHistory

__all__ = ["RootCalls"]

_WHOLE: Final = 3  # calls, that are kept as DSPy wrote them
_SENT: Final = ("prompt", "request")  # what an entry has of the request beside its messages
_NOTE: Final = "[left out here; the turn that came of it is in agent_trajectory and in the run store]"


class RootCalls:
    """Hears of the calls of one root LM, and makes the entries of older ones small. One thread at a time asks it.

    Answers, usage and costs stay in the entries.
    """

    def __init__(self) -> None:
        self.history = HeardHistory(self._heard)
        self._newest: deque[dict[str, Any]] = deque()

    @contextmanager
    def heard(self) -> Generator[None]:
        """LM calls made in the block are the root LM's."""
        owners: list[Any] = list(dspy.settings.caller_modules or ())
        with dspy.context(caller_modules=[*owners, self]):
            yield

    def _heard(self, entry: dict[str, Any]) -> None:
        self._newest.append(entry)
        if len(self._newest) <= _WHOLE:
            return
        old = self._newest.popleft()
        if old.get("messages") is None and old.get("prompt") is None:
            return  # nothing is kept of it
        old["messages"] = [{"role": "user", "content": _NOTE}]  # first: somebody may be reading the entry
        for name in _SENT:
            if name in old:
                old[name] = None
