"""The budget: a ledger that is taken from before the work and settled after it. Knows no examples and no LMs.

One unit = one example evaluated once (baseline runs are free), or one sub-LM prompt by any road.
Law, at every moment and under any number of threads: spent + reserved + left == limit, none of them negative.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlmoptimizer.errors import BudgetExceededError

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
    """Units reserved for one piece of work; made by `Ledger.reserve`."""

    def __init__(self, ledger: Ledger, amount: int, purpose: str) -> None:
        self.purpose = purpose
        self._ledger = ledger
        self._open = amount

    @property
    def open(self) -> int:
        """Units still reserved."""
        return self._open

    def settle(self, amount: int, keep: Callable[[Charge], None] | None = None) -> None:
        """Spend `amount` of the reserved units; durable when this returns. May be called several times.

        `keep` writes the charge down in the journal's stead, together with what was paid for: both or neither. It must
        not come back to the ledger. What it raises is raised, and nothing is spent then.
        Raises ValueError when more is settled than is still reserved, or a negative amount; nothing is spent then.
        """
        self._ledger._settle(self, amount, keep)  # pyright: ignore[reportPrivateUsage] - the ledger's own half


class Ledger:
    """Units with a limit. Thread-safe.

    With a `journal`, what it already holds counts as spent, and every settled amount is recorded there.
    """

    def __init__(self, limit: int, journal: Journal | None = None) -> None:
        self._journal = journal
        self._lock = threading.Lock()
        self._limit = limit
        self._spent = 0 if journal is None else sum(charge.amount for charge in journal.charges())
        self._reserved = 0
        if not 0 <= self._spent <= limit:
            raise ValueError(f"the journal holds {self._spent} units of a limit of {limit}")

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def spent(self) -> int:
        return self.state().spent

    @property
    def reserved(self) -> int:
        return self.state().reserved

    @property
    def left(self) -> int:
        return self.state().left

    def state(self) -> LedgerState:
        """All four figures of one moment."""
        with self._lock:
            spent, reserved = self._spent, self._reserved
        return LedgerState(self._limit, spent, reserved, self._limit - spent - reserved)

    @contextmanager
    def reserve(self, amount: int, purpose: str) -> Generator[Slot]:
        """Set `amount` units aside for the block; what was not settled when it is left flows back.

        Raises `BudgetExceededError` when they do not fit; nothing is spent then.
        """
        if amount < 0:
            raise ValueError(f"cannot reserve {amount} units")
        with self._lock:
            left = self._limit - self._spent - self._reserved
            if amount > left:
                raise BudgetExceededError(amount, left, purpose)
            self._reserved += amount
        slot = Slot(self, amount, purpose)
        try:
            yield slot
        finally:
            with self._lock:
                self._reserved -= slot._open  # pyright: ignore[reportPrivateUsage]
                slot._open = 0  # pyright: ignore[reportPrivateUsage]

    def charge(self, amount: int, purpose: str) -> None:
        """Reserve and settle at once. Raises `BudgetExceededError` when it does not fit."""
        with self.reserve(amount, purpose) as slot:
            slot.settle(amount)

    def _settle(self, slot: Slot, amount: int, keep: Callable[[Charge], None] | None) -> None:
        with self._lock:
            if not 0 <= amount <= slot._open:  # pyright: ignore[reportPrivateUsage]
                raise ValueError(f"cannot settle {amount} of {slot.open} reserved units")
            # Written down under the lock: units that are in the journal but still look reserved could flow back when
            # another thread leaves the block at this moment, and then be spent twice.
            if amount and keep is not None:
                keep(Charge(amount, slot.purpose))
            elif amount and self._journal is not None:
                self._journal.charge(amount, slot.purpose)
            slot._open -= amount  # pyright: ignore[reportPrivateUsage]
            self._reserved -= amount
            self._spent += amount
