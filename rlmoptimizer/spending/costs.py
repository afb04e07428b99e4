"""What LM calls used and cost: one call, and the calls of one role together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Literal, TypeAlias

from rlmoptimizer.spending.money import dollars

__all__ = [
    "ROLES",
    "LMCall",
    "Role",
    "RoleUsage",
    "total_usd",
    "usage_dict",
]

Role: TypeAlias = Literal["root", "sub", "eval"]
ROLES: Final[tuple[Role, ...]] = ("root", "sub", "eval")


@dataclass(frozen=True, slots=True)
class LMCall:
    """One call of an LM that was answered."""

    role: Role
    model: str
    outcome: Literal["answered", "cached"]  # "cached": by DSPy's cache, so nothing was asked or billed
    prompt_tokens: int | None  # None: not reported
    completion_tokens: int | None  # None: not reported
    cost: int | None  # picodollars; None: the price is not known


@dataclass(frozen=True, slots=True)
class RoleUsage:
    """What the calls of one role amount to."""

    calls: int = 0  # that were answered, those from the cache included
    cached_calls: int = 0  # of these: from the cache
    unreported_calls: int = 0  # of these: the provider said nothing of tokens
    unpriced_calls: int = 0  # of these: the price is not known
    prompt_tokens: int = 0  # as far as reported
    completion_tokens: int = 0  # as far as reported
    cost: int = 0  # picodollars, as far as known

    @classmethod
    def of(cls, call: LMCall) -> RoleUsage:
        answered = call.outcome == "answered"
        return cls(
            calls=1,
            cached_calls=int(not answered),
            unreported_calls=int(answered and call.prompt_tokens is None and call.completion_tokens is None),
            unpriced_calls=int(call.cost is None),
            prompt_tokens=call.prompt_tokens or 0,
            completion_tokens=call.completion_tokens or 0,
            cost=call.cost or 0,
        )

    def __add__(self, other: RoleUsage) -> RoleUsage:
        return RoleUsage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def priced_calls(self) -> int:
        """Calls that a provider answered at a known price."""
        return self.calls - self.cached_calls - self.unpriced_calls

    @property
    def cost_usd(self) -> float | None:
        """Dollars; None when the price of any call is not known."""
        return None if self.unpriced_calls else dollars(self.cost)

    def as_dict(self) -> dict[str, Any]:
        """What people and events get. Tokens are None when calls were answered and none of them reported any."""
        asked = self.calls - self.cached_calls
        silent = 0 < asked == self.unreported_calls
        return {
            "calls": self.calls,
            "cached_calls": self.cached_calls,
            "prompt_tokens": None if silent else self.prompt_tokens,
            "completion_tokens": None if silent else self.completion_tokens,
            "cost_usd": self.cost_usd,
            "known_cost_usd": dollars(self.cost),
            "unpriced_calls": self.unpriced_calls,
        }


def usage_dict(usage: Mapping[Role, RoleUsage]) -> dict[str, dict[str, Any]]:
    """Usage by role as people and events get it."""
    return {role: used.as_dict() for role, used in usage.items()}


def total_usd(usage: Mapping[Role, RoleUsage]) -> float | None:
    """Dollars of all roles together; None when any price is not known."""
    return sum(usage.values(), RoleUsage()).cost_usd
