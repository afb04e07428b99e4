"""The facts by which other processes find a session: `session.json` in its directory, and its host's token."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from kernel_bridge.files.private_files import make_file

__all__ = ["CONNECTION", "FACTS", "HostToken", "SessionFacts", "read_facts", "write_facts"]

FACTS = "session.json"  # the guardian knows this name too
CONNECTION = "kernel.json"  # the connection file, beside it
_MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class HostToken:
    """Tells a process from every other one, also a later one with the same pid; None: the platform does not tell."""

    pid: int
    started: str | None  # in the kernel's own ticks
    boot: str | None  # of the machine
    namespace: str | None  # the one that the pid belongs to

    @staticmethod
    def here() -> HostToken:
        """This process."""
        pid = os.getpid()
        return HostToken(pid, _process_started(pid), _boot(), _namespace())

    def lives(self) -> bool | None:
        """Whether the process is alive. None: it is in a namespace of its own, whose processes are not seen here."""
        if self.boot is not None and self.boot != _boot():
            return False
        if self.namespace is not None and self.namespace != _namespace():
            return None
        if self.started is not None:
            return _process_started(self.pid) == self.started
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


@dataclass(frozen=True, slots=True)
class SessionFacts:
    """What the file holds."""

    host_pid: int
    host_started: str | None
    command: str  # the host's command line
    started: float  # seconds since the epoch
    host_boot: str | None = None
    host_namespace: str | None = None

    @property
    def host(self) -> HostToken:
        """The process that owns the session."""
        return HostToken(self.host_pid, self.host_started, self.host_boot, self.host_namespace)


def write_facts(directory: Path, started: float | None = None) -> None:
    """Say whose a session's directory is: this process's. Raises: OSError.

    Args:
        started: seconds since the epoch; None: now.
    """
    host = HostToken.here()
    command = " ".join(sys.argv)[:200] or sys.executable
    begun = time.time() if started is None else started
    facts = SessionFacts(host.pid, host.started, command, begun, host.boot, host.namespace)
    new = directory / f"{FACTS}.new"  # no other process finds a part of it
    make_file(new, json.dumps(asdict(facts)).encode())
    new.replace(directory / FACTS)


def read_facts(directory: Path) -> SessionFacts:
    """Whose a session's directory is. A kernel that nothing confines can write there, so what is read is doubted.

    Raises:
        OSError, ValueError: there is no such file, or it does not hold facts.
    """
    # Not blocking, for a pipe may stand there.
    with open(os.open(directory / FACTS, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        data = file.read(_MOST_BYTES)
    try:
        facts = msgspec.convert(json.loads(data), SessionFacts)
    except (msgspec.ValidationError, RecursionError, OverflowError) as error:
        raise ValueError(f"{FACTS} does not hold the facts of a session: {error}") from error
    if not 0 < facts.host_pid < 2**31 or not math.isfinite(facts.started):
        raise ValueError("no process has such a number, or none began at such a time")
    return facts


def _process_started(pid: int) -> str | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


def _boot() -> str | None:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def _namespace() -> str | None:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return None
