"""The kernel's process and its guardian, from the launch to the last descendant's end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from kernel_bridge.confine import Confinement
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.lifeline import CELL
from kernel_bridge.process.exit_reason import ExitReason
from kernel_bridge.process.launch import Launch, LaunchOptions
from kernel_bridge.process.resource_use import process_clock
from kernel_bridge.process.watchdog import Bounds, Watchdog, descendants
from kernel_bridge.threads.waiting import wait_for
from kernel_bridge.zmtp.stream import NO_SIGNAL

__all__ = ["KernelProcess"]

_STDERR_BYTES = 4096  # of the kernel's last words, kept for a report
_KILL_SECONDS = 12.0  # the guardian gives itself ten
_STRAY_ROUNDS = 10
_READ_BYTES, _MOST_READS = 65536, 64  # a pipe holds a MiB at most


class KernelProcess:
    """One kernel and its guardian, from launch to the last descendant's end. Its `files` are to be closed after that.

    Raises:
        StartupFailed: the interpreter cannot be run.
    """

    def __init__(self, directory: SessionDirectory, options: LaunchOptions) -> None:
        launch = Launch(directory, options)
        self._directory = directory
        self._plan = launch.plan
        self._wrappers = launch.wrappers
        self._last_words = launch.last_words
        self.connection = launch.connection
        self.files = launch.files
        self._telling = threading.Lock()  # guards the lifeline
        self._ending = threading.Lock()
        self._exit: ExitReason | None = None
        self._watchdog: Watchdog | None = None
        self.exit_fd: int | None = None
        started = launch.start()
        self._process, self._lifeline = started.process, started.lifeline
        try:
            if hasattr(os, "pidfd_open"):
                with contextlib.suppress(OSError):  # refused here, or it has ended and somebody else has collected it
                    self.exit_fd = os.pidfd_open(self._process.pid)
            self._watchdog = self._watch(launch, options.confinement)
        except BaseException:
            self.end()
            self.files.close()
            raise

    def _watch(self, launch: Launch, confinement: Confinement) -> Watchdog:
        bounds = Bounds(
            memory_bytes=confinement.memory_bytes,
            processes=confinement.processes,
            disk_bytes=confinement.scratch_bytes,
            open_files=confinement.open_files,
            directories=(launch.layout.sockets, launch.layout.keep, launch.layout.scratch),
            tmpfs=self._plan.tmpfs,
            wrappers=self._wrappers,
        )
        return Watchdog(self._process.pid, bounds)

    def has_kept(self, cell: int) -> bool | None:
        """Whether the kernel has made its checkpoint after this cell; None: it is gone. Self-reported."""
        if self.files.has_kept(cell):
            return True
        return None if self.exited() else False

    @property
    def pid(self) -> int:
        """The process the host started: the guardian, or the kernel itself where there is no guardian."""
        return self._process.pid

    def _kernel_pid(self) -> int | None:
        """The kernel itself, behind its guardian and its wrapper. None: it is not there, or not to be found here."""
        family = descendants(self.pid) if sys.platform.startswith("linux") else []
        place = 1 + self._wrappers
        return family[place] if len(family) > place else None

    def kernel_has_ended(self) -> bool | None:
        """Whether the kernel itself has ended, though its guardian may not know yet. None: it is not to be found."""
        kernel = self._kernel_pid()
        if kernel is None:
            return None
        try:
            with open(f"/proc/{kernel}/stat", "rb") as file:
                return file.read().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        except (OSError, IndexError):
            return True

    def cpu_clock(self) -> Callable[[], float]:
        """What tells the CPU time of the kernel alone, without processes that it starts; always 0.0 but on Linux."""
        kernel = self._kernel_pid()
        if kernel is None:
            return lambda: 0.0
        clock = process_clock(kernel)
        last = 0.0

        def read() -> float:
            nonlocal last
            try:
                last = time.clock_gettime(clock)
            except OSError:  # it has ended
                return last
            return last

        return read

    def exited(self) -> bool:
        """Whether the process is gone. Does not wait."""
        return self._exit is not None or self._process.poll() is not None

    def exits_within(self, seconds: float) -> bool:
        """Whether the process is gone, or goes soon."""
        return self._exit is not None or self._wait(seconds)

    def exited_within(self, seconds: float, awaited: int = -1) -> bool:
        """Whether the process is gone, after waiting so long at most for that, or for a descriptor; -1: for none."""
        watched = [fd for fd in (self.exit_fd, awaited) if fd is not None and fd >= 0]
        if watched:
            wait_for(watched, (), seconds)
        else:
            time.sleep(seconds)
        return self.exited()

    def interrupt(self, cell: int) -> None:
        """Send SIGINT to the kernel's process group, for the cell of this number: before it or after it, for none."""
        with self._telling, contextlib.suppress(OSError, ValueError):  # it is ending already, or takes no more
            if self._process.stdin is not None:
                os.write(self._process.stdin.fileno(), CELL.pack(cell))
            elif self._lifeline is not None:
                self.files.note_interrupt(cell)
                self._lifeline.send(b"i", NO_SIGNAL)

    def kill(self) -> None:
        """Let the kernel and all it started be killed. From any thread; does not wait."""
        process = self._process
        if os.name != "posix":
            process.kill()
            return
        with self._telling:
            lifeline, self._lifeline = self._lifeline, None
            if lifeline is not None:
                with contextlib.suppress(OSError):  # it is gone already, or stopped; the lifeline's end will do
                    lifeline.send(b"k", NO_SIGNAL)
                lifeline.close()
        with contextlib.suppress(OSError, AttributeError):
            process.send_signal(signal.SIGCONT)  # the agent's code may have stopped its guardian

    def end(self, patience: float = _KILL_SECONDS) -> ExitReason:
        """Kill the kernel and all it started, if they still run; wait; tell how the kernel ended. Idempotent.

        Args:
            patience: seconds that the guardian gets for it before it is killed itself.
        """
        with self._ending:
            if self._exit is None:
                self._exit = self._end(patience)
            return self._exit

    def _end(self, patience: float) -> ExitReason:
        if self._watchdog is not None:
            self._watchdog.stop()
        process = self._process
        self.connection.close()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
        self.kill()
        if not self._wait(patience):
            with contextlib.suppress(OSError):
                process.kill()
            self._wait(_KILL_SECONDS)
        code, reported = self._reported_code()
        if not reported:
            self._kill_strays()
        verdict = None if self._watchdog is None else self._watchdog.verdict
        reason = ExitReason(code, self._tail(), verdict)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if self.exit_fd is not None:
            os.close(self.exit_fd)
            self.exit_fd = None
        return reason

    def leave_to_parent(self) -> None:
        """In the child of a fork: close this process's own descriptors, and know nothing of the kernel any more."""
        self._exit = ExitReason(None, "")
        self._process.returncode = 0  # it is no child of this process, and must not be waited for
        if self._lifeline is not None:
            self._lifeline.close()
            self._lifeline = None
        if self.exit_fd is not None:
            os.close(self.exit_fd)
            self.exit_fd = None
        self._telling = threading.Lock()
        self.files.leave_to_parent()

    def _wait(self, seconds: float) -> bool:
        if self.exit_fd is not None:
            if not wait_for((self.exit_fd,), (), seconds):
                return False
            seconds = 0.1
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _kill_strays(self) -> None:
        """For a guardian that was itself killed: end what it would have ended, known by its environment."""
        if not sys.platform.startswith("linux"):
            return
        mark = f"IPYTHONDIR={self._plan.environment.get('IPYTHONDIR')}".encode()
        if os.fsencode(self._directory.path) not in mark:
            return  # a kernel in namespaces of its own, which ended with its wrapper
        for _ in range(_STRAY_ROUNDS):
            found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if mark in _environment(pid)]
            for pid in found:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            if not found:
                return
            time.sleep(0.01)

    def _reported_code(self) -> tuple[int | None, bool]:
        """The kernel's exit status, and whether its guardian reported it."""
        if self._process.stdout is None:
            return self._process.returncode, True
        report = _last_bytes(self._process.stdout.fileno()).decode("ascii", "replace")
        found = re.findall(r"^(exit|signal) (\d{1,5})$", report, re.MULTILINE)
        if not found:
            code = self._process.returncode
            return code if code else None, False  # it never became a guardian, or was killed: its status is all we have
        kind, number = found[-1]
        if kind == "exit" and self._plan.wrapper_arguments is not None and int(number) > 128:
            return 128 - int(number), True  # how the wrapper tells of a signal
        return int(number) if kind == "exit" else -int(number), True

    def _tail(self) -> str:
        if self._process.stderr is not None:
            return _last_bytes(self._process.stderr.fileno()).decode("utf-8", "replace")
        with open(self._last_words, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _STDERR_BYTES))
            return file.read(_STDERR_BYTES).decode("utf-8", "replace")


def _last_bytes(pipe: int) -> bytes:
    """The last of what waits in a pipe that does not block. One that is written to without end is not read so."""
    last = b""
    for _ in range(_MOST_READS):
        try:
            data = os.read(pipe, _READ_BYTES)
        except BlockingIOError:
            break
        if not data:
            break
        last = (last + data)[-_STDERR_BYTES:]
    return last


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""
