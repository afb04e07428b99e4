"""The kernel's process and its guardian, from the launch to the last descendant's end. Knows no cells."""

from __future__ import annotations

import compileall
import contextlib
import functools
import json
import marshal
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from kernel_bridge.cells import Limits
from kernel_bridge.confine import Confinement, Layout, plan_launch, prepare_files
from kernel_bridge.confine.bubblewrap import ARGUMENTS_FD, EXTRA_PATH
from kernel_bridge.confine.places import ExtraPathUnusable
from kernel_bridge.confine.plan import PACKAGE
from kernel_bridge.connection import Connection
from kernel_bridge.errors import StartupFailed
from kernel_bridge.exit_reason import ExitReason
from kernel_bridge.inside import KEEPING, KEPT
from kernel_bridge.inside.interrupts import NOTE
from kernel_bridge.replies import result_chars
from kernel_bridge.session_directory import CHECKPOINT, SessionDirectory
from kernel_bridge.watchdog import Bounds, Watchdog, descendants

__all__ = ["KernelProcess", "LaunchOptions"]

_STDERR_BYTES = 4096  # of the kernel's last words, kept for a report
_KILL_SECONDS = 12.0  # the guardian gives itself ten
_STRAY_ROUNDS = 10
_NOTE_BYTES = 21  # of the progress file


@dataclass(frozen=True, slots=True)
class LaunchOptions:
    """What every kernel of a session is launched with."""

    python: str  # the interpreter: an absolute path, or a name on the search path
    limits: Limits
    confinement: Confinement
    tier: str  # how it is confined; see `kernel_bridge.confine.resolve`
    checkpoint: bool  # keep the namespace for a successor


class KernelProcess:
    """One kernel and its guardian, from launch to the last descendant's end.

    Args:
        restore: begin with the namespace that a predecessor left in the directory.

    Raises:
        StartupFailed: the interpreter cannot be run.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        options: LaunchOptions,
        *,
        restore: bool,
    ) -> None:
        limits, confinement = options.limits, options.confinement
        self._directory = directory
        self._limits = limits
        self._checkpoint_bytes = limits.checkpoint_bytes
        if confinement.scratch_bytes is not None:  # a new one is written before the old one goes
            self._checkpoint_bytes = min(limits.checkpoint_bytes, confinement.scratch_bytes // 4)
        layout = directory.next_layout()
        try:
            self._plan = plan_launch(confinement, options.tier, layout, options.python)
        except ExtraPathUnusable as error:
            raise StartupFailed(str(error)) from error
        except OSError as error:
            raise StartupFailed(f"the kernel's interpreter cannot be used: {error}") from error
        self.connection = Connection.open(directory, layout, self._plan.inside)
        # Both are opened before the agent's code can put something else in their place, and never by name again.
        self._transcript = _new_file(layout.sockets / "transcript")
        self._note = _new_file(layout.sockets / "interrupt")
        self._progress = _new_file(layout.sockets / "progress")
        self._interrupts = 0
        self._lifeline = threading.Lock()  # guards the pipe to the guardian, the note and the progress
        self._ending = threading.Lock()
        try:
            extra_path = _extra_path(options.python, directory, self._plan.inside)
            config = self._configuration(extra_path, checkpoint=options.checkpoint, restore=restore)
            layout.config.write_text(json.dumps(config), encoding="utf-8")
            self._hand_over(layout)
            self._process = self._launch(layout)
        except BaseException:
            self.forget()
            raise
        if self._process.stdin is not None and os.name == "posix":
            os.set_blocking(self._process.stdin.fileno(), False)  # a guardian that was stopped must not stop the host
        self._exit: ExitReason | None = None
        self.exit_fd = os.pidfd_open(self._process.pid) if hasattr(os, "pidfd_open") else None
        bounds = Bounds(
            memory_bytes=confinement.memory_bytes,
            processes=confinement.processes,
            disk_bytes=confinement.scratch_bytes,
            open_files=confinement.open_files,
            directories=(layout.sockets, layout.keep, layout.scratch),
            tmpfs=self._plan.tmpfs,
            wrappers=self._wrappers(),
        )
        self._watchdog = Watchdog(self._process.pid, bounds)

    def _configuration(self, extra_path: list[str], *, checkpoint: bool, restore: bool) -> dict[str, Any]:
        """What `inside/launch.py` reads; all paths as the kernel sees them."""
        limits, inside = self._limits, self._plan.inside
        keeping = {
            "path": str(inside.keep / CHECKPOINT),
            "bytes": self._checkpoint_bytes,
            "seconds": limits.checkpoint_seconds,
            "restore": restore,
            "progress_file": str(inside.sockets / "progress"),
        }
        return {
            "connection_file": self.connection.inside_file,
            "calls_url": self.connection.inside_urls[0],
            "replies_url": self.connection.inside_urls[1],
            "frame_bytes": limits.frame_bytes,
            "frame_depth": limits.frame_depth,
            "output_bytes": limits.output_bytes,
            "result_chars": result_chars(limits),
            "transcript_file": str(inside.sockets / "transcript"),
            "interrupt_file": str(inside.sockets / "interrupt") if os.name == "posix" else None,
            "working_directory": str(inside.scratch),
            "extra_path": extra_path,
            "seal": self._plan.seal,
            "guardian": None if self._plan.guarded_from_outside else self._guardian(),
            "checkpoint": keeping if checkpoint else None,
        }

    def take_transcript(self, limit: int) -> bytes:
        """What the kernel's running cell has printed so far, at most so many bytes; the next call finds nothing of it.

        Read through the descriptor under which the host made the file: under its name the agent's code may have put a
        link to a file of the host, or a pipe that never ends.
        """
        if self._transcript < 0:
            return b""
        os.lseek(self._transcript, 0, os.SEEK_SET)
        data = os.read(self._transcript, limit)
        with contextlib.suppress(OSError):
            os.ftruncate(self._transcript, 0)
        return data

    def was_keeping(self) -> bool:
        """Whether the kernel died while it made a checkpoint. Its own word, good for no more than to be told."""
        return self._progress_note().startswith(KEEPING)

    def has_kept(self, cell: int) -> bool | None:
        """Whether the kernel has made its checkpoint after this cell; None: it is gone. Its own word, too."""
        note = self._progress_note()
        if note.startswith(KEPT) and note[1:].isdigit() and int(note[1:]) >= cell:
            return True
        return None if self._exit is not None or self._process.poll() is not None else False

    def _progress_note(self) -> bytes:
        with self._lifeline:
            if self._progress < 0:
                return b""
            os.lseek(self._progress, 0, os.SEEK_SET)
            return os.read(self._progress, _NOTE_BYTES)

    def _guardian(self) -> dict[str, Any] | None:
        if os.name != "posix":
            return None
        return {"host_pid": os.getpid(), "session_dir": str(self._directory.path), "layers": self._wrappers()}

    def _wrappers(self) -> int:
        return 0 if self._plan.wrapper_arguments is None else 2  # the wrapper, and its first process inside

    def _hand_over(self, layout: Layout) -> None:
        prepare_files(self._plan, layout)
        if self._plan.owner is not None:
            for path in layout.sockets.iterdir():
                os.chown(path, self._plan.owner, self._plan.owner)
            self._directory.let_pass()

    def _command(self) -> list[str]:
        plan = self._plan
        argv = [*plan.argv, str(plan.inside.config)]
        if not plan.guarded_from_outside:
            return argv
        file = self._directory.path / "guard"
        guard = {
            "guardian": self._guardian(),
            "argv": argv,
            "arguments": plan.wrapper_arguments,
            "descriptor": ARGUMENTS_FD,
        }
        file.write_bytes(marshal.dumps(guard))
        return [sys.executable, "-I", "-S", str(PACKAGE / "inside" / "guard.py"), str(file)]

    def _launch(self, layout: Layout) -> subprocess.Popen[bytes]:
        from jupyter_client import launcher

        _compile_inside()
        launch = cast("Callable[..., subprocess.Popen[bytes]]", launcher.launch_kernel)  # pyright: ignore[reportUnknownMemberType] - untyped
        argv = self._command()
        try:
            return launch(
                argv,
                stdin=subprocess.PIPE if os.name == "posix" else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(self._plan.environment),
                cwd=str(layout.session),  # the kernel goes to its scratch directory when it is sealed
                # Jupyter's own death watch polls the parent's pid once a second; the guardian is that parent.
                independent=os.name == "posix",
            )
        except OSError as error:
            raise StartupFailed(f"cannot run {argv[0]!r}: {error}") from error

    @property
    def pid(self) -> int:
        """The process the host started: the guardian, or the kernel itself where there is no guardian."""
        return self._process.pid

    def cpu_clock(self) -> Callable[[], float]:
        """What tells the CPU time of the kernel alone, without processes that it starts; always 0.0 but on Linux."""
        family = descendants(self.pid) if sys.platform.startswith("linux") else []
        place = 1 + self._wrappers()
        if len(family) <= place:
            return lambda: 0.0
        clock = ~family[place] << 3 | 2  # how Linux numbers the CPU clock of a whole process
        last = 0.0

        def read() -> float:
            nonlocal last
            with contextlib.suppress(OSError):  # it has ended
                last = time.clock_gettime(clock)
            return last

        return read

    def exited(self) -> bool:
        """Whether the process is gone. Does not wait."""
        return self._exit is not None or self._process.poll() is not None

    def exits_within(self, seconds: float) -> bool:
        """Whether the process is gone, or goes soon."""
        return self._exit is not None or self._wait(seconds)

    def exited_within(self, seconds: float) -> bool:
        """Whether the process is gone, after waiting for that so long at most."""
        if self.exit_fd is None:
            time.sleep(seconds)
        else:
            poller = select.poll()  # select knows no descriptor above 1023
            poller.register(self.exit_fd, select.POLLIN)
            poller.poll(seconds * 1000)
        return self.exited()

    def interrupt(self, cell: int) -> None:
        """Send SIGINT to the kernel's process group, for the cell of this number: before it or after it, for none."""
        if os.name != "posix":
            from jupyter_client.win_interrupt import send_interrupt

            send_interrupt(self._process.win32_interrupt_event)  # type: ignore[attr-defined]
            return
        stdin = self._process.stdin
        assert stdin is not None
        with self._lifeline, contextlib.suppress(OSError):  # it is ending already, or takes no more
            if not stdin.closed:
                self._interrupts += 1
                os.pwrite(self._note, NOTE.pack(self._interrupts, cell), 0)
                os.write(stdin.fileno(), b"i")

    def kill(self) -> None:
        """Let the kernel and all it started be killed. From any thread; does not wait."""
        process = self._process
        if process.stdin is None:
            process.kill()
            return
        with self._lifeline:
            if not process.stdin.closed:
                with contextlib.suppress(OSError):  # it is gone already, or stopped; the lifeline's end will do
                    os.write(process.stdin.fileno(), b"k")
            process.stdin.close()
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
        self._watchdog.stop()
        process = self._process
        for pipe in (process.stdout, process.stderr):
            assert pipe is not None
            if os.name == "posix":
                os.set_blocking(pipe.fileno(), False)
        self.kill()
        if not self._wait(patience):
            with contextlib.suppress(OSError):
                process.kill()
            self._wait(_KILL_SECONDS)
        code, reported = self._reported_code()
        if not reported:
            self._kill_strays()
        reason = ExitReason(code, self._tail(), self._watchdog.verdict)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()
        if self.exit_fd is not None:
            os.close(self.exit_fd)
            self.exit_fd = None
        return reason

    def forget(self) -> None:
        """Close what was kept open for the time after the end. Idempotent."""
        with self._lifeline:
            for fd in (self._transcript, self._note, self._progress):
                if fd >= 0:
                    os.close(fd)
            self._transcript = self._note = self._progress = -1

    def _wait(self, seconds: float) -> bool:
        if self.exit_fd is not None:
            poller = select.poll()  # select() takes no descriptor above 1023
            poller.register(self.exit_fd, select.POLLIN)
            if not poller.poll(int(seconds * 1000)):
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
        assert self._process.stdout is not None
        if os.name != "posix":
            return self._process.returncode, True
        report = (self._process.stdout.read() or b"").decode("ascii", "replace")
        found = re.findall(r"^(exit|signal) (\d+)$", report, re.MULTILINE)
        if not found:
            code = self._process.returncode
            return code if code else None, False  # it never became a guardian, or was killed: its status is all we have
        kind, number = found[-1]
        if kind == "exit" and self._plan.wrapper_arguments is not None and int(number) > 128:
            return 128 - int(number), True  # how the wrapper tells of a signal
        return int(number) if kind == "exit" else -int(number), True

    def _tail(self) -> str:
        assert self._process.stderr is not None
        data = self._process.stderr.read() or b""
        return data[-_STDERR_BYTES:].decode("utf-8", "replace")


def _environment(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read()
    except OSError:
        return b""


@functools.cache
def _compile_inside() -> None:
    """Compile what runs in a kernel, once: a kernel writes no byte code, so every start would compile it anew."""
    for path in (*(PACKAGE / "inside").glob("*.py"), PACKAGE / "wire.py"):
        # Where the package cannot be written, starts are slower and nothing else.
        compileall.compile_file(path, quiet=2)


def _extra_path(python: str, directory: SessionDirectory, inside: Layout) -> list[str]:
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
    return [str(folder if inside.session == inside.sockets.parent else EXTRA_PATH)]


def _new_file(path: Path) -> int:
    """A file that only the host and the kernel's user may open; stays open here."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o600)
