"""Live sessions of this user, seen from any process, by the directories they lie in. Starts no kernel."""

from __future__ import annotations

import functools
import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.files.session_directory import FACTS, HostToken, remove_nameless, runtime_root
from kernel_bridge.inside.removal import remove_tree

__all__ = ["LiveSession", "live_sessions", "sweep"]

_MOST_BYTES = 64 * 1024  # of a session's description


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session whose host is alive."""

    id: str  # the name of its directory
    host_pid: int
    command: str  # the host's command line
    started: float  # seconds since the epoch
    connection_file: Path


def live_sessions(root: Path | None = None) -> list[LiveSession]:
    """The sessions below `root` (None: the user's runtime directory) whose host lives, oldest first.

    Directories that a host left behind when it was killed are removed on the way. Those of hosts that this process
    cannot see, because each is in a container of its own, are neither given nor removed.
    """
    root = runtime_root() if root is None else root
    found: list[LiveSession] = []
    for directory in root.iterdir() if root.is_dir() else ():
        try:
            session, host = _read(directory)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            remove_nameless(directory)  # unless it is being made or removed right now, or not ours
            continue
        lives = host.lives()
        if lives is False:
            remove_tree(directory, last=FACTS)
        elif lives and session.connection_file.exists():
            found.append(session)
    return sorted(found, key=lambda session: session.started)


@functools.cache
def sweep(root: Path) -> None:
    """Remove what hosts that were killed while they started a kernel, before it had a guardian, left below `root`.

    Once in a process.
    """
    live_sessions(root)


def _read(directory: Path) -> tuple[LiveSession, HostToken]:
    """A session as it describes itself, and its host.

    A kernel that nothing confines can write there as its host can, so what is read is doubted.
    """
    # Not blocking, for a pipe may stand there.
    with open(os.open(directory / FACTS, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        facts = json.loads(file.read(_MOST_BYTES))
    pid, started = int(facts["host_pid"]), float(facts["started"])
    host = HostToken(pid, facts["host_started"], facts.get("host_boot"), facts.get("host_namespace"))
    if not (0 < pid < 2**31 and math.isfinite(started) and host.is_plain()):
        raise ValueError("no process has such a number, or none began at such a time")
    path = Path(str(facts["connection_file"]))
    os.fsencode(path)  # raises for what no path can hold
    return LiveSession(directory.name, pid, str(facts["command"]), started, path), host
