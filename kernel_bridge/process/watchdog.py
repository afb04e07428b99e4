"""The watchdog, which kills a kernel whose processes together use more than they may.

Resource limits bound each process by itself; only the sum bounds what a kernel with many processes takes. The watchdogs
of all kernels share a few threads. Linux only; elsewhere it does nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.errors import is_transient, what_to_do
from kernel_bridge.process.disk_use import DiskUse
from kernel_bridge.process.resource_use import (
    Descriptors,
    Unmeasurable,
    cpu_seconds,
    mapping_bytes,
    memory,
    resident,
    tasks,
)
from kernel_bridge.threads.due_tasks import DueTasks

__all__ = ["Bounds", "Watchdog", "descendants"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25
_CLOSE_LOOK_SECONDS = 0.02  # once more than half of the memory is in use, or a process has escaped a look
_DISK_SECONDS = 1.0  # walking directories costs more
_JOIN_SECONDS = 5.0
_LONGEST_REST_SECONDS = 5.0  # without a look, however little a kernel does
_BLIND_LOOKS = 4  # that may fail one after the other before what cannot be watched is ended
_OWN_THREADS = 16  # the guardian, the wrapper and the kernel's own service threads are not the agent's
_MOST_FILES, _FEWEST_FILES = 100_000, 10_000  # that a kernel may have, between them one for each block of its bytes
_FILE_BYTES = 4096
_FILES_FOR_EACH_PROCESS = 8  # open files of all processes together, as a multiple of what one may have
# What the machine or the user has only so many of, and honest code needs few of.
_MOST_LOCKS, _MOST_TERMINALS, _MOST_SENT, _MOST_WATCHES_BYTES = 10_000, 64, 64, 64 * 2**20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all processes of one kernel may use together. Sizes are bytes; None: not bounded."""

    memory_bytes: int | None
    processes: int | None  # and threads
    disk_bytes: int | None
    open_files: int | None  # of each process; all together may have some times as many
    directories: Sequence[Path]  # of the host, in which the kernel may write
    tmpfs: Sequence[str] = ()  # where the kernel's own file systems in memory are, as it sees them
    wrappers: int = 0  # processes of ours between the guardian and the kernel

    def nothing(self) -> bool:
        """Whether there is nothing to watch."""
        return all(bound is None for bound in (self.memory_bytes, self.processes, self.disk_bytes, self.open_files))


_looks = DueTasks("kernel watchdog")  # of the whole process: a thread for each kernel is what it saves
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_looks.leave_to_parent)


class Watchdog:
    """Watches one kernel from construction to `stop`.

    Args:
        root: the process that the host started; it and all its descendants count.

    Raises:
        OSError: the system has no thread left.
    """

    def __init__(self, root: int, bounds: Bounds) -> None:
        self.verdict: str | None = None  # why the kernel was killed, as a clause
        self._root = root
        self._bounds = bounds
        self._wait = _LOOK_SECONDS
        self._next_disk = 0.0
        self._system_bytes = 0  # of memory that the system may have for the kernel's descriptors and mappings
        self._blind = 0
        self._family = [root]
        self._used: list[float] | None = None  # CPU time of the family before the last look; None: look at all events
        self._rests_until = 0.0
        self._stopped = False
        if not bounds.nothing() and sys.platform.startswith("linux"):
            _looks.add(self, self._wait)

    def stop(self) -> None:
        """Stop watching. Idempotent."""
        self._stopped = True
        _looks.cancel(self, _JOIN_SECONDS)

    def run(self) -> float | None:
        """Look once, and kill the kernel if it must be. Returns the seconds until the next look."""
        if self._rests():
            return self._wait
        try:
            before, used = self._family, self._cpu_seconds()
            self._family = descendants(self._root)
            verdict = self._look(self._family)
            self._blind = 0
            self._used = used if self._family == before else None
            self._rests_until = time.monotonic() + _LONGEST_REST_SECONDS
        except Exception as error:  # whatever it was, an unwatched kernel must not run on
            self._blind += 1
            self._used = None
            if self._blind < _BLIND_LOOKS and is_transient(error):
                return self._wait  # this process has no descriptor left just now
            logger.exception("The watchdog failed, so its kernel is ended")
            reason = f"{type(error).__name__}: {error}"
            verdict = f"it was killed, because the watchdog over it failed ({reason}{what_to_do(reason)})"
        if self._stopped:
            return None
        if verdict is None:
            return self._wait
        self.verdict = verdict
        self._kill(self._family)
        return None

    def _rests(self) -> bool:
        """Whether the kernel has done nothing since before the last look: what uses no CPU time takes no more."""
        used = self._used
        return used is not None and time.monotonic() < self._rests_until and self._cpu_seconds() == used

    def _cpu_seconds(self) -> list[float] | None:
        return cpu_seconds(self._family[1:] or self._family)  # a guardian, which is ours, looks around now and then

    def _look(self, family: Sequence[int]) -> str | None:
        try:
            verdict = self._too_many(family) or self._too_much_memory(family)
            now = time.monotonic()
            if verdict is None and now >= self._next_disk:
                verdict = self._look_closely(family)
                took = time.monotonic() - now
                self._next_disk = now + max(_DISK_SECONDS, 5 * took)
        except Unmeasurable as refused:
            return f"it was killed, because {refused}"
        # What becomes another process again and again, with all that it has, is caught by looking often.
        if not all(os.path.exists(f"/proc/{pid}") for pid in family):
            self._wait = _CLOSE_LOOK_SECONDS
        return verdict

    def _look_closely(self, family: Sequence[int]) -> str | None:
        found = Descriptors(family)
        self._system_bytes = sum(found.system_memory().values())
        if self._bounds.memory_bytes is not None:
            self._system_bytes += mapping_bytes(family, self._bounds.memory_bytes)
        return (
            self._too_many_open(found)
            or self._too_many_shared(found)
            or self._too_much_memory(family)
            or self._too_much_disk(family, found)
        )

    def _too_many(self, family: Sequence[int]) -> str | None:
        limit = self._bounds.processes
        if limit is None:
            return None
        count = sum(len(tasks(pid)) for pid in family)
        if count <= limit + _OWN_THREADS:
            return None
        return f"it was killed, because it had {count} processes and threads; {limit} are allowed"

    def _too_much_memory(self, family: Sequence[int]) -> str | None:
        limit = self._bounds.memory_bytes
        if limit is None:
            return None
        held = self._system_bytes
        used = held + sum(map(resident, family))
        self._wait = _CLOSE_LOOK_SECONDS if used > limit // 2 else _LOOK_SECONDS
        if used <= limit:
            return None
        used = held + memory(family)  # the fair sum, which takes longer: shared pages count once
        if used <= limit:
            return None
        used_mib, limit_mib = _mib(used, limit)
        part = f", {held / 2**20:.0f} MiB of it for sockets, pipes, epolls and mappings" if held > used // 10 else ""
        return f"it was killed, because its processes together used {used_mib} of memory{part}; {limit_mib} are allowed"

    def _too_many_open(self, found: Descriptors) -> str | None:
        each = self._bounds.open_files
        if each is None or found.count() <= each * _FILES_FOR_EACH_PROCESS:
            return None
        return (
            f"it was killed, because its processes together had {found.count()} open files; "
            f"{each * _FILES_FOR_EACH_PROCESS} are allowed"
        )

    def _too_many_shared(self, found: Descriptors) -> str | None:
        """Whether it uses up what others of the machine or of the same user need too."""
        if self._bounds.open_files is None:
            return None
        for what, count, most in (
            ("file locks", found.locks(), _MOST_LOCKS),
            ("terminals", found.terminals(), _MOST_TERMINALS),
            ("descriptors on their way in sockets", found.on_their_way(), _MOST_SENT),
            ("bytes of epoll watches", found.system_memory()["watches"], _MOST_WATCHES_BYTES),
        ):
            if count > most:
                return f"it was killed, because it had {count} {what}; {most} are allowed"
        return None

    def _too_much_disk(self, family: Sequence[int], found: Descriptors) -> str | None:
        limit = self._bounds.disk_bytes
        if limit is None:
            return None
        use = DiskUse(max(_FEWEST_FILES, min(_MOST_FILES, limit // _FILE_BYTES)))
        for directory in self._bounds.directories:
            use.walk(directory)
        if self._bounds.directories:
            use.unlinked(found)
            for pid in family[1 + self._bounds.wrappers :]:
                use.mapped(pid, self._bounds.directories)
        use.in_memory(family, self._bounds.tmpfs)
        if use.size <= limit:
            return None
        used_mib, limit_mib = _mib(use.size, limit)
        return f"it was killed, because its files take {used_mib}; {limit_mib} are allowed"

    def _kill(self, family: Sequence[int]) -> None:
        for pid in family:
            if pid != self._root:  # the guardian collects the rest and reports
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)


def descendants(root: int) -> list[int]:
    """A process and all that came from it and are still in its line."""
    found = [root]
    for pid in found:
        with suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with suppress(OSError), open(f"/proc/{pid}/task/{thread}/children", encoding="ascii") as file:
                    found.extend(int(child) for child in file.read().split())
    return found


def _mib(used: int, limit: int) -> tuple[str, str]:
    """Two different sizes, with as many digits as show that they are different."""
    digits = next(n for n in range(21) if round(used / 2**20, n) != round(limit / 2**20, n))
    return f"{used / 2**20:.{digits}f} MiB", f"{limit / 2**20:.{digits}f} MiB"
