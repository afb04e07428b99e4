"""What a kernel is launched with, as its host writes it into the file that `launch.py` reads. Data; both sides know it.

All paths are as the kernel sees them. A kernel reads it with `msgspec.convert(json.load(file), LaunchConfig)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CheckpointConfig:
    """How the namespace is kept."""

    path: str  # of the two files; see `slots.py`
    bytes: int  # that one checkpoint may have
    seconds: float  # to make one
    restore: bool  # begin with what a predecessor has left there
    progress_file: str


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
    seal: Mapping[str, Any] | None  # see `seal.py`
    checkpoint: CheckpointConfig | None  # None: there are none
