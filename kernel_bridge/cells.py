"""Cells as data: what goes into a kernel and what comes out. No behaviour, no sockets, no DSPy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cell", "CellOutcome", "Death", "Limits", "Pickled", "RemoteFailure", "Restored"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one session. Times are seconds, sizes are bytes.

    A cell's own time stands still while a host tool runs that it has called, but for the CPU time that the kernel
    itself uses meanwhile: a loop beside its calls is its own. (On Linux; elsewhere that CPU time is not known.) Code
    that idles beside calls that it keeps making, one after the other, would never use its own time up;
    `cell_total_seconds` ends it.
    """

    start_seconds: float = 30.0  # from launch to the first sign of life
    cell_seconds: float = 600.0  # the kernel's own time in one cell; waiting for host tools does not count
    cell_total_seconds: float = 86_400.0  # all of one cell, with its host tools
    output_bytes: int = 1_000_000  # text kept per cell; head and tail are kept, the middle is left out
    frame_bytes: int = 256 * 2**20  # one value on the tool channel, encoded; it has at most one part for each 32 bytes
    frame_depth: int = 64  # nesting of lists and dicts in one value
    calls_in_flight: int = 64  # host tools running at once for one kernel; more wait in the kernel
    checkpoint_bytes: int = 256 * 2**20  # one namespace checkpoint; at most a quarter of Confinement.scratch_bytes
    checkpoint_seconds: float = 10.0  # time to make one

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            whole = name.endswith(("_bytes", "_depth", "_flight"))
            accepted = (int,) if whole else (int, float)
            if isinstance(value, bool) or not isinstance(value, accepted) or not value > 0:
                kind = "a positive whole number" if whole else "a positive number of seconds"
                raise ValueError(f"Limits.{name} must be {kind}, not {value!r}")


@dataclass(frozen=True, slots=True)
class Pickled:
    """Marks a value that travels to the kernel by cloudpickle, because the caller says so.

    Only ever host to kernel. The kernel's Python needs the libraries that the value comes from.
    """

    value: Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One piece of code to run."""

    code: str
    variables: Mapping[str, Any] = field(default_factory=dict[str, Any])  # set before the code runs
    output_fields: Sequence[Mapping[str, Any]] | None = None  # what SUBMIT takes; None: one value named "output"
    setup: bool = False  # the caller's own preparation: run again after a restart, before the checkpoint is restored


@dataclass(frozen=True, slots=True)
class RemoteFailure:
    """An exception that ended a cell."""

    name: str  # the exception's class name
    message: str  # its text
    traceback: str  # frames of the agent's own cells only, without colours
    compiling: bool  # True: the code never ran, it is not valid Python


@dataclass(frozen=True, slots=True)
class Death:
    """A kernel that died under a cell, and what its successor has."""

    reason: str  # one clause, such as "it was killed by signal 11 (SIGSEGV)"
    restored: tuple[str, ...]  # names that the successor has from the checkpoint
    lost: Mapping[str, str]  # name -> why it is gone
    checkpointed: bool  # False: checkpoints are off
    told: str | None = None  # what the session's owner has to say of its side


@dataclass(frozen=True, slots=True)
class Restored:
    """What the first kernel of a session got from a checkpoint file."""

    label: str  # which the session that made it had given to the cell it is from
    names: tuple[str, ...]  # that were restored
    lost: Mapping[str, str]  # name -> why it is gone
    problem: str | None  # why the file could not be used at all; None: it could


@dataclass(frozen=True, slots=True)
class CellOutcome:
    """What one cell did."""

    text: str  # stdout, stderr and the last expression's text in order; bounded
    omitted: int = 0  # characters left out of the middle of text
    result: str | None = None  # the last expression's text alone; None when there was none
    submitted: Mapping[str, Any] | None = None  # what SUBMIT was given; None: not submitted
    failure: RemoteFailure | None = None
    timed_out: str | None = None  # it was interrupted, state kept: the limit that it ran into, as a clause
    death: Death | None = None
    # name -> why the last checkpoint lacks it, as far as no outcome before has said so
    unkept: Mapping[str, str] = field(default_factory=dict[str, str])
