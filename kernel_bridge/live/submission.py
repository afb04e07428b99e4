"""The submission of a cell: at most one, accepted while the cell runs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

__all__ = ["Submission"]


class Submission:
    """What the present cell has submitted. Thread-safe.

    Args:
        judge: looks at the fields; raises where it refuses them. No lock is held meanwhile.
    """

    def __init__(self, judge: Callable[[dict[str, Any]], None]) -> None:
        self._judge = judge
        self._lock = threading.Lock()  # guards all below
        self._cell: object | None = None  # the one that may submit
        self._fields: dict[str, Any] | None = None

    def open_cell(self) -> None:
        """A cell starts, and may submit."""
        with self._lock:
            self._cell, self._fields = object(), None

    def close_cell(self) -> dict[str, Any] | None:
        """The cell is over. Returns what it submitted, if that was accepted."""
        with self._lock:
            self._cell = None
            return self._fields

    def accept(self, fields: dict[str, Any]) -> None:
        """Take what a kernel submits. Raises: the judge's refusal; RuntimeError when no cell may submit now."""
        with self._lock:
            cell = self._cell
            if cell is None:
                raise RuntimeError("no cell is running that could submit")
            if self._fields is not None:
                raise RuntimeError("this cell has submitted already")
        self._judge(fields)
        with self._lock:
            if self._cell is not cell or self._fields is not None:
                raise RuntimeError("the cell that submitted has ended, or has submitted something else")
            self._fields = fields

    def leave_to_parent(self) -> None:
        """In the child of a fork: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()
