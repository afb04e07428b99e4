"""A session: one kernel at a time, from start to close, and across the deaths between. Knows nothing of DSPy.

One thread at a time runs a cell. The tool server's threads run beside it. `interrupt` may come from any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from kernel_bridge.cells import Cell, CellOutcome, Death, Limits, RemoteFailure, Restored
from kernel_bridge.confine import Confinement, ConfinementReport, resolve
from kernel_bridge.errors import (
    KernelDied,
    KernelUnresponsive,
    ProtocolViolation,
    SessionBusy,
    SessionClosed,
    SessionLost,
    StartupFailed,
)
from kernel_bridge.files.checkpoint_file import CheckpointKeeper, fetch_checkpoint
from kernel_bridge.files.layout import CHECKPOINT
from kernel_bridge.files.live_sessions import sweep
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.live.kernel import GRACE_SECONDS, Gone, LiveKernel
from kernel_bridge.live.request import CellEncoder
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.options import check_session_options
from kernel_bridge.os_errors import what_to_do
from kernel_bridge.process.launch import LaunchOptions
from kernel_bridge.threads.blocked_loop import watch_running_loop

__all__ = ["KernelSession"]

logger = logging.getLogger(__name__)

_MOST_CELLS = 2**48  # that a checkpoint file is believed to have seen
_KEEP_SECONDS = 2.0  # for a kernel to finish the checkpoint of its last cell before it is killed
_RUNNER_SECONDS = 5.0  # for the thread that runs a cell to let go of a session that is being closed


class KernelSession:
    """A persistent namespace in a confined kernel.

    Args:
        tools: the host tools by name; read again at the start of every cell, so it may be changed between cells.
        judge: called with the fields of every SUBMIT; raising refuses it, and the agent sees why.
        dispatcher: runs the tools; by default a plain `ToolDispatcher`.
        python: the interpreter to run; None: this one. It needs ipykernel and msgspec, nothing of ours.
        limits: bounds of time and size.
        confinement: see `kernel_bridge.confine.resolve`.
        restarts: after how many deaths in a row, with no good cell between, the session is over; 0 or 1: the first.
        checkpoint: keep the namespace for the successor of a kernel that dies.
        runtime_dir: where the session's private directory is made; None: the user's runtime directory.
        checkpoint_file: where the last checkpoint is kept for a session of another process, which begins with it; it
            outlives this process however that ends. Read when the session starts. None: nowhere.
        on_death: called when a kernel has died under a cell, on the thread that runs the cell, before a successor is
            started; what it returns stands in the outcome's `death.told`.
    """

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        *,
        judge: Callable[[dict[str, Any]], object] | None = None,
        dispatcher: ToolDispatcher | None = None,
        python: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        confinement: str | Confinement | frozenset[str] | set[str] = "auto",
        restarts: int = 3,
        checkpoint: bool = True,
        runtime_dir: str | os.PathLike[str] | None = None,
        checkpoint_file: str | os.PathLike[str] | None = None,
        on_death: Callable[[], str | None] | None = None,
    ) -> None:
        check_session_options(
            python=python, limits=limits, confinement=confinement, restarts=restarts, checkpoint=checkpoint,
            runtime_dir=runtime_dir, checkpoint_file=checkpoint_file, on_death=on_death,
        )  # fmt: skip
        self.tools: Mapping[str, Callable[..., Any]] = {} if tools is None else tools
        self.judge = judge
        self.limits = Limits() if limits is None else limits
        self.report: ConfinementReport | None = None
        self.checkpoint_file = None if checkpoint_file is None else Path(checkpoint_file)
        self.checkpoint_label = ""  # of the moment after the next cell; the session that restores it is told
        self.restored: Restored | None = None  # from the checkpoint file; None: there was none
        self.on_death = on_death
        self._asked = confinement
        self._python = _interpreter(python)
        self._restarts = restarts
        self._checkpoint = checkpoint
        self._runtime_dir = None if runtime_dir is None else Path(runtime_dir)
        self._dispatcher = ToolDispatcher() if dispatcher is None else dispatcher
        self._running = threading.Lock()
        self._runner: int | None = None  # the thread that runs a cell
        self._interrupted = False  # an interrupt came for the cell that is being run
        self._changing = threading.RLock()  # guards starts and the end against each other; held while a kernel starts
        self._numbers = itertools.count(1)
        self._deaths = 0
        self._setup: list[Cell] = []
        self._closed: str | None = None
        self._directory: SessionDirectory | None = None
        self._kernel: LiveKernel | None = None
        self._encoder = CellEncoder(self.limits)
        self._keeper: CheckpointKeeper | None = None
        _sessions.add(self)

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether another thread runs a cell, or deals with the death of its kernel."""
        return self._running.locked() and self._runner != threading.get_ident()

    @property
    def connection_file(self) -> Path | None:
        """What `jupyter console --existing` takes, while a kernel is there."""
        return None if self._directory is None or self._kernel is None else self._directory.connection_file

    def start(self) -> None:
        """Start the kernel, if none runs yet. Blocks until it takes cells.

        Raises:
            SessionClosed, StartupFailed, ConfinementUnavailable.
        """
        with self._changing:
            self._check_open()
            if self._kernel is not None:
                return
            with _told_of_trouble():
                self._start()

    def _start(self) -> None:
        directory = self._directory = SessionDirectory(self._runtime_dir)
        try:
            sweep(directory.path.parent)
            confinement, tier, self.report = resolve(self._asked, directory.path.parent)
            self._launched_with = LaunchOptions(self._python, self.limits, confinement, tier, self._checkpoint)
            self._kernel = self._launch_first()
        except BaseException:
            directory.remove()
            self._directory = self.report = None
            raise

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SessionClosed(self._closed)

    def _launch(self, *, restore: bool) -> LiveKernel:
        self._check_open()
        assert self._directory is not None
        with _told_of_trouble():
            return LiveKernel(
                self._directory,
                self._launched_with,
                dispatcher=self._dispatcher,
                restore=restore,
                given_up=lambda: self._closed,
            )

    def _launch_first(self) -> LiveKernel:
        """A kernel that begins with what is in the checkpoint file, if it can."""
        file, directory = self.checkpoint_file, self._directory
        if file is None or directory is None or not self._checkpoint:
            return self._launch(restore=False)
        source = directory.keep / CHECKPOINT
        fetched = fetch_checkpoint(file, source, self.limits.checkpoint_bytes)
        lost: dict[str, str] = {}
        usable = fetched is not None and fetched.problem is None
        kernel = self._launch_successor(lost) if usable else self._launch(restore=False)
        if fetched is not None:
            ready = kernel.tools.ready
            assert ready is not None
            lost.update(ready.lost)
            names = () if "all names" in lost else tuple(ready.restored)
            self.restored = Restored(fetched.label, names, lost, fetched.problem)
            # Functions know the cells they are from by number: a new cell must not take the place of one of those.
            self._numbers = itertools.count(min(fetched.cell, _MOST_CELLS) + 1)
        self._keeper = CheckpointKeeper(file, source, self.limits.checkpoint_bytes)
        return kernel

    def close(self, reason: str = "the session was closed") -> None:
        """Kill the kernel, once the checkpoint of its last cell is kept, and remove everything it had.

        Idempotent; from any thread. A kernel that starts is given up. A thread that is busy with the end of a cell for
        longer, such as in `on_death`, is not waited for: it removes what is left when it comes to that.
        """
        if self._closed is None:
            self._closed = reason
        if self._runner == threading.get_ident():
            self._dispose()
            return
        keeper, kernel = self._keeper, self._kernel
        try:
            if keeper is not None and not self._running.locked():
                keeper.wait(_KEEP_SECONDS)
        finally:
            if kernel is not None:
                kernel.process.kill()
        # The sockets belong to the thread that runs a cell; it notices that the kernel is gone and lets go of them.
        if self._running.acquire(timeout=_RUNNER_SECONDS):
            try:
                self._dispose()
            finally:
                self._running.release()

    def _dispose(self) -> None:
        with self._changing:
            with contextlib.ExitStack() as stack:
                if self._directory is not None:
                    stack.callback(self._directory.remove)
                if self._kernel is not None:
                    stack.callback(self._kernel.close)
                if self._keeper is not None:
                    stack.callback(self._keeper.close)
                stack.callback(self._dispatcher.close)  # first: the kernel's threads may wait for async tools
            # Last: a Ctrl-C in the middle leaves them to the next close, or to the end of the process.
            self._kernel = self._directory = self._keeper = None

    def _leave_to_parent(self) -> None:
        """In the child of a fork: let go of the kernel, its files and its directory, which are the parent's.

        No other thread is here, so what one of them held is never given back. A session without a kernel is as good as
        new.
        """
        self._dispatcher.leave_to_parent()
        if self._runner != threading.get_ident():
            self._runner, self._running = None, threading.Lock()
        if self._changing.acquire(blocking=False):  # it is free, or this thread's own
            self._changing.release()
        else:
            self._changing = threading.RLock()
        if self._kernel is None and self._directory is None:
            return
        if self._closed is None:
            self._closed = (
                f"this session's kernel belongs to process {os.getppid()}, of which this one is a fork, and cannot be "
                "used here; make a new one in this process"
            )
        if self._kernel is not None:
            self._kernel.leave_to_parent()
        self._kernel = self._directory = self._keeper = None

    def __enter__(self) -> KernelSession:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one. From any thread; does not wait."""
        if not self._running.locked():
            return
        self._interrupted = True  # for a cell that is still on its way
        kernel = self._kernel
        if kernel is not None:
            kernel.interrupt()

    # -- cells -------------------------------------------------------------------------------------------------------

    def run(self, cell: Cell | str) -> CellOutcome:
        """Run a cell and wait for its end.

        Returns:
            The outcome; also of a cell that failed, was interrupted at its time limit, or killed its kernel while
            another could be started.

        Raises:
            SessionBusy: a cell is running.
            SessionClosed: the session is over.
            NotSendable: a variable cannot cross; nothing ran.
            SessionLost: the kernel is gone, and this session starts no other.
        """
        cell = Cell(cell) if isinstance(cell, str) else cell
        if not self._running.acquire(blocking=False):
            raise SessionBusy("a cell is already running in this session")
        try:
            self._runner = threading.get_ident()
            self._interrupted = False
            self.start()
            with watch_running_loop():
                outcome = self._run(cell)
            if outcome.death is None:
                self._deaths = 0
                if cell.setup and outcome.failure is None:
                    self._setup.append(cell)
            return outcome
        finally:
            try:
                if self._closed is not None:
                    self._dispose()  # whoever closed it may not have waited
            finally:
                self._runner = None
                self._running.release()

    def _run(self, cell: Cell, *, again: bool = False) -> CellOutcome:
        kernel = self._kernel
        assert kernel is not None
        if (failure := _unreadable(cell.code)) is not None:
            return CellOutcome("", failure=failure)
        self._dispatcher.bind(dict(self.tools), self.judge)
        frames, names = self._encoder.encode(cell, self.tools)
        number, label = next(self._numbers), self.checkpoint_label
        request = kernel.request(cell.code, number, names, setup=cell.setup, again=again)
        try:
            try:
                outcome, taken = kernel.run(request, frames, lambda: self._interrupted and not again)
            except Gone as gone:
                return self._succeed(gone, number)
            except ProtocolViolation as violation:
                self.close(violation.reason)
                raise
        except SessionLost:
            raise
        except BaseException:
            self._recover(kernel)
            raise
        if taken:
            self._encoder.variables.settle()
        if self._keeper is not None and not cell.setup:
            self._keeper.expect(number, label, kernel.process.has_kept)
        return outcome

    def _recover(self, kernel: LiveKernel) -> None:
        """The caller was interrupted: stop the cell, so that the session can go on, or end it."""
        try:
            if self._closed is None and kernel is self._kernel and kernel.stop(GRACE_SECONDS):
                return
            self.close("the kernel did not stop when its caller was interrupted")
        except BaseException:
            self.close("its caller was interrupted twice")
            raise

    # -- death -------------------------------------------------------------------------------------------------------

    def _succeed(self, gone: Gone, number: int) -> CellOutcome:
        """Start a successor for a dead kernel, or end the session. A submission that was accepted stands."""
        with self._changing:
            kernel = self._kernel
            if self._closed is not None or kernel is None:
                raise SessionClosed(self._closed or "the session was closed")
            ended = kernel.process.end()
            told = self._tell_of_death()  # first: what the dead kernel has begun may be waited for below
            self._check_open()
            reason = gone.reason or ended.clause()
            text = kernel.printed()
            keeping = kernel.process.files.was_keeping()
            if keeping == number:  # it died before its answer had left it
                reason += ", while it kept the variables after this cell, which had come to its end"
            elif keeping is not None:
                reason += ", while it kept the variables after an earlier cell; this cell had not begun"
            if self._keeper is not None:
                self._keeper.look()  # as long as the dead kernel's word can be read
            kernel.close()
            self._kernel = None
            self._deaths += 1
            if self._deaths >= self._restarts:
                in_a_row = f", the {_ordinal(self._deaths)} time in a row" if self._deaths > 1 else ""
                kind = KernelUnresponsive if gone.unresponsive else KernelDied
                over = kind(f"the kernel died{in_a_row}: {reason}", ended.code, ended.stderr_tail)
                self.close(str(over))
                if gone.submitted is None:
                    raise over
                return CellOutcome(text, submitted=gone.submitted, death=Death(reason, (), {}, False, told))
            lost: dict[str, str] = {}
            try:
                successor = self._kernel = self._launch_successor(lost)
                self._encoder.variables.forget()
                for cell in self._setup:
                    self._run(cell, again=True)
            except BaseException:
                self.close("no successor could be started for a kernel that died")
                raise
            ready = successor.tools.ready
            assert ready is not None
            lost.update(ready.lost)
            death = Death(reason, tuple(ready.restored), lost, self._checkpoint, told)
            return CellOutcome(text, submitted=gone.submitted, death=death)

    def _tell_of_death(self) -> str | None:
        try:
            return None if self.on_death is None else self.on_death()
        except Exception:  # the owner's own code, and there is a successor to be started
            logger.warning("What was to be done at the death of a kernel failed", exc_info=True)
            return None

    def _launch_successor(self, lost: dict[str, str]) -> LiveKernel:
        """Start a kernel that restores the checkpoint, or, when the checkpoint itself kills it, one that does not."""
        if self._checkpoint:
            try:
                return self._launch(restore=True)
            except SessionLost as ended:  # restoring runs the agent's own code
                lost["all names"] = f"restoring them failed: {ended.reason}"
        return self._launch(restore=False)


_sessions: weakref.WeakSet[KernelSession] = weakref.WeakSet()  # of this process, for its forks


def _leave_to_parent() -> None:
    for session in tuple(_sessions):
        session._leave_to_parent()  # pyright: ignore[reportPrivateUsage] - its own other half


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


@contextlib.contextmanager
def _told_of_trouble() -> Generator[None]:
    """A full disk, no descriptor, thread or memory left: one kind of error, with what to do."""
    try:
        yield
    except (OSError, ImportError, MemoryError) as error:  # a library that is loaded late meets such trouble, too
        text = f"what the kernel needs of the system cannot be had: {error or type(error).__name__}"
        raise StartupFailed(text + what_to_do(text)) from error


def _interpreter(python: str | os.PathLike[str] | None) -> str:
    """The interpreter's path, absolute when it is a path at all: the kernel's working directory is another one."""
    if python is None:
        return sys.executable
    name = os.path.expanduser(str(python))
    return os.path.abspath(name) if os.path.dirname(name) else name


def _unreadable(code: str) -> RemoteFailure | None:
    """Why code cannot even be sent: Python source is text, and a lone surrogate is not."""
    try:
        code.encode()
    except UnicodeEncodeError as error:
        line = code.count("\n", 0, error.start) + 1
        text = f"line {line} holds {code[error.start]!r}, a lone surrogate, which is no character of Python source"
        return RemoteFailure("SyntaxError", text, f"SyntaxError: {text}", compiling=True)
    return None


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
