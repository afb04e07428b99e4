"""The agent's turns as it gets them in its REPL: a plain row for each, all at once or read in pages."""

from __future__ import annotations

from typing import Any, Final

from kernel_bridge import PagedList
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.records import IterationRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PAGES_OF_TURNS", "TURNS_LEFT_OUT", "TurnRows", "turn_row"]

PAGES_OF_TURNS: Final = "turns"
"""The name of `TurnRows.read_page` among the page sources of a kernel."""

TURNS_LEFT_OUT: Final = "TurnsLeftOut"
"""An event of the store: from its `turn` on, the agent's code has the first `count` turns in a variable."""

_PAGE_BYTES: Final = 2**20  # of the texts in a page
_MOST_TURNS: Final = 2**31  # that SQLite is asked for


def turn_row(turn: IterationRecord) -> dict[str, Any]:
    """`turn` (1-based), `reasoning`, `code` and `output`."""
    return {"turn": turn.number, "reasoning": turn.reasoning, "code": turn.code, "output": turn.output}


class TurnRows:
    """The turns in one store. Thread-safe."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def readable(self, turn: int, before: int) -> list[dict[str, Any]]:
        """What the code of a turn had of the turns before it; `before`: the turns of earlier processes."""
        told = [event.data for event in self._store.events(TURNS_LEFT_OUT)]
        known = [one for one in told if all(_is_count(one.get(name), turn) for name in ("turn", "count"))]
        rows = [turn_row(one) for one in self._store.iterations()]
        return rows[: max([before, *(one["count"] for one in known)])]

    def paged(self, count: int) -> PagedList:
        """The first `count` turns, which have ended."""
        return PagedList(PAGES_OF_TURNS, None, count, self.read_page)

    def read_page(self, key: Any, start: Any, stop: Any) -> list[dict[str, Any]]:
        """The rows of a page, at least one: the page source. Its arguments come from a kernel, and may be anything.

        Raises `SelectionError` unless they name turns that have ended.
        """
        if key is not None or type(start) is not int or type(stop) is not int or not 0 <= start < stop <= _MOST_TURNS:
            raise SelectionError("these are no turns")
        rows = [turn_row(turn) for turn in self._store.iteration_page(start, stop, _PAGE_BYTES)]
        if not rows:
            raise SelectionError(f"turn {start + 1} has not ended yet")
        return rows


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
