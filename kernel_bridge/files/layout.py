"""Where a kernel's files are, outside for the host and inside for the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.inside.checkpoint_slots import slot_paths

__all__ = ["CHECKPOINT", "INTERRUPT", "PROGRESS", "TRANSCRIPT", "Layout"]

CHECKPOINT = "checkpoint"  # what is kept in `keep`, in two files
TRANSCRIPT, INTERRUPT, PROGRESS = "transcript", "interrupt", "progress"  # files beside the sockets


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of one kernel."""

    session: Path  # the session's own directory; only the host sees it
    config: Path  # what inside/launch.py reads, before the process gives up anything
    sockets: Path  # this kernel's sockets, connection file and transcript
    keep: Path  # the checkpoint, which outlives the kernel
    scratch: Path  # the kernel's working directory

    def written(self) -> list[str]:
        """The files outside of its working directory that the kernel writes; the host makes them."""
        kept = slot_paths(str(self.keep / CHECKPOINT))
        return [str(self.sockets / TRANSCRIPT), str(self.sockets / PROGRESS), *kept]

    def within(self, config: str, sockets: str, keep: str, scratch: str) -> Layout:
        """The same files as a kernel sees them that has a file system of its own."""
        return Layout(self.session, Path(config), Path(sockets), Path(keep), Path(scratch))
