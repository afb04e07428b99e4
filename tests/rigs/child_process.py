"""Python processes that tests start: wait for a line they print, stop them by a signal, collect what came of them.

`fresh` runs code as `python -c` does. `forked` runs it in a fork of a process that has imported DSPy, both packages and
the rigs already, which saves two seconds: for code that does not depend on how its interpreter was started. Both find
the modules that this process finds.

    with forked("print('ready', flush=True); input()") as child:
        child.wait_for("ready")
        child.send_signal(signal.SIGKILL)
        assert child.ended().status == -signal.SIGKILL
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

__all__ = ["Child", "Ended", "WarmProcess", "environment", "forked", "fresh", "output_of", "warm_process"]

_SECONDS = 250.0  # for what a child is waited for; a test's own limit is longer
_PRELUDE = "import dspy, stoppable, stored_runs\nfrom kernel_bridge import KernelInterpreter, KernelSession"

Variables: TypeAlias = Mapping[str, "str | None"]  # None: not set


def environment(changes: Variables | None = None) -> dict[str, str]:
    """The environment of this process, with the way to the modules that it finds, and these changes."""
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(changes or {})}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that has ended."""

    status: int  # its exit status, or minus the signal that killed it
    out: str  # what nobody had read before
    err: str


class _Fork:
    """A child of a warm process, with the part of `subprocess.Popen` that is used here."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = self._number(_SECONDS)
        self.returncode: int | None = None

    def wait(self, timeout: float) -> int:
        if self.returncode is None:
            self.returncode = self._number(timeout)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        self._connection.close()

    def _number(self, timeout: float) -> int:
        if not select.select([self._connection], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a fork", timeout)
        text = b""
        while not text.endswith(b"\n"):
            read = self._connection.recv(1)
            assert read, "the warm process is gone"
            text += read
        return int(text)


class Child:
    """A process of ours. Leaving its block kills it when it has not ended by itself."""

    def __init__(self, process: subprocess.Popen[bytes] | _Fork, stdin: int, stdout: int, stderr: int) -> None:
        self._process = process
        self.stdin = open(stdin, "w", encoding="utf-8")  # noqa: SIM115 - closed at the end of the block
        self._stdout = stdout
        self._stderr = stderr
        self._unread = b""

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def line(self) -> str:
        """The next line that it prints, without its end; what there is when it has closed its output."""
        deadline = time.monotonic() + _SECONDS
        while b"\n" not in self._unread and self._read_more(deadline):
            pass
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def wait_for(self, line: str) -> None:
        """Wait until it prints this line. Fails when it prints another one, or ends."""
        said = self.line()
        assert said == line, (said, self.errors())

    def send_signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self, seconds: float = _SECONDS) -> int:
        """Wait for its end; gives its exit status. What it prints must be little."""
        return self._process.wait(seconds)

    def ended(self) -> Ended:
        """Close its input, and wait for the end of its output and of itself."""
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        deadline = time.monotonic() + _SECONDS
        while self._read_more(deadline):
            pass
        out, self._unread = self._unread, b""
        return Ended(self.wait(), out.decode(), self.errors())

    def killed(self) -> None:
        """Kill it, and wait for its end."""
        self.send_signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL, self.errors()

    def errors(self) -> str:
        """What it has written to stderr so far."""
        return os.pread(self._stderr, os.fstat(self._stderr).st_size, 0).decode(errors="replace")

    def _read_more(self, deadline: float) -> bool:
        if not select.select([self._stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise AssertionError(f"said nothing within {_SECONDS:.0f} s; before: {self._unread!r}\n{self.errors()}")
        read = os.read(self._stdout, 65536)
        self._unread += read
        return bool(read)

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        if self.runs:
            self.send_signal(signal.SIGKILL)
        self.wait()
        if isinstance(self._process, _Fork):
            self._process.close()
        os.close(self._stdout)
        os.close(self._stderr)


class WarmProcess:
    """A process that has run `prelude` and forks; see warm_process.py. One thread uses it."""

    def __init__(self, prelude: str = _PRELUDE, *, variables: Variables | None = None) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("warm_process.py")), str(theirs.fileno()), prelude],
                stdin=subprocess.DEVNULL,
                env=environment(variables),
                pass_fds=[theirs.fileno()],
            )
        assert self._control.recv(1), f"it ended with {self._process.wait()}"

    @property
    def pid(self) -> int:
        return self._process.pid

    def fork(self, asked: Mapping[str, Any], streams: tuple[int, int, int]) -> _Fork:
        ours, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [b"."], [theirs.fileno(), *streams])
        ours.sendall(json.dumps(asked).encode() + b"\n")
        return _Fork(ours)

    def close(self) -> None:
        self._control.close()
        self._process.wait(30)


@functools.cache
def warm_process() -> WarmProcess:
    """The one of this test run, started when it is first asked for. tests/conftest.py closes it."""
    return WarmProcess()


def fresh(
    code: str,
    *arguments: object,
    variables: Variables | None = None,
    directory: Path | None = None,
    new_session: bool = False,
    python: str = sys.executable,
    options: tuple[str, ...] = (),
) -> Child:
    """`python OPTIONS -c CODE ARGUMENTS`, with these changes of the environment."""

    def start(streams: tuple[int, int, int]) -> subprocess.Popen[bytes]:
        command = [python, *options, "-c", code, *map(str, arguments)]
        return subprocess.Popen(
            command,
            stdin=streams[0],
            stdout=streams[1],
            stderr=streams[2],
            env=environment(variables),
            cwd=directory,
            start_new_session=new_session,
        )

    return _started(start)


def forked(
    code: str,
    *arguments: object,
    variables: Variables | None = None,
    directory: Path | None = None,
    new_session: bool = False,
    terminal: int | None = None,
    warm: WarmProcess | None = None,
) -> Child:
    """The same in a fork of a warm process, by default the one of this test run. `fresh` where nothing can fork so.

    `terminal`: a descriptor that is to be its output and its errors.
    """
    if not hasattr(os, "waitid"):
        return fresh(code, *arguments, variables=variables, directory=directory, new_session=new_session)
    asked = {
        "code": code,
        "arguments": [str(argument) for argument in arguments],
        "environment": environment(variables),
        "directory": str(directory or Path.cwd()),
        "path": [*filter(None, sys.path)],
        "new_session": new_session,
    }

    def start(streams: tuple[int, int, int]) -> _Fork:
        own = streams if terminal is None else (streams[0], terminal, terminal)
        return (warm or warm_process()).fork(asked, own)

    return _started(start)


def output_of(child: Child) -> str:
    """What a process prints that ends by itself, without an error."""
    with child:
        ended = child.ended()
    assert ended.status == 0, (ended.status, ended.out[-3000:], ended.err[-3000:])
    return ended.out


def _started(start: Any) -> Child:
    reading, stdin = os.pipe()
    stdout, writing = os.pipe()
    with tempfile.TemporaryFile() as file:  # not a pipe, which would be full when nobody reads it
        stderr = os.dup(file.fileno())
    try:
        return Child(start((reading, writing, stderr)), stdin, stdout, stderr)
    except BaseException:
        for descriptor in (stdin, stdout, stderr):
            os.close(descriptor)
        raise
    finally:
        os.close(reading)
        os.close(writing)
