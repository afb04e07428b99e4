"""Doors: the host's own names for the sockets of a kernel. Knows files, not messages.

A kernel binds its sockets in a directory that the agent's code can write to, and connecting follows a symbolic link:
by one, a host that connects again could be sent to any socket of the machine, another session's too. So the host
connects through hard links in a directory of its own. They stay with the sockets they were made for, whatever is put
under the old names.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Doors"]


class Doors:
    """Makes the links as the kernel makes its sockets.

    Args:
        sockets: the kernel's directory.
        place: the host's own directory for the links; it exists and is empty.
        needed: names without which the kernel cannot be reached, the one that is bound last first.
        others: names that are linked when they are there.
    """

    def __init__(self, sockets: Path, place: Path, needed: Sequence[str], others: Sequence[str]) -> None:
        self._sockets = sockets
        self._place = place
        self._needed = list(needed)
        self._others = list(others)

    def open(self) -> bool:
        """Link what is there by now. Returns whether all that is needed is linked. Raises: OSError for a trap."""
        while self._needed and self._link(self._needed[0]):
            del self._needed[0]
        if self._needed:
            return False
        self._others = [name for name in self._others if not self._link(name)]
        return True

    def _link(self, name: str) -> bool:
        source, door = self._sockets / name, self._place / name
        try:
            os.link(source, door, follow_symlinks=False)
        except FileNotFoundError:
            return False
        except OSError:
            # A root without its powers, or a file system without hard links: the old name has to do.
            with contextlib.suppress(FileExistsError):
                door.symlink_to(source)
            return True
        if not stat.S_ISSOCK(door.lstat().st_mode):
            door.unlink()
            raise OSError(f"the kernel put something else in the place of its socket {name!r}")
        return True
