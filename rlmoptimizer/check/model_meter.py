"""A meter of LM calls for a check: it also knows which models have answered."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields

import dspy

from rlmoptimizer.records import LMCall, RoleUsage
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.usage_meter import UsageMeter

__all__ = ["ModelMeter", "without"]


class ModelMeter(UsageMeter):
    """Counts LM calls for no ledger but its own. `lms` as for a `UsageMeter`."""

    def __init__(self, lms: Iterable[dspy.BaseLM]) -> None:
        super().__init__(CostLedger(), lms)
        self.answered: dict[str, bool] = {}  # model -> whether every answer had a price; DSPy's cache is no answer

    def count(self, call: LMCall, *, why_unpriced: object = None) -> None:
        """Count a call."""
        super().count(call, why_unpriced=why_unpriced)
        if call.outcome == "answered":
            self.answered[call.model] = self.answered.get(call.model, True) and call.cost is not None


def without(whole: RoleUsage, part: RoleUsage) -> RoleUsage:
    """What a usage amounts to without a part of it."""
    return RoleUsage(*(getattr(whole, field.name) - getattr(part, field.name) for field in fields(RoleUsage)))
