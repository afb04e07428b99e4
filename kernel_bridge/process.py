"""The kernel's process: its directory, its connection file, its guardian. Knows processes, not cells.

A session lives in one 0700 directory with a short path, because a unix socket's path holds about 107 bytes. The
directory holds the connection file, the sockets of each kernel that the session has had, the scratch directory, and
`session.json`, by which other processes of the same user find it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kernel_bridge.cells import Limits
from kernel_bridge.confine import Confinement, plan_launch
from kernel_bridge.errors import StartupFailed

__all__ = ["Connection", "ExitReason", "KernelProcess", "SessionDirectory", "runtime_root"]

_LONGEST_ROOT = 70  # characters; the rest of 107 bytes is for the session's name and the socket's
_STDERR_BYTES = 4096  # of the kernel's last words, kept for a report
_KILL_SECONDS = 12.0  # the guardian gives itself ten


def runtime_root() -> Path:
    """The directory, private to this user, under which sessions live; made when it is not there."""
    uid = os.getuid() if hasattr(os, "getuid") else "user"
    candidates = [os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"]
    for base in candidates:
        if not base or not os.path.isdir(base) or not os.access(base, os.W_OK | os.X_OK):
            continue
        root = Path(base) / f"kernel_bridge-{uid}"
        if len(str(root)) > _LONGEST_ROOT and os.name == "posix":
            continue
        with contextlib.suppress(FileExistsError):
            root.mkdir(mode=0o700)
        if _is_private(root):
            return root
    raise StartupFailed(
        f"no private directory with a short path for the kernel's sockets: tried {[c for c in candidates if c]}; "
        "pass runtime_dir=, a directory of yours with mode 0700 and a path under 70 characters"
    )


def _is_private(path: Path) -> bool:
    if os.name != "posix":
        return True
    found = path.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


class SessionDirectory:
    """The directory of one session; `remove` ends it."""

    def __init__(self, root: Path | None) -> None:
        if root is not None:
            root = root.expanduser().absolute()
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.name == "posix" and len(os.fsencode(root)) > _LONGEST_ROOT:
                raise StartupFailed(
                    f"runtime_dir {str(root)!r} is {len(os.fsencode(root))} bytes long; sockets below it need a path "
                    f"of at most {_LONGEST_ROOT}"
                )
        self.path = (runtime_root() if root is None else root) / secrets.token_hex(4)
        self.path.mkdir(mode=0o700)
        self.scratch = self.path / "scratch"
        self.scratch.mkdir(mode=0o700)
        self.connection_file = self.path / "kernel.json"
        self.checkpoint_file = self.scratch / ".checkpoint"
        self.transcript_file = self.path / "transcript"
        self._generation = 0
        facts = {
            "host_pid": os.getpid(),
            "host_started": process_started(os.getpid()),
            "command": " ".join(sys.argv)[:200] or sys.executable,
            "started": time.time(),
            "connection_file": str(self.connection_file),
        }
        (self.path / "session.json").write_text(json.dumps(facts), encoding="utf-8")

    def next_sockets(self) -> Path:
        """A fresh directory for the sockets of the next kernel of this session."""
        self._generation += 1
        path = self.path / f"k{self._generation}"
        path.mkdir(mode=0o700)
        if self._generation > 1:
            shutil.rmtree(self.path / f"k{self._generation - 1}", ignore_errors=True)
        return path

    def remove(self) -> None:
        """Delete the directory and all in it, whatever modes the agent's code gave its files."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self.path.exists():
            for folder, _, _ in os.walk(self.path):
                with contextlib.suppress(OSError):
                    os.chmod(folder, 0o700)
            shutil.rmtree(self.path, ignore_errors=True)


def process_started(pid: int) -> str | None:
    """A token that tells a process from a later one with the same pid; None when it is gone or cannot be told."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return None


@dataclass(frozen=True, slots=True)
class Connection:
    """Where one kernel listens."""

    info: dict[str, Any]  # Jupyter's connection info, `key` as bytes
    calls_url: str
    replies_url: str

    @staticmethod
    def open(directory: SessionDirectory) -> Connection:
        """Choose addresses for a new kernel and write its connection file."""
        from jupyter_client.connect import write_connection_file

        key = secrets.token_hex(32).encode()
        if os.name == "posix":
            sockets = directory.next_sockets()
            ip, transport = str(sockets / "s"), "ipc"
            ports = dict(zip(_CHANNELS, range(1, 6), strict=True))
            urls = (f"ipc://{sockets}/c", f"ipc://{sockets}/r")
        else:
            ip, transport = "127.0.0.1", "tcp"
            free = _free_ports(7)
            ports = dict(zip(_CHANNELS, free[:5], strict=True))
            urls = (f"tcp://127.0.0.1:{free[5]}", f"tcp://127.0.0.1:{free[6]}")
        with contextlib.suppress(FileNotFoundError):
            directory.connection_file.unlink()
        _, info = write_connection_file(
            str(directory.connection_file), ip=ip, key=key, transport=transport, kernel_name="kernel_bridge", **ports
        )
        return Connection({**info, "key": key}, *urls)

    def url(self, channel: str) -> str:
        """The address of a Jupyter channel: shell, iopub, stdin, control or hb."""
        joint = "-" if self.info["transport"] == "ipc" else ":"
        return f"{self.info['transport']}://{self.info['ip']}{joint}{self.info[channel + '_port']}"


_CHANNELS = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")


def _free_ports(count: int) -> list[int]:
    import socket

    holders = [socket.socket() for _ in range(count)]
    try:
        for holder in holders:
            holder.bind(("127.0.0.1", 0))
        return [holder.getsockname()[1] for holder in holders]
    finally:
        for holder in holders:
            holder.close()


@dataclass(frozen=True, slots=True)
class ExitReason:
    """How a kernel ended."""

    code: int | None  # exit status; negative: a signal; None: nobody could tell
    stderr_tail: str

    def clause(self) -> str:
        """The reason as one clause, such as "it was killed by signal 11 (SIGSEGV, segmentation fault)"."""
        if self.code is None:
            return "it ended in a way that nobody saw"
        if self.code >= 0:
            return f"it exited with status {self.code}"
        number = -self.code
        name = signal.Signals(number).name if number in set(signal.Signals) else "unknown"
        return f"it was killed by signal {number} ({name}{_SIGNAL_NOTES.get(name, '')})"


_SIGNAL_NOTES = {
    "SIGKILL": "; out of memory, or killed from outside",
    "SIGSEGV": ", segmentation fault",
    "SIGABRT": ", aborted by a library",
    "SIGXCPU": ", out of its CPU seconds",
    "SIGXFSZ": ", a file larger than allowed",
    "SIGBUS": ", bus error",
    "SIGFPE": ", arithmetic error in C code",
    "SIGILL": ", illegal instruction",
}


class KernelProcess:
    """One kernel and its guardian, from launch to the last descendant's end.

    Raises:
        StartupFailed: the interpreter cannot be run.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        connection: Connection,
        *,
        python: str,
        limits: Limits,
        confinement: Confinement,
        checkpoint: bool,
        restore: bool,
    ) -> None:
        self._directory = directory
        config_file = directory.path / "launch.json"
        plan = plan_launch(confinement, python=python, config_file=config_file, scratch=directory.scratch)
        config: dict[str, Any] = {
            "connection_file": str(directory.connection_file),
            "calls_url": connection.calls_url,
            "replies_url": connection.replies_url,
            "frame_bytes": limits.frame_bytes,
            "frame_depth": limits.frame_depth,
            "output_bytes": limits.output_bytes,
            "transcript_file": str(directory.transcript_file),
            "extra_path": _extra_path(python, directory),
            "rlimits": plan.rlimits,
            "guardian": None,
            "checkpoint": None,
        }
        if os.name == "posix":
            config["guardian"] = {"host_pid": os.getpid(), "session_dir": str(directory.path)}
        if checkpoint:
            config["checkpoint"] = {
                "path": str(directory.checkpoint_file),
                "bytes": limits.checkpoint_bytes,
                "seconds": limits.checkpoint_seconds,
                "restore": restore,
            }
        config_file.write_text(json.dumps(config), encoding="utf-8")
        self._process = self._launch(list(plan.argv), dict(plan.environment))
        self._exit: ExitReason | None = None
        self.exit_fd = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None

    def _launch(self, argv: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        from jupyter_client import launcher

        launch = cast("Callable[..., subprocess.Popen[bytes]]", launcher.launch_kernel)  # pyright: ignore[reportUnknownMemberType] - untyped
        try:
            return launch(
                argv,
                stdin=subprocess.PIPE if os.name == "posix" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=str(self._directory.scratch),
                # Jupyter's own death watch polls the parent's pid once a second; the guardian is that parent.
                independent=os.name == "posix",
            )
        except OSError as error:
            raise StartupFailed(f"cannot run {argv[0]!r}: {error}") from error

    @property
    def pid(self) -> int:
        """The process the host started: the guardian, or the kernel itself where there is no guardian."""
        return self._process.pid

    def exited(self) -> bool:
        """Whether the process is gone. Does not wait."""
        return self._exit is not None or self._process.poll() is not None

    def interrupt(self) -> None:
        """Send SIGINT to the kernel's process group."""
        if os.name == "posix":
            with contextlib.suppress(OSError, ValueError):  # it is ending already
                assert self._process.stdin is not None
                os.write(self._process.stdin.fileno(), b"i")
        else:
            from jupyter_client.win_interrupt import send_interrupt

            send_interrupt(self._process.win32_interrupt_event)  # type: ignore[attr-defined]

    def end(self) -> ExitReason:
        """Kill the kernel and all it started, if they still run; wait; tell how the kernel ended. Idempotent."""
        if self._exit is not None:
            return self._exit
        process = self._process
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            if os.name == "posix":
                os.set_blocking(pipe.fileno(), False)
        if process.stdin is not None:
            process.stdin.close()  # the lifeline
        else:
            process.kill()
        if not self._wait(_KILL_SECONDS):
            with contextlib.suppress(OSError):
                process.kill()
            self._wait(_KILL_SECONDS)
        self._exit = ExitReason(self._reported_code(), self._tail())
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if self.exit_fd is not None:
            os.close(self.exit_fd)
            self.exit_fd = None
        return self._exit

    def _wait(self, seconds: float) -> bool:
        if self.exit_fd is not None:
            select.select([self.exit_fd], [], [], seconds)
            seconds = 0.1
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _reported_code(self) -> int | None:
        assert self._process.stdout is not None
        if os.name != "posix":
            return self._process.returncode
        report = (self._process.stdout.read() or b"").decode("ascii", "replace")
        found = re.findall(r"^(exit|signal) (\d+)$", report, re.MULTILINE)
        if not found:
            code = self._process.returncode
            return code if code else None  # it never became a guardian: its own status is the kernel's
        kind, number = found[-1]
        return int(number) if kind == "exit" else -int(number)

    def _tail(self) -> str:
        assert self._process.stderr is not None
        data = self._process.stderr.read() or b""
        return data[-_STDERR_BYTES:].decode("utf-8", "replace")


def _extra_path(python: str, directory: SessionDirectory) -> list[str]:
    """For a foreign interpreter: a folder with our cloudpickle, which is plain Python and serves any version."""
    if os.path.realpath(python) == os.path.realpath(sys.executable) and python == sys.executable:
        return []
    import cloudpickle

    folder = directory.path / "path"
    if not folder.exists():
        assert cloudpickle.__file__ is not None
        shutil.copytree(
            Path(cloudpickle.__file__).parent, folder / "cloudpickle", ignore=shutil.ignore_patterns("__pycache__")
        )
    return [str(folder)]
