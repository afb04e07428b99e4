"""The agent's turns as it gets them in its REPL: a plain row for each, all at once or read in pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from kernel_bridge import PagedList
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["PAGES_OF_TURNS", "TURNS_LEFT_OUT", "GivenTurns", "TurnRows", "turn_row"]

PAGES_OF_TURNS: Final = "turns"
"""The name of `TurnRows.read_page` among the page sources of a kernel."""

TURNS_LEFT_OUT: Final = "TurnsLeftOut"
"""An event of the store: from its `turn` on, the agent's code has the first `count` turns in a variable."""

_PAGE_BYTES: Final = 2**20  # of the texts in a page
_MOST_TURNS: Final = 2**31  # that SQLite is asked for


class TurnTexts(Protocol):
    """A turn that has ended: a record of the store, or an entry of DSPy's history."""

    @property
    def reasoning(self) -> str: ...
    @property
    def code(self) -> str: ...
    @property
    def output(self) -> str | None: ...


def turn_row(number: int, turn: TurnTexts) -> dict[str, Any]:
    """`turn` (1-based), `reasoning`, `code` and `output`."""
    return {"turn": number, "reasoning": turn.reasoning, "code": turn.code, "output": turn.output}


class GivenTurns:
    """The first turns, as rows that the agent's code has in a variable. They only become more."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self.rows: list[dict[str, Any]] = [dict(row) for row in rows]
        self.chars = sum(map(_chars, self.rows))  # of their texts

    def add(self, turns: Iterable[TurnTexts]) -> None:
        """Those that follow."""
        for number, turn in enumerate(turns, len(self.rows) + 1):
            row = turn_row(number, turn)
            self.rows.append(row)
            self.chars += _chars(row)


class TurnRows:
    """The turns in one store. Thread-safe."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store

    def readable(self, turn: int, before: int) -> list[dict[str, Any]]:
        """What the code of a turn had of the turns before it; `before`: the turns of earlier processes."""
        told = [event.data for event in self._store.events(TURNS_LEFT_OUT)]
        known = [one for one in told if all(_is_count(one.get(name), turn) for name in ("turn", "count"))]
        rows = [turn_row(one.number, one) for one in self._store.iterations()]
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
        rows = [turn_row(turn.number, turn) for turn in self._store.iteration_page(start, stop, _PAGE_BYTES)]
        if not rows:
            raise SelectionError(f"turn {start + 1} has not ended yet")
        return rows


def _chars(row: Mapping[str, Any]) -> int:
    return sum(len(row[name]) for name in ("reasoning", "code", "output"))


def _is_count(value: Any, most: int) -> bool:
    return type(value) is int and 0 <= value <= most
