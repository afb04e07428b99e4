"""What processes take of memory and descriptors, read from /proc. Linux only.

A process is looked at through its tasks, not through its first one alone: that one may have ended while others live,
and then tells of no memory and no files; and another task may have descriptors of its own.
"""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

__all__ = [
    "Descriptors",
    "Unmeasurable",
    "cpu_seconds",
    "deleted_mappings",
    "mapping_bytes",
    "memory",
    "process_clock",
    "resident",
    "tasks",
]

_LINES = (b"VmRSS:", b"VmSwap:", b"VmPTE:")  # of status: memory, what of it is swapped out, and the tables for it
_PIPE_BYTES = 65536  # that one holds; none can be made larger
_WATCH_BYTES = 200  # of the system's memory for one descriptor in one epoll
_MAPPING_BYTES = 256  # of the system's memory for one range of addresses of one process
_SOCKET_BYTES = 212_992  # that one may hold, where the system does not tell
_KCMP = {"x86_64": 312, "aarch64": 272}.get(platform.machine())
_KCMP_VM, _KCMP_FILES = 1, 2


class Unmeasurable(Exception):
    """What processes use cannot be measured, or never ends. The text is the reason, as a clause."""


def tasks(pid: int) -> list[str]:
    """The threads of a process, the first one first, also when that has ended; none: it is gone."""
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def process_clock(pid: int) -> int:
    """The number of the clock of the CPU time of a whole process, ended threads included."""
    return ~pid << 3 | 2


def cpu_seconds(pids: Iterable[int]) -> list[float] | None:
    """The CPU time of each process; None: one has ended, or does not tell."""
    try:
        return [time.clock_gettime(process_clock(pid)) for pid in pids]
    except OSError:
        return None


def resident(pid: int) -> int:
    """Bytes of memory that a process has, with all that it shares. Raises: Unmeasurable."""
    return _first(pid)[1]


def _first(pid: int) -> tuple[str, int]:
    """The first task of a process that has memory, and how much; 0 when none has: it has ended, or is about to."""
    for task in tasks(pid):
        if (has := _memory_of(pid, task)) is not None:
            return task, has
    return "", 0


def _memory_of(pid: int, task: str) -> int | None:
    """Bytes of memory that a thread has; None: it has ended, or is about to. Raises: Unmeasurable."""
    try:
        with open(f"/proc/{pid}/task/{task}/status", "rb") as file:
            lines = file.read().splitlines()
    except PermissionError:
        raise Unmeasurable("it hid its memory from the watchdog") from None
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith(_LINES)]
    return sum(found) if found else None


def memory(pids: Iterable[int]) -> int:
    """Bytes of memory that these processes have together; what they share counts once. Slow. Raises: Unmeasurable."""
    seen: list[int] = []
    used = 0
    for pid in pids:
        task, all_of_it = _first(pid)
        # Tasks that have memory are compared, for those that have ended have the same, none. Alive a child and its
        # parent have one memory, until the child runs another program.
        if all_of_it and not any(_same(int(task), other, _KCMP_VM) for other in seen):
            seen.append(int(task))
            used += _proportional(pid, task, all_of_it)
    return used


def mapping_bytes(pids: Iterable[int], most: int) -> int:
    """Bytes of the system's memory for what processes have mapped: no process shows it as its own. Stops above `most`.

    Raises: Unmeasurable.
    """
    used = 0
    for pid in pids:
        task, _ = _first(pid)
        try:
            with open(f"/proc/{task}/maps", "rb", buffering=2**16) as file:
                for _ in file:
                    used += _MAPPING_BYTES
                    if used > most:
                        return used
        except PermissionError:
            raise Unmeasurable("it hid its memory from the watchdog") from None
        except OSError:
            continue  # it has ended
    return used


def deleted_mappings(pid: int, below: Sequence[str]) -> dict[str, str]:
    """What a process has mapped of files that no directory names any more: their last paths, and a link to each.

    Args:
        below: the directories in which these files were.
    """
    task, _ = _first(pid)
    found: dict[str, str] = {}
    try:
        with open(f"/proc/{task}/maps", "rb") as file:
            for line in file:
                if line.endswith(_DELETED):
                    place, _, _, _, inode, path = os.fsdecode(line.rstrip(b"\n")).split(None, 5)
                    if path.startswith(tuple(f"{directory}/" for directory in below)):
                        first, last = (int(end, 16) for end in place.split("-"))
                        found[f"{path} {inode}"] = f"/proc/{task}/map_files/{first:x}-{last:x}"
    except (OSError, ValueError):
        pass  # it has ended
    return found


_DELETED = b" (deleted)\n"


def _proportional(pid: int, task: str, otherwise: int) -> int:
    used = 0
    try:
        with open(f"/proc/{pid}/task/{task}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith((b"Pss:", b"SwapPss:")):
                    used += int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return otherwise
    return used or otherwise


def _same(one: int, other: int, what: int) -> bool:
    """Whether two tasks have the same memory, or descriptors. False, too, where the system does not tell."""
    return _KCMP is not None and _libc.syscall(_KCMP, one, other, what, 0, 0) == 0


_libc: Any = ctypes.CDLL(None) if os.name == "posix" else None  # Windows has no such library


class Descriptors:
    """The descriptors of some processes, each table of them once.

    Raises:
        Unmeasurable: a process does not show them.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self.links: dict[str, str] = {}  # /proc/N/task/N/fd/N -> what it says there
        self._watches = self._networks = self._terminals = 0
        self._sockets: set[str] = set()  # of those network namespaces, as links name them
        networks: set[str] = set()
        mounts: set[str] = set()
        for pid in pids:
            for place in _tables(pid):
                self._add(place)
            self._count_network(pid, networks)
            self._count_terminals(pid, mounts)

    def _add(self, place: str) -> None:
        found = dict(_read_links(place))
        self.links.update(found)
        self._watches += len(found) * sum(link == "anon_inode:[eventpoll]" for link in found.values())

    def _count_network(self, pid: int, networks: set[str]) -> None:
        """Count the sockets of a network namespace that is not ours: those, too, of which no descriptor is left."""
        try:
            network = os.readlink(f"/proc/{pid}/ns/net")
            if network not in networks and network != os.readlink("/proc/self/ns/net"):
                networks.add(network)
                with open(f"/proc/{pid}/net/unix", "rb") as file:
                    rows = file.read().splitlines()[1:]  # but for the heading
                self._networks += len(rows)
                self._sockets.update(f"socket:[{row.split()[6].decode()}]" for row in rows if row.split()[6] != b"0")
        except OSError:
            return

    def _count_terminals(self, pid: int, mounts: set[str]) -> None:
        """Count the terminals of a file system that is not ours: those, too, of which no descriptor is left."""
        try:
            mount = os.readlink(f"/proc/{pid}/ns/mnt")
            if mount not in mounts and mount != os.readlink("/proc/self/ns/mnt"):
                mounts.add(mount)
                self._terminals += sum(name.isdigit() for name in os.listdir(f"/proc/{pid}/root/dev/pts"))
        except OSError:
            return

    def count(self) -> int:
        """How many there are."""
        return len(self.links)

    def terminals(self) -> int:
        """How many are of terminals that they made."""
        return max(self._terminals, sum(link.endswith("/ptmx") for link in self.links.values()))

    def on_their_way(self) -> int:
        """How many were sent and not received yet, which is all that the system tells of them."""
        places = {link: place for place, link in self.links.items() if link.startswith("socket:")}
        return len(self._sockets - places.keys()) + sum(map(_waiting, places.values()))

    def locks(self) -> int:
        """How many POSIX locks they have; the system bounds neither them nor their memory.

        /proc/locks has them all in one place, but whoever reads that keeps all of the machine from locking meanwhile.
        """
        count = 0
        for place in {(os.path.dirname(place), link): place for place, link in self.links.items()}.values():
            if self.links[place].startswith("/"):
                try:
                    with open(place.replace("/fd/", "/fdinfo/"), "rb") as file:
                        count += file.read().count(b"\nlock:")
                except OSError:
                    continue
        return count

    def system_memory(self) -> Mapping[str, int]:
        """Bytes of memory that the system may have for them, by what for: no process shows it as its own."""
        names = set(self.links.values())
        sockets = max(self._networks, sum(name.startswith("socket:") for name in names))
        return {
            "sockets": sockets * _socket_bytes(),
            "pipes": sum(name.startswith("pipe:") for name in names) * _PIPE_BYTES,
            "watches": self._watches * _WATCH_BYTES,
        }


def _tables(pid: int) -> Iterator[str]:
    """Where the descriptors of a process are, once each."""
    seen: list[str] = []
    for task in tasks(pid):
        if not any(_same(int(task), int(other), _KCMP_FILES) for other in seen):
            if seen and _KCMP is None:
                return
            seen.append(task)
            yield f"/proc/{pid}/task/{task}/fd"


def _read_links(place: str) -> Iterator[tuple[str, str]]:
    try:
        names = os.listdir(place)
    except PermissionError:
        # Of a thread that has ended they cannot be seen either, also where others of its process live: it has none.
        _, _, pid, _, task, _ = place.split("/")
        if _memory_of(int(pid), task) is not None:
            raise Unmeasurable("it hid its open files from the watchdog") from None
        return
    except OSError:
        return  # it has ended
    for name in names:
        try:
            yield f"{place}/{name}", os.readlink(f"{place}/{name}")
        except OSError:
            continue


def _waiting(place: str) -> int:
    """How many descriptors wait in the socket that this one is."""
    try:
        with open(place.replace("/fd/", "/fdinfo/"), "rb") as file:
            return sum(int(line.split()[1]) for line in file if line.startswith(b"scm_fds:"))
    except (OSError, ValueError):
        return 0


def _socket_bytes() -> int:
    try:
        with open("/proc/sys/net/core/wmem_default", "rb") as file:
            return int(file.read())
    except (OSError, ValueError):
        return _SOCKET_BYTES
