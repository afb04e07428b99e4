"""Real terminals: for the Jupyter console, the same whoever runs the tests, and for any command, of any width."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

__all__ = ["console_environment", "run_in_terminal"]

_LOOKS = ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "COLORTERM", "TTY_COMPATIBLE", "TTY_INTERACTIVE")


def console_environment(folder: Path, **settings: float) -> dict[str, str]:
    """An environment in which the console finds no settings but these, and writes nothing outside of `folder`.

    `settings`: of its shell.
    """
    # After a second without an answer it would take Enter for the beginning of another line.
    found = {"ZMQTerminalInteractiveShell": {"kernel_is_complete_timeout": 60.0, **settings}}
    (folder / "config").mkdir()
    (folder / "config" / "jupyter_console_config.json").write_text(json.dumps(found), encoding="utf-8")
    places = {f"JUPYTER_{name.upper()}_DIR": str(folder / name) for name in ("config", "data", "runtime")}
    return {**os.environ, **places, "IPYTHONDIR": str(folder / "ipython"), "TERM": "xterm"}


def run_in_terminal(
    command: Sequence[str], columns: int, *, interrupt_at: str | None = None, **environment: str
) -> tuple[str, int]:
    """Run a command on a terminal of its own; gives all that it was sent, and the exit code.

    `interrupt_at`: Ctrl-C is typed when this text has come.
    """
    import fcntl
    import pty
    import struct
    import termios

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    variables = {name: text for name, text in os.environ.items() if name not in _LOOKS}

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    with os.fdopen(ours, "r+b", buffering=0) as terminal:
        with os.fdopen(theirs) as end:
            process = subprocess.Popen(
                command,
                stdin=end,
                stdout=end,
                stderr=end,
                env={**variables, "TERM": "xterm-256color", **environment},
                preexec_fn=take_terminal,
            )
        sent = b""
        with contextlib.suppress(OSError):  # the terminal has no other end any more
            while chunk := terminal.read(65536):
                sent += chunk
                if interrupt_at is not None and interrupt_at.encode() in sent:
                    terminal.write(b"\x03")
                    interrupt_at = None
        return sent.decode(), process.wait(30)
