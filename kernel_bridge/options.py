"""What a session is asked for: the bounds of its cells, and how its kernels are started. Checked when it is made."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kernel_bridge.confine import Confinement, limits_asked

__all__ = ["Limits", "SessionOptions", "refuse_unless"]


def refuse_unless(fits: bool, name: str, accepted: str, value: Any) -> None:
    """Raises: ValueError, unless the option's value fits."""
    if not fits:
        raise ValueError(f"{name} must be {accepted}, not {repr(value)[:200]}")


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

    @property
    def result_chars(self) -> int:
        """The longest text of a last expression that is sent by itself, beside the output of the cell."""
        return max(self.output_bytes, self.frame_bytes // 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionOptions:
    """How the kernels of one session are started.

    Raises:
        ValueError: an option is not what it must be. Whether a path exists, the start of the session tells.
    """

    # The interpreter to run, which needs ipykernel and msgspec, nothing of ours; given as None: this one.
    python: str = field(default_factory=lambda: sys.executable)
    limits: Limits = Limits()
    confinement: str | Confinement | frozenset[str] | set[str] = "auto"  # see `kernel_bridge.confine.resolve`
    restarts: int = 3  # after so many deaths in a row, with no good cell between, the session is over; 0 is as 1
    checkpoint: bool = True  # keep the namespace for the successor of a kernel that dies
    runtime_dir: Path | None = None  # where the session's directory is made; None: the user's runtime directory
    # Where the last checkpoint is kept for a session of another process, which begins with it. It outlives this
    # process, however that ends. None: nowhere.
    checkpoint_file: Path | None = None

    def __post_init__(self) -> None:
        for name in ("python", "runtime_dir", "checkpoint_file"):
            value: Any = getattr(self, name)
            is_path = isinstance(value, (str, os.PathLike)) and bool(os.fspath(value))  # pyright: ignore[reportUnknownArgumentType]
            refuse_unless(value is None or is_path, name, "a path or None", value)
        limits: Any = Limits() if self.limits is None else self.limits  # pyright: ignore[reportUnnecessaryComparison]
        refuse_unless(isinstance(limits, Limits), "limits", "a Limits or None", limits)
        whole = isinstance(self.restarts, int) and not isinstance(self.restarts, bool)  # pyright: ignore[reportUnnecessaryIsInstance]
        refuse_unless(whole and self.restarts >= 0, "restarts", "a whole number of 0 or more", self.restarts)
        refuse_unless(isinstance(self.checkpoint, bool), "checkpoint", "True or False", self.checkpoint)  # pyright: ignore[reportUnnecessaryIsInstance]
        kept = self.checkpoint or self.checkpoint_file is None
        refuse_unless(kept, "checkpoint_file", "None where checkpoint is False", self.checkpoint_file)
        if self.confinement != "off":
            limits_asked(self.confinement)
        object.__setattr__(self, "limits", limits)
        object.__setattr__(self, "python", _interpreter(self.python))
        for name in ("runtime_dir", "checkpoint_file"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else Path(value))

    def of_kernel(self) -> SessionOptions:
        """Only what a kernel is started with, without what is the session's own: equal for kernels that are alike."""
        return replace(self, restarts=0, checkpoint_file=None)


def _interpreter(python: str | os.PathLike[str] | None) -> str:
    """The interpreter's path, absolute when it is a path at all: the kernel's working directory is another one."""
    if python is None:
        return sys.executable
    name = os.path.expanduser(str(python))
    return os.path.abspath(name) if os.path.dirname(name) else name
