"""What `python -m kernel_bridge list` and `attach` do: a table of the live sessions, a console on one of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from kernel_bridge.files.live_sessions import LiveSession
from kernel_bridge.text import printable_line

__all__ = ["attach", "table"]


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
        print("the console needs jupyter_console: pip install jupyter_console", file=sys.stderr)
        return 2
    ZMQTerminalIPythonApp.launch_instance(["--existing", str(session.connection_file)])
    return 0
