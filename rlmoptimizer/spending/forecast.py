"""The forecast: what LM calls and examples are expected to cost, going by what such have cost so far."""

from __future__ import annotations

from collections.abc import Mapping

from rlmoptimizer.records import ROLES, LMCall, Role, RoleUsage

__all__ = ["Forecast"]


class Forecast:
    """Counts calls by role, and says in picodollars what the next ones may cost: 0 until a price is known.

    Not thread-safe; a `CostLedger` uses it under its lock.
    """

    def __init__(self, usage: Mapping[Role, RoleUsage], examples: int) -> None:
        self.usage: dict[Role, RoleUsage] = {role: usage.get(role, RoleUsage()) for role in ROLES}
        self.examples = examples  # that were evaluated
        self._latest_root = 0  # picodollars of its last priced call

    def count(self, call: LMCall) -> None:
        self.usage[call.role] += RoleUsage.of(call)
        if call.role == "root" and call.cost:
            self._latest_root = call.cost

    def call(self, role: Role) -> int:
        usage = self.usage[role]
        mean = -(-usage.cost // usage.priced_calls) if usage.priced_calls else 0
        # The agent's context grows from turn to turn, so its last call tells more than the mean.
        return max(mean, self._latest_root) if role == "root" else mean

    def example(self) -> int:
        # As if nothing came from the cache: prompts that were never tried before are not in it.
        usage = self.usage["eval"]
        if not usage.priced_calls or not self.examples:
            return 0
        return -(-usage.cost * usage.calls // (usage.priced_calls * self.examples))
