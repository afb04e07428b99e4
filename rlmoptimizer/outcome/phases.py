"""How long the phases of an optimization took, over all the processes that worked on it. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rlmoptimizer.records import EventRecord

__all__ = ["PHASES", "phase_seconds"]

PHASES: Final = ("baseline", "agent", "final_check", "test")


def phase_seconds(events: Iterable[EventRecord]) -> dict[str, float]:
    """Seconds by phase, of those phases that have begun.

    A phase that was cut, because its process was gone, counts from its beginning to the last event of that process.
    """
    seconds: dict[str, float] = {}
    under_way: tuple[str, float] | None = None  # the phase and when it began
    latest = 0.0
    for event in [*events, None]:
        begins = event is None or event.kind in ("CompileStarted", "PhaseStarted")
        if begins and under_way is not None:
            phase, began = under_way
            seconds[phase] = seconds.get(phase, 0.0) + max(0.0, latest - began)  # clocks may be set back
            under_way = None
        if event is None:
            break
        latest = event.at
        if event.kind == "PhaseStarted":
            under_way = event.data["phase"], event.at
        elif event.kind == "PhaseFinished":
            phase = event.data["phase"]
            seconds[phase] = seconds.get(phase, 0.0) + event.data["seconds"]
            under_way = None
    return {phase: seconds[phase] for phase in PHASES if phase in seconds}
