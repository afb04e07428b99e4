"""The times in which the agent of an optimization was paused, from the events of its store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rlmoptimizer.records import EventRecord

__all__ = ["MARKS", "pauses"]

MARKS: Final = ("CompileStarted", "WorkPaused", "WorkUnpaused")  # the kinds of events that tell


def pauses(marks: Iterable[EventRecord]) -> list[tuple[float, float]]:
    """Begin and end of each pause, in Unix time; infinity: it has not ended.

    A process that ended in a pause has written no end of it: there it lasts until the next one begins.
    """
    ordered = sorted(marks, key=lambda record: record.number)
    ends = [*(record.at for record in ordered[1:]), float("inf")]
    return [(mark.at, end) for mark, end in zip(ordered, ends, strict=False) if mark.kind == "WorkPaused"]
