"""What a kernel's processes take of disk: the files in directories of the host, those without a name, those in memory.

Whoever hides from it is refused: an uncounted file is an unbounded one. Linux only. Knows no limits of bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from kernel_bridge.process.resource_use import Descriptors, Unmeasurable, deleted_mappings

__all__ = ["DiskUse"]

_DEEPEST = 64  # directories within directories
_DIRECTORY = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class DiskUse:
    """Adds up what one kernel has.

    Raises:
        Unmeasurable: by each of its methods, when the kernel does with files what none may.
    """

    def __init__(self, most_files: int) -> None:
        self.size = 0  # bytes that the files take, holes not counted
        self._most_files = most_files
        self._files = 0
        self._devices: set[int] = set()
        self._seen: set[tuple[int, int]] = set()

    def walk(self, directory: Path) -> None:
        """Count a directory of the host and all below it."""
        try:
            top = os.open(directory, _DIRECTORY)
        except FileNotFoundError:
            return
        status = os.fstat(top)
        self._devices.add(status.st_dev)
        self._count(status)
        self._below(top, 0)

    def _below(self, directory: int, depth: int) -> None:
        try:
            if depth > _DEEPEST:
                raise Unmeasurable(f"it made directories more than {_DEEPEST} deep")
            with os.scandir(directory) as entries:
                for entry in entries:
                    with suppress(FileNotFoundError, NotADirectoryError):
                        self._count(entry.stat(follow_symlinks=False))
                        if entry.is_dir(follow_symlinks=False):
                            self._below(_open_directory(entry.name, directory), depth + 1)
        finally:
            os.close(directory)

    def _count(self, found: os.stat_result) -> None:
        self._add_files(1)  # each name, for a name takes room too
        if (found.st_dev, found.st_ino) not in self._seen:
            self._seen.add((found.st_dev, found.st_ino))
            self.size += found.st_blocks * 512

    def _add_files(self, count: int) -> None:
        self._files += count
        if self._files > self._most_files:
            raise Unmeasurable(f"it made more than {self._most_files} files")

    def unlinked(self, descriptors: Descriptors) -> None:
        """Count the files that processes hold open, and that no directory names any more."""
        for place, link in descriptors.links.items():
            if link.endswith(" (deleted)"):
                with suppress(OSError):
                    found = os.stat(place)
                    if not found.st_nlink and stat.S_ISREG(found.st_mode) and found.st_dev in self._devices:
                        self._count(found)

    def mapped(self, pid: int, directories: Sequence[Path]) -> None:
        """Count the files that a process has mapped, and that no directory names any more."""
        for path, link in deleted_mappings(pid, [os.path.realpath(directory) for directory in directories]).items():
            try:
                self._count(os.stat(link))
            except PermissionError:  # only root may look, and then not in every container
                inode = int(path.rpartition(" ")[2])
                if inode not in {number for _, number in self._seen}:
                    raise Unmeasurable("it deleted a file that it kept mapped, which hides the file's size") from None
            except OSError:
                continue  # it is mapped no more

    def in_memory(self, family: Sequence[int], places: Sequence[str]) -> None:
        """Count the files in the kernel's own file systems. Their bytes are bounded by their size, their number is not.

        What they hold is reached through any process that has them.
        """
        ours = os.readlink("/proc/self/ns/mnt")
        for pid in reversed(family) if places else ():
            with suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/mnt") != ours:
                    for place in places:
                        found = os.statvfs(f"/proc/{pid}/root{place}")
                        self._add_files(found.f_files - found.f_ffree)
                    return


def _open_directory(name: str, above: int) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=above)
    except PermissionError:
        raise Unmeasurable("it hid a directory from the watchdog") from None
