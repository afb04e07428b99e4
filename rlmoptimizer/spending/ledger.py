"""The ledger: what is set aside before the work and settled after it. The budget in units is one, the costs another.

Law, at every moment and under any number of threads: spent + reserved + left == limit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlmoptimizer.errors import BudgetExceededError
from rlmoptimizer.records import Charge

__all__ = ["Journal", "Keep", "Ledger", "LedgerState", "Slot", "UnitLedger"]


Keep = Callable[[Charge], None]


class Journal(Protocol):
    """Where settled charges are kept; the run store is one."""

    def charge(self, amount: int, purpose: str) -> None: ...  # durable when this returns
    def charges(self) -> Iterable[Charge]: ...  # all so far


@dataclass(frozen=True, slots=True)
class LedgerState:
    """One moment of a ledger, in its own amounts: budget units, or picodollars."""

    limit: int | None  # None: there is none
    spent: int
    reserved: int
    left: int | None  # None: there is no limit; negative only for costs, which may turn out higher than expected


class Slot:
    """Pieces of work, such as examples, for which a ledger has set something aside; made by `Ledger.reserve`."""

    def __init__(self, ledger: Ledger, pieces: int, each: int, purpose: str) -> None:
        self.open = pieces  # that were not settled yet
        self.each = each  # set aside for one of them, in the ledger's amounts
        self.purpose = purpose
        self._ledger = ledger

    def settle(self, pieces: int, keep: Keep | None = None) -> None:
        """So many of the pieces are done; durable when this returns. May be called several times.

        `keep` writes the charge down in the journal's stead, together with what was paid for: both or neither. It must
        not come back to the ledger. What it raises is raised, and nothing is settled then.
        Raises ValueError for more pieces than are open, or a negative number; nothing is settled then.
        """
        self._ledger._settle(self, pieces, keep)  # pyright: ignore[reportPrivateUsage] - the ledger's own half

    @contextmanager
    def reserve(self, pieces: int, purpose: str) -> Generator[Slot]:
        """So many of the open pieces as a slot of their own for the block, as `Ledger.reserve` gives one.

        What is set aside is no more than before; what is not settled in the block flows back here. `purpose` is this
        slot's own. Raises ValueError for more pieces than are open.
        """
        part = self._ledger._part(self, pieces)  # pyright: ignore[reportPrivateUsage]
        try:
            yield part
        finally:
            self._ledger._rejoin(self, part)  # pyright: ignore[reportPrivateUsage]

    def release(self, pieces: int) -> None:
        """So many of the open pieces are not needed any more: they flow back. Raises ValueError for more than that."""
        self._ledger._release(self, pieces)  # pyright: ignore[reportPrivateUsage]


class Ledger:
    """Amounts with a limit. Thread-safe. A subclass says what a piece costs, what is refused, and what is settled."""

    def __init__(self, limit: int | None, spent: int) -> None:
        self._limit = limit
        self._spent: int = spent
        self._reserved: int = 0
        self._lock = threading.Lock()

    def state(self) -> LedgerState:
        """All four figures of one moment."""
        with self._lock:
            return LedgerState(self._limit, self._spent, self._reserved, self._left())

    @contextmanager
    def reserve(self, pieces: int, purpose: str) -> Generator[Slot]:
        """Set aside what so many pieces cost; for those that were not settled in the block it flows back.

        Raises what `_refuse` raises when they do not fit; nothing is spent then.
        """
        if pieces < 0:
            raise ValueError(f"cannot reserve for {pieces} pieces of work")
        with self._lock:
            slot = Slot(self, pieces, self._price(), purpose)
            left = self._left()
            if left is not None:
                self._refuse(pieces, slot.each, left, purpose)
            self._reserved += pieces * slot.each
        try:
            yield slot
        finally:
            with self._lock:
                self._reserved -= slot.open * slot.each
                slot.open = 0

    def _settle(self, slot: Slot, pieces: int, keep: Keep | None) -> None:
        with self._lock:
            _check_open(slot, pieces, "settle")
            self._settled(pieces, slot.purpose, keep)
            slot.open -= pieces
            self._reserved -= pieces * slot.each

    def _part(self, slot: Slot, pieces: int) -> Slot:
        with self._lock:
            _check_open(slot, pieces, "reserve")
            slot.open -= pieces
            return Slot(self, pieces, slot.each, slot.purpose)

    def _rejoin(self, slot: Slot, part: Slot) -> None:
        with self._lock:
            slot.open += part.open
            part.open = 0

    def _release(self, slot: Slot, pieces: int) -> None:
        with self._lock:
            _check_open(slot, pieces, "release")
            slot.open -= pieces
            self._reserved -= pieces * slot.each

    # under the lock

    def _left(self) -> int | None:
        return None if self._limit is None else self._limit - self._spent - self._reserved

    def _price(self) -> int:
        """What one piece is known or expected to cost."""
        raise NotImplementedError

    def _refuse(self, pieces: int, each: int, left: int, purpose: str) -> None:
        """Raise when so many pieces do not fit into what is left."""
        raise NotImplementedError

    def _settled(self, pieces: int, purpose: str, keep: Keep | None) -> None:
        """So many pieces are done: keep it. What this raises leaves them unsettled."""
        raise NotImplementedError


def _check_open(slot: Slot, pieces: int, what: str) -> None:
    if not 0 <= pieces <= slot.open:
        raise ValueError(f"cannot {what} {pieces} of {slot.open} reserved pieces of work")


class UnitLedger(Ledger):
    """The budget. One unit = one example evaluated once (baseline runs are free), or one sub-LM prompt by any road.

    With a `journal`, what it already holds counts as spent, and every settled amount is recorded there.
    """

    def __init__(self, limit: int, journal: Journal | None = None) -> None:
        spent = 0 if journal is None else sum(charge.amount for charge in journal.charges())
        if not 0 <= spent <= limit:
            raise ValueError(f"the journal holds {spent} units of a limit of {limit}")
        super().__init__(limit, spent)
        self.limit = limit
        self._journal = journal

    @property
    def spent(self) -> int:
        return self.state().spent

    @property
    def left(self) -> int:
        with self._lock:
            return self.limit - self._spent - self._reserved

    def charge(self, amount: int, purpose: str) -> None:
        """Reserve and settle at once. Raises `BudgetExceededError` when it does not fit."""
        with self.reserve(amount, purpose) as slot:
            slot.settle(amount)

    def _price(self) -> int:
        return 1

    def _refuse(self, pieces: int, each: int, left: int, purpose: str) -> None:
        if pieces > left:
            raise BudgetExceededError(pieces, left, purpose)

    def _settled(self, pieces: int, purpose: str, keep: Keep | None) -> None:
        # Written down under the lock: units that are in the journal but still look reserved could flow back when
        # another thread leaves the block at this moment, and then be spent twice.
        if pieces and keep is not None:
            keep(Charge(pieces, purpose))
        elif pieces and self._journal is not None:
            self._journal.charge(pieces, purpose)
        self._spent += pieces
