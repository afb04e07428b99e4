"""The state of an optimization: whether it runs, waits, has ended or was interrupted. Imports no DSPy."""

from __future__ import annotations

from typing import Literal, TypeAlias

from rlmoptimizer.store.file_lock import holder
from rlmoptimizer.store.pauses import MARKS
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["OptimizationState", "state_of"]

OptimizationState: TypeAlias = Literal[
    "running",  # a process works on it
    "paused",  # a process has it, and the agent waits between two turns
    "finished",  # its result is recorded
    "interrupted",  # no process has it, and it has not ended; a resume goes on with it
]


def state_of(store: StoreReader) -> OptimizationState:
    """The state of the optimization in a store, at this moment. Raises `StoreCorrupt`."""
    process = holder(store.path)  # first: one that ends in between has recorded its result by then
    if store.outcome() is not None:
        return "finished"
    if process is None:
        return "interrupted"
    marks = [record for kind in MARKS for record in store.events(kind)]
    # The newest of them says whether the agent waits.
    newest = max(marks, key=lambda record: record.number, default=None)
    return "paused" if newest is not None and newest.kind == "WorkPaused" else "running"
