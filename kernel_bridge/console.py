"""What `python -m kernel_bridge list` and `attach` do: a table of the live sessions, a console on one of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, cast

from kernel_bridge.files.live_sessions import LiveSession
from kernel_bridge.text import printable_line

__all__ = ["attach", "table"]

_PATIENCE_SECONDS = 2.0  # after which a person is told why there is no prompt
_LONGEST_WAIT_SECONDS = 10 * 86400.0  # for the end of a cell; Jupyter's console gives up after a minute
_WAITING = "the kernel is busy; the console opens when it answers (Ctrl-C leaves)"


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
    """Open a Jupyter console on a session, in this terminal, when no cell runs any more. Returns its exit status."""
    try:
        from jupyter_console.app import ZMQTerminalIPythonApp
    except ImportError:
        print("the console needs jupyter_console: pip install jupyter_console", file=sys.stderr)
        return 2

    class Console(ZMQTerminalIPythonApp):
        def init_shell(self) -> None:
            told = threading.Timer(_PATIENCE_SECONDS, print, (_WAITING,), {"file": sys.stderr})
            told.daemon = True
            told.start()
            try:
                super().init_shell()
            finally:
                told.cancel()

        def handle_sigint(self, *args: Any) -> None:
            if not hasattr(self, "shell"):  # it is waiting for the kernel
                raise KeyboardInterrupt
            cast("Any", super()).handle_sigint(*args)

    wait = f"--ZMQTerminalInteractiveShell.kernel_timeout={_LONGEST_WAIT_SECONDS}"
    try:
        Console.launch_instance(["--existing", str(session.connection_file), wait])
    except KeyboardInterrupt:
        return 130
    return 0
