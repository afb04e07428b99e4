"""What a machine can give a kernel, and what one session got, as it is shown. Data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kernel_bridge.confine.guarantees import GUARANTEES
from kernel_bridge.confine.tiers import TIERS

__all__ = ["NOT_SET", "ConfinementReport", "Probe"]

NOT_SET: Final = "no limit was set"  # why a limit is missing that the machine could give


@dataclass(frozen=True, slots=True)
class ConfinementReport:
    """What one session runs under."""

    requested: frozenset[str]  # the guarantees that had to hold, or no kernel would have been started
    in_force: Mapping[str, str]  # guarantee -> the mechanism that gives it
    missing: Mapping[str, str]  # guarantee -> why it is not given
    tier: str | None = None  # a key of TIERS; None: confinement was switched off

    def line(self) -> str:
        """The report in one line. Of the reasons only that a limit was not set."""
        how = "not confined" if self.tier is None else TIERS[self.tier].how
        count = f"{len(self.in_force)} of {len(GUARANTEES)} guarantees"
        missing = [f"{name} ({why})" if why == NOT_SET else name for name, why in self.missing.items()]
        return f"{how}, {count}; missing: {', '.join(missing) or 'nothing'}"


@dataclass(frozen=True, slots=True)
class Probe:
    """What this machine can give a kernel."""

    tier: str  # a key of TIERS
    available: Mapping[str, str]  # guarantee -> mechanism
    missing: Mapping[str, str]  # guarantee -> why not, and what would mend it
    notes: tuple[str, ...] = ()  # why a stronger tier is not available, and what would mend it

    def table(self) -> str:
        """The tier, why it is not a stronger one, and one line for each guarantee."""
        width = max(map(len, GUARANTEES))
        rows = [
            f"{name:<{width}}  yes  {self.available[name]}"
            if name in self.available
            else f"{name:<{width}}  no   {self.missing[name]}"
            for name in GUARANTEES
        ]
        return "\n".join([f"tier {self.tier}: {TIERS[self.tier].mechanisms}", *self.notes, "", *rows])
