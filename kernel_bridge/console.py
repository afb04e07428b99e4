"""Live sessions of this user, seen from any process: find them, attach a console. Starts no kernel."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.inside.removal import remove_tree
from kernel_bridge.session_directory import FACTS, process_started, runtime_root
from kernel_bridge.shown import printable_line

__all__ = ["LiveSession", "attach", "live_sessions", "table"]

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

    Directories that a host left behind when it was killed are removed on the way.
    """
    root = runtime_root() if root is None else root
    found: list[LiveSession] = []
    for directory in root.iterdir() if root.is_dir() else ():
        try:
            session, token = _read(directory)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue  # being made or removed right now, or not ours
        if not _lives(session.host_pid, token):
            remove_tree(directory, last=FACTS)
        elif session.connection_file.exists():
            found.append(session)
    return sorted(found, key=lambda session: session.started)


def _read(directory: Path) -> tuple[LiveSession, str | None]:
    """A session as it describes itself, and when its host's process started.

    A kernel that nothing confines can write there as its host can, so what is read is doubted.
    """
    # Not blocking, for a pipe may stand there.
    with open(os.open(directory / FACTS, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        facts = json.loads(file.read(_MOST_BYTES))
    pid, started, token = int(facts["host_pid"]), float(facts["started"]), facts["host_started"]
    if not (0 < pid < 2**31 and math.isfinite(started) and isinstance(token, (str, type(None)))):
        raise ValueError("no process has such a number, or none began at such a time")
    path = Path(str(facts["connection_file"]))
    os.fsencode(path)  # raises for what no path can hold
    return LiveSession(directory.name, pid, str(facts["command"]), started, path), token


def _lives(pid: int, token: str | None) -> bool:
    if token is not None:
        return process_started(pid) == token
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def table(sessions: Sequence[LiveSession]) -> str:
    """The sessions as lines for a terminal."""
    if not sessions:
        return "no live sessions"
    now = time.time()
    lines = [f"{'ID':<10}{'HOST PID':<10}{'AGE':<9}{'CONNECTION FILE':<54}COMMAND"]
    for s in sessions:
        id, file, command = printable_line(s.id), printable_line(str(s.connection_file)), printable_line(s.command, 60)
        lines.append(f"{id:<10}{s.host_pid:<10}{_age(now - s.started):<9}{file:<54}{command}")
    return "\n".join(lines)


def _age(seconds: float) -> str:
    seconds = max(0, int(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"


def attach(session: LiveSession) -> int:
    """Open a Jupyter console on a session, in this terminal. Returns its exit status."""
    try:
        from jupyter_console.app import ZMQTerminalIPythonApp
    except ImportError:
        print("the console needs jupyter_console: pip install 'rlmoptimizer[console]'", file=sys.stderr)
        return 2
    ZMQTerminalIPythonApp.launch_instance(["--existing", str(session.connection_file)])
    return 0
