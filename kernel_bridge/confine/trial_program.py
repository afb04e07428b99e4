"""Runs a small program to find something out, and runs it again when a signal from elsewhere ended it.

Each runs in a session of its own, because Ctrl-C in a terminal goes to all of the foreground's processes, and with the
signals of a fresh process: bubblewrap, for one, waits for ever where SIGCHLD is ignored. What it leaves running in its
process group ends with it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kernel_bridge.confine.launch_plan import spawn_command
from kernel_bridge.errors import TransientError, is_transient
from kernel_bridge.files.standard_descriptors import occupy_standard_files
from kernel_bridge.threads.waiting import wait_for

__all__ = ["Answer", "run_and_read"]

_TRIES = 5

_FROM_OUTSIDE = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGKILL")
    if hasattr(signal, name)  # not all of them on Windows
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a program said before it ended."""

    answer: bytes  # what it wrote to the descriptor that it was given for its answer, and nobody else did
    stdout: bytes
    stderr: bytes
    # Its exit status, negative for a signal. Only a hint: where a host ignores SIGCHLD or reaps all children itself, it
    # is 0 however the program ended.
    status: int

    def last_words(self) -> str:
        """The last line on its stderr; empty: it said nothing there."""
        said = self.stderr.decode("utf-8", "replace").strip().splitlines()
        return said[-1][:300] if said else ""


def run_and_read(
    command: Sequence[str],
    *,
    seconds: float,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    answers: bool = False,
    begins_fresh: bool = False,
) -> Answer:
    """Run a program to its end, without input, and capture its output. One that was cut off is run again.

    Args:
        env, cwd: as in `subprocess.run`.
        answers: give it one more argument, the number of a descriptor that takes its answer. Other code, such as a
            `sitecustomize`, may write to its stdout.
        begins_fresh: it sees to its signals itself.

    Raises:
        TransientError: it could not be run now, took longer than `seconds` and was killed, or was cut off each time;
            or this process may not run its own Python, which is to begin everything: then nothing was found out.
        OSError: it cannot be run.
    """
    occupy_standard_files()
    name = os.path.basename(command[0])
    if os.name == "posix" and not begins_fresh:
        command = spawn_command("--", *command)
    try:
        for _ in range(_TRIES):
            ended = _run(command, seconds, env, cwd, answers=answers)
            if not any(ended.status in (-number, 128 + number) for number in _FROM_OUTSIDE):  # of it, or as its wrapper
                return ended
    except OSError as error:
        if is_transient(error):
            raise TransientError(f"{name} cannot be run now: {error}") from error
        if os.name == "posix":  # a daemon that became another user, or whose Python was replaced
            raise TransientError(f"this process cannot run its own Python: {error}") from error
        raise
    raise TransientError(f"{name} was ended by somebody else, {_TRIES} times in a row")


def _run(
    command: Sequence[str],
    seconds: float,
    env: Mapping[str, str] | None,
    cwd: str | Path | None,
    *,
    answers: bool,
) -> Answer:
    with contextlib.ExitStack() as files:
        # Files, not pipes: what the program leaves running may hold a pipe open for ever.
        answer, out, err = (files.enter_context(_nameless_file()) for _ in range(3))
        process = subprocess.Popen(
            [*command, *([str(answer.fileno())] if answers else [])],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
            env=env,
            cwd=cwd,
            pass_fds=(answer.fileno(),) if answers else (),
        )
        try:
            _wait(process, seconds)
        except subprocess.TimeoutExpired:
            raise TransientError(f"it did not end within {seconds:g} s") from None
        finally:
            _kill(process)
        said = [_content(file) for file in (answer, out, err)]
        return Answer(said[0], said[1], said[2], process.returncode)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for its end. `Popen.wait` alone looks again and again, less and less often. Raises: TimeoutExpired."""
    deadline = time.monotonic() + seconds
    if hasattr(os, "pidfd_open"):
        with contextlib.suppress(OSError):  # refused here, or it has ended and somebody else has collected it
            ended = os.pidfd_open(process.pid)
            try:
                wait_for((ended,), (), seconds)
            finally:
                os.close(ended)
    process.wait(max(0.0, deadline - time.monotonic()))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the program, and what it has left running: a bubblewrap that fails midway leaves a child that waits."""
    if os.name == "posix":
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # it leads a session of its own
    process.kill()
    process.wait()


def _nameless_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):  # needs no directory that can be written
        return open(os.memfd_create("said"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _content(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()
