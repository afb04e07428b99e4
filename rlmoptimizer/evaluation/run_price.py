"""What one run is paid from, and what its results cost."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from rlmoptimizer.errors import BudgetExceededError, CostExceededError
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.records import Charge, ExampleResult, Rollout
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import Slot

__all__ = ["Funds", "Reservable", "RunPrice", "free_price", "unit_price"]


class Reservable(Protocol):
    """A ledger, or a part of what is set aside in one."""

    def reserve(self, pieces: int, purpose: str) -> AbstractContextManager[Slot]: ...


@dataclass(frozen=True, slots=True)
class Funds:
    """Where the price of a run is taken from."""

    units: Reservable
    dollars: Reservable


@dataclass(frozen=True, slots=True)
class RunPrice:
    """What is set aside for one run, one piece for each rollout that has no verdict yet."""

    units: Slot | None  # None: free of charge
    dollars: Slot
    shows_rows: bool  # the agent is shown its examples
    # Rollouts that were paid before, for what they show, and have no verdict, because their LM failed.
    paid_before: frozenset[Rollout] = frozenset()

    def settle(
        self, results: Sequence[ExampleResult], keep: Callable[[Sequence[ExampleResult], Charge | None], None]
    ) -> None:
        """Pay for results. `keep` stores those that are to be kept together with their price: both or neither."""
        # A rollout that was paid before and failed again stays as it was, so that it shows nothing unpaid.
        kept = [result for result in results if result.has_verdict or not self._is_paid(result)]
        units = sum(self._costs(result) for result in kept)
        if self.units is None or not units:
            keep(kept, None)
        else:
            self.units.settle(units, lambda charge: keep(kept, charge))
        self.dollars.settle(len(results))

    def _costs(self, result: ExampleResult) -> int:
        """One without a verdict costs a unit when the agent is shown what was answered in it."""
        is_shown = result.has_verdict or (self.shows_rows and result.shows_answers)
        return int(is_shown and not self._is_paid(result))

    def _is_paid(self, result: ExampleResult) -> bool:
        return (result.example_id, result.rollout) in self.paid_before


@contextmanager
def free_price(costs: CostLedger | Slot, request: Request, missing: int) -> Generator[RunPrice]:
    """What so many rollouts are expected to cost in dollars is set aside for the block; they cost no units.

    Raises `CostExceededError`.
    """
    with costs.reserve(missing, request.purpose) as dollars:
        yield RunPrice(None, dollars, request.split == "train")


@contextmanager
def unit_price(
    funds: Funds, request: Request, missing: int, paid_before: frozenset[Rollout]
) -> Generator[RunPrice]:
    """What so many rollouts may cost is set aside for the block, in units and in dollars.

    Raises `BudgetExceededError` or `CostExceededError` when it does not fit.
    """
    with ExitStack() as stack:
        with _advising(request.repeats):
            units = stack.enter_context(funds.units.reserve(missing - len(paid_before), request.purpose))
            dollars = stack.enter_context(funds.dollars.reserve(missing, request.purpose))
        yield RunPrice(units, dollars, request.split == "train", paid_before)


@contextmanager
def _advising(repeats: int) -> Generator[None]:
    """The ledgers do not know that an example may cost several units; what they advise must."""
    try:
        yield
    except BudgetExceededError as refused:
        raise BudgetExceededError(refused.asked, refused.left, refused.purpose, repeats=repeats) from None
    except CostExceededError as refused:
        raise CostExceededError(
            refused.asked_usd, refused.left_usd, refused.purpose, fits=refused.fits, repeats=repeats
        ) from None
