"""Cells as data: what goes into a kernel and what comes out. No behaviour, no sockets, no DSPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kernel_bridge.wire import PageSource

__all__ = ["Cell", "CellHost", "CellOutcome", "Death", "Pickled", "RemoteFailure", "Restored"]


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
class CellHost:
    """What a cell finds on its host."""

    tools: Mapping[str, Callable[..., Any]] = field(default_factory=dict[str, Callable[..., Any]])  # by name
    # Called with the fields of every SUBMIT; raising refuses it, and the agent sees why.
    judge: Callable[[dict[str, Any]], object] | None = None
    # Called when the kernel has died under the cell, on the thread that runs it, before a successor is started; what
    # it returns stands in the outcome's `death.told`.
    on_death: Callable[[], str | None] | None = None
    checkpoint_label: str = ""  # of the moment after the cell; the session that restores its checkpoint is told
    # By name: what the lists that the kernel has as `PagedList` are read from, page by page.
    page_sources: Mapping[str, PageSource] = field(default_factory=dict[str, PageSource])


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
