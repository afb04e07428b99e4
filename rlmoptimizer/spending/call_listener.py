"""A listener in the place of a history: it hears of every call that DSPy adds, and keeps none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["HeardHistory"]


class HeardHistory:
    """Stands in the place of the list that DSPy appends an LM's answers to; `heard` gets each entry."""

    def __init__(self, heard: Callable[[dict[str, Any]], None]) -> None:
        self._heard = heard

    def __len__(self) -> int:
        return 0  # never too long, whatever DSPy's limit is

    def append(self, entry: dict[str, Any]) -> None:
        self._heard(entry)
