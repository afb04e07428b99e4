"""Where a kernel's files are, outside for the host and inside for the kernel. Paths only; makes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Layout"]


@dataclass(frozen=True, slots=True)
class Layout:
    """The directories of one kernel."""

    session: Path  # the session's own directory; only the host sees it
    config: Path  # what inside/launch.py reads, before the process gives up anything
    sockets: Path  # this kernel's sockets, connection file and transcript
    keep: Path  # the checkpoint, which outlives the kernel
    scratch: Path  # the kernel's working directory

    def within(self, config: str, sockets: str, keep: str, scratch: str) -> Layout:
        """The same files as a kernel sees them that has a file system of its own."""
        return Layout(self.session, Path(config), Path(sockets), Path(keep), Path(scratch))
