"""Where all that happens in one compile is written down."""

from __future__ import annotations

from dataclasses import dataclass

from rlmoptimizer.events import Emitter, LMUsageCounted
from rlmoptimizer.records import usage_dict
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.store.run_store import RunStore

__all__ = ["Accounts"]


@dataclass(frozen=True, slots=True)
class Accounts:
    """Store, ledgers and emitter of one compile. Thread-safe, as they are."""

    store: RunStore
    ledger: UnitLedger
    costs: CostLedger
    emitter: Emitter

    def emit_usage(self) -> None:
        self.emitter.emit(LMUsageCounted(usage_dict(self.costs.usage())))
