"""The budget: a ledger that is taken from before the work and settled after it. Knows no examples and no LMs.

One unit = one example evaluated once (baseline runs are free), or one sub-LM prompt by any road.
Law, at every moment and under any number of threads: spent + reserved + left == limit, none of them negative.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Charge", "Journal", "Ledger", "LedgerState", "Slot"]


@dataclass(frozen=True, slots=True)
class Charge:
    """One settled amount."""

    amount: int  # units, >= 1
    purpose: str  # "evaluate", "llm_query", ...


class Journal(Protocol):
    """Where settled charges are kept; the run store is one."""

    def charge(self, amount: int, purpose: str) -> None:
        """Record one charge; durable when this returns."""
        ...

    def charges(self) -> Iterable[Charge]:
        """All charges so far, oldest first."""
        ...


@dataclass(frozen=True, slots=True)
class LedgerState:
    """One moment of a ledger, in units."""

    limit: int
    spent: int
    reserved: int
    left: int


class Slot:
    """Units reserved for one piece of work."""

    def __init__(self, ledger: Ledger, amount: int, purpose: str) -> None:
        raise NotImplementedError

    @property
    def open(self) -> int:
        """Units still reserved."""
        raise NotImplementedError

    def settle(self, amount: int) -> None:
        """Spend `amount` of the reserved units; durable when this returns. May be called several times.

        Raises ValueError when more is settled than is still reserved.
        """
        raise NotImplementedError


class Ledger:
    """Units with a limit. Thread-safe.

    With a `journal`, what it already holds counts as spent, and every settled amount is recorded there.
    """

    def __init__(self, limit: int, journal: Journal | None = None) -> None:
        raise NotImplementedError

    limit: int

    @property
    def spent(self) -> int:
        raise NotImplementedError

    @property
    def reserved(self) -> int:
        raise NotImplementedError

    @property
    def left(self) -> int:
        raise NotImplementedError

    def state(self) -> LedgerState:
        """All four figures of one moment."""
        raise NotImplementedError

    @contextmanager
    def reserve(self, amount: int, purpose: str) -> Iterator[Slot]:
        """Set `amount` units aside for the block; what was not settled when it is left flows back.

        Raises `BudgetExceededError` when they do not fit; nothing is spent then.
        """
        raise NotImplementedError
        yield

    def charge(self, amount: int, purpose: str) -> None:
        """Reserve and settle at once. Raises `BudgetExceededError` when it does not fit."""
        raise NotImplementedError
