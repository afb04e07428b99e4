"""The arms: what each of them makes of a job. An arm is a function from a `Job` to an `Outcome`."""

from __future__ import annotations

from collections.abc import Callable

from quality.arms.gepa import gepa, gepa_parallel
from quality.arms.guess import guess
from quality.arms.job import Job, Outcome
from quality.arms.mipro import mipro
from quality.arms.ours import ours
from quality.arms.references import hand, unchanged

__all__ = ["ARMS", "RESUMED", "Job", "Outcome"]

ARMS: dict[str, Callable[[Job], Outcome | None]] = {  # in the order of a report; None: the task has no such arm
    "unchanged": unchanged,
    "guess": guess,
    "gepa": gepa,
    "gepa-parallel": gepa_parallel,
    "mipro": mipro,
    "ours": ours,
    "hand": hand,
}
# They go on where a killed process left off. The others begin again, with answers from the cache and from the files.
RESUMED = frozenset({"ours"})
