"""The watchdog: kills a kernel whose processes together use more than they may. Knows /proc and directories, no cells.

Resource limits bound each process by itself; only the sum bounds what a kernel with many processes takes. Linux only;
elsewhere the dog sleeps.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

__all__ = ["Watchdog", "descendants"]

_LOOK_SECONDS = 0.25
_DISK_EVERY = 4  # looks; walking directories costs more
_MOST_FILES = 100_000
_JOIN_SECONDS = 5.0


class Watchdog:
    """Watches one kernel from construction to `stop`; owns its thread.

    Args:
        root: the process that the host started; it and all its descendants count.
        memory_bytes, processes, disk_bytes: bounds of the sums; None: not bounded.
        directories: what counts as the kernel's disk use.
    """

    def __init__(
        self,
        root: int,
        *,
        memory_bytes: int | None,
        processes: int | None,
        disk_bytes: int | None,
        directories: Sequence[Path],
    ) -> None:
        self.verdict: str | None = None  # why the kernel was killed, as a clause
        self._root = root
        self._memory_bytes = memory_bytes
        self._processes = processes
        self._disk_bytes = disk_bytes
        self._directories = directories
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        bounded = memory_bytes is not None or processes is not None or disk_bytes is not None
        if bounded and sys.platform.startswith("linux"):
            self._thread = threading.Thread(target=self._watch, name="kernel watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _watch(self) -> None:
        looks = 0
        while not self._stopped.wait(_LOOK_SECONDS):
            family = descendants(self._root)
            verdict = self._too_many(family) or self._too_much_memory(family)
            if verdict is None and looks % _DISK_EVERY == 0:
                verdict = self._too_much_disk()
            looks += 1
            if verdict is not None and not self._stopped.is_set():
                self.verdict = verdict
                self._kill(family)
                return

    def _too_many(self, family: Sequence[int]) -> str | None:
        if self._processes is None:
            return None
        count = sum(_threads(pid) for pid in family)
        # The guardian, the wrapper and the kernel's own service threads are not the agent's.
        if count <= self._processes + _OWN_THREADS:
            return None
        return f"it was killed, because it had {count} processes and threads; {self._processes} are allowed"

    def _too_much_memory(self, family: Sequence[int]) -> str | None:
        limit = self._memory_bytes
        if limit is None or sum(_resident(pid) for pid in family) <= limit:
            return None
        used = sum(_proportional(pid) for pid in family)  # the fair sum, dearer to get: shared pages count once
        if used <= limit:
            return None
        return f"it was killed, because its processes together used {_mib(used)} of memory; {_mib(limit)} are allowed"

    def _too_much_disk(self) -> str | None:
        limit = self._disk_bytes
        if limit is None:
            return None
        size, files = 0, 0
        for directory in self._directories:
            for folder, _, names in os.walk(directory):
                for name in names:
                    with suppress(OSError):
                        size += os.lstat(os.path.join(folder, name)).st_blocks * 512
                files += len(names) + 1
                if files > _MOST_FILES:
                    return f"it was killed, because it made more than {_MOST_FILES} files"
        if size <= limit:
            return None
        return f"it was killed, because its files take {_mib(size)}; {_mib(limit)} are allowed"

    def _kill(self, family: Sequence[int]) -> None:
        for pid in family:
            if pid != self._root:  # the guardian collects the rest and reports
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


_OWN_THREADS = 16


def descendants(root: int) -> list[int]:
    """A process and all that came from it and are still in its line."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    found.extend(int(child) for child in file.read().split())
    return found


def _threads(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return 0


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
            for line in file:
                if line.startswith("Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return _resident(pid)


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"
