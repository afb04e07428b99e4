"""What a machine can give a kernel, and what one session got, as it is shown. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kernel_bridge.confine.guarantees import GUARANTEES, Confinement, unasked
from kernel_bridge.confine.tiers import TIERS

__all__ = ["ConfinementReport", "Probe"]


@dataclass(frozen=True, slots=True)
class ConfinementReport:
    """What one session runs under."""

    requested: frozenset[str]  # the guarantees that had to hold, or no kernel would have been started
    in_force: Mapping[str, str]  # guarantee -> the mechanism that gives it
    missing: Mapping[str, str]  # guarantee -> why it is not given
    tier: str | None = None  # a key of TIERS; None: confinement was switched off
    unasked: frozenset[str] = frozenset()  # of `missing` those that the machine can give, had a limit been set

    def line(self) -> str:
        """The report in one line, without the reasons."""
        how = "not confined" if self.tier is None else TIERS[self.tier].how
        count = f"{len(self.in_force)} of {len(GUARANTEES)} guarantees"
        lacking = [name for name in self.missing if name not in self.unasked]
        parts = [f"missing: {', '.join(lacking) or 'nothing'}"] if lacking or not self.unasked else []
        parts += [f"not asked for: {', '.join(sorted(self.unasked))}"] if self.unasked else []
        return f"{how}, {count}; {'; '.join(parts)}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine can give a kernel."""

    tier: str  # a key of TIERS
    available: Mapping[str, str]  # guarantee -> mechanism
    missing: Mapping[str, str]  # guarantee -> why not, and what would mend it
    notes: tuple[str, ...] = ()  # why a stronger tier is not available, and what would mend it

    def table(self) -> str:
        """The tier, why it is not a stronger one, and one line for each guarantee."""
        width, by_default = max(map(len, GUARANTEES)), unasked(Confinement())
        rows: list[str] = []
        for name in GUARANTEES:
            if name in self.available:
                but = f" ({by_default[name]})" if name in by_default else ""
                rows.append(f"{name:<{width}}  yes  {self.available[name]}{but}")
            else:
                rows.append(f"{name:<{width}}  no   {self.missing[name]}")
        return "\n".join([f"tier {self.tier}: {TIERS[self.tier].mechanisms}", *self.notes, "", *rows])
