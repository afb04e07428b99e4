"""Small programs that are run to find something out. Knows none of them.

Each runs in a session of its own: Ctrl-C in a terminal goes to all of the foreground's processes, and one that was cut
off answers nothing, or something wrong. It may still come before the session is made.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["ask"]

_TRIES = 5

_FROM_OUTSIDE = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL")
    if hasattr(signal, name)  # not all of them on Windows
)


def ask(
    command: Sequence[str],
    *,
    seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    files: Sequence[int] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end; it gets no input, and its output is captured. The rest is as in `subprocess.run`.

    One that somebody else ended is run again, a few times.

    Args:
        files: descriptors that it gets under the same numbers, to be read from their start.

    Raises:
        OSError: it cannot be run.
        subprocess.TimeoutExpired: it took longer than `seconds` and was killed.
    """
    tries = 0
    while True:
        for descriptor in files:
            os.lseek(descriptor, 0, os.SEEK_SET)
        ended = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=seconds,
            check=False,
            start_new_session=True,
            env=env,
            cwd=cwd,
            pass_fds=files,
        )
        tries += 1
        if tries == _TRIES or not _was_cut(ended):
            return ended


def _was_cut(ended: subprocess.CompletedProcess[bytes]) -> bool:
    """Whether somebody else ended it, so that how it ended says nothing about it; also what it was the wrapper of."""
    return any(ended.returncode in (-number, 128 + number) for number in _FROM_OUTSIDE)
