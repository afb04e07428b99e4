"""The sockets of a kernel, moved to where only the host can put anything.

A kernel binds its sockets in a directory that the agent's code can write to, and connecting follows a symbolic link:
by one, a host that connects again could be sent to any socket of the machine, another session's too. So the host moves
each socket into a directory of its own, as soon as it is there. A socket stays what it is under another name, and every
file system can rename, while not every one has hard links.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["ProtectedSockets"]


class ProtectedSockets:
    """Moves the sockets as the kernel makes them.

    Args:
        sockets: the kernel's directory.
        place: the host's own directory for them; it exists and is empty.
        needed: names without which the kernel cannot be reached, the one that is bound last first.
        others: names that are moved when they are there.
    """

    def __init__(self, sockets: Path, place: Path, needed: Sequence[str], others: Sequence[str]) -> None:
        self._sockets = sockets
        self._place = place
        self._needed = list(needed)
        self._others = list(others)

    def move(self) -> bool:
        """Move what is there by now. Returns whether all that is needed is moved. Raises: OSError for a trap."""
        while self._needed and self._move(self._needed[0]):
            del self._needed[0]
        if self._needed:
            return False
        self._others = [name for name in self._others if not self._move(name)]
        return True

    def _move(self, name: str) -> bool:
        moved = self._place / name
        try:
            os.rename(self._sockets / name, moved)
        except FileNotFoundError:
            return False
        if not stat.S_ISSOCK(moved.lstat().st_mode):
            raise OSError(f"the kernel put something else in the place of its socket {name!r}")
        return True
