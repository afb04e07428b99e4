"""What a kernel and its guardian are launched with, as their host writes it into files. Data; both sides know it.

All paths are as the kernel sees them. `launch.py` reads a `LaunchConfig`, and `spawn.py` the other two, into plain
objects with the same fields: to make these classes takes 9 ms of a kernel's start, `dataclasses` 20 ms of a guardian's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointConfig:
    """How the namespace is kept."""

    path: str  # of the two files; see `checkpoint_slots.py`
    bytes: int  # that one checkpoint may have
    seconds: float  # to make one
    progress_file: str


@dataclass(frozen=True)
class LandlockRules:
    """Paths that a process may use. All others are out of its reach."""

    read: Sequence[str]
    write: Sequence[str]
    bind: Sequence[str]  # directories in which sockets and nothing else may be made
    needed: bool  # refuse to start without Landlock


@dataclass(frozen=True)
class Seal:
    """The restrictions that a process puts on itself; see `seal.py`."""

    rlimits: Mapping[str, Sequence[int]]  # name in the resource module -> soft and hard limit
    more_processes: int | None = None  # beside those that the user has now; None: any number
    user: int | None = None  # uid and gid to become
    passes: bool = False  # that user may pass through all directories, and read what Landlock allows
    dies_with_parent: bool = False
    no_new_privileges: bool = False
    landlock: LandlockRules | None = None
    seccomp: str | None = None  # the filter in base64
    modes_refused: bool = False  # the filter refuses chmod


@dataclass(frozen=True)
class GuardianConfig:
    """What a guardian is told."""

    host_pid: int
    session_dir: str
    layers: int  # wrapping processes before the kernel


OPENED = "<"
"""How an argument of a wrapper begins that is a path, and stands for the number of a descriptor that reads there."""


@dataclass(frozen=True)
class SpawnConfig:
    """What `spawn.py` starts."""

    guardian: GuardianConfig | None  # None: there is none
    argv: Sequence[str]
    arguments: Sequence[str] | None  # those that a wrapper reads from a descriptor; None: there is no wrapper
    descriptor: str  # the word in `argv` that stands for that descriptor's number


@dataclass(frozen=True)
class LaunchConfig:
    """How one kernel is launched. Sizes are bytes."""

    connection_file: str
    calls_url: str  # of the tool channel
    replies_url: str
    frame_bytes: int  # these four are `Limits`
    frame_depth: int
    output_bytes: int
    result_chars: int
    transcript_file: str
    interrupt_file: str | None  # None: every interrupt is for the cell that runs
    working_directory: str
    extra_path: Sequence[str]  # where more packages are
    seal: Seal | None
    checkpoint: CheckpointConfig | None  # None: there are none
