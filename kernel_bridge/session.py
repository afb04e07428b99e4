"""A session: one kernel at a time, from start to close, and across the deaths between. Knows nothing of DSPy.

One thread at a time runs a cell. The tool server's threads run beside it. `interrupt` may come from any thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kernel_bridge.cells import Cell, CellHost, CellOutcome, Death, Restored
from kernel_bridge.confine import ConfinementReport
from kernel_bridge.errors import (
    KernelDied,
    KernelUnresponsive,
    ProtocolViolation,
    SessionBusy,
    SessionClosed,
    SessionLost,
)
from kernel_bridge.live.cell_turn import CellTurn
from kernel_bridge.live.kernel import GRACE_SECONDS, KernelGone, LiveKernel
from kernel_bridge.live.kernel_starter import KernelStarter
from kernel_bridge.live.request import CellEncoder, why_unreadable
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.warm_kernels import WarmKernels
from kernel_bridge.options import SessionOptions, refuse_unless
from kernel_bridge.threads.blocked_loop import watch_running_loop

__all__ = ["KernelSession"]

logger = logging.getLogger(__name__)

_KEEP_SECONDS = 2.0  # for a kernel to finish the checkpoint of its last cell before it is killed
_RUNNER_SECONDS = 5.0  # for the thread that runs a cell to let go of a session that is being closed


class KernelSession:
    """A persistent namespace in a confined kernel.

    Args:
        tools: the host tools by name; read again at the start of every cell, so it may be changed between cells.
        judge, on_death: see `CellHost`; read again at the start of every cell, too.
        dispatcher: runs the tools; by default a plain `ToolDispatcher`.
        options: the fields of `SessionOptions`, where paths may be texts.
    """

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        *,
        judge: Callable[[dict[str, Any]], object] | None = None,
        on_death: Callable[[], str | None] | None = None,
        dispatcher: ToolDispatcher | None = None,
        **options: Any,
    ) -> None:
        refuse_unless(on_death is None or callable(on_death), "on_death", "a function or None", on_death)
        self.options = SessionOptions(**options)
        self.tools: Mapping[str, Callable[..., Any]] = {} if tools is None else tools
        self.judge = judge
        self.on_death = on_death
        self.checkpoint_file = self.options.checkpoint_file  # read at the start
        self.report: ConfinementReport | None = None  # None before the start
        self.restored: Restored | None = None  # from the checkpoint file; None: there was none
        self.death: Death | None = None  # of the kernel that died last
        self.warm: WarmKernels | None = None  # where kernels can be had that are ready; may be set until the start
        self._dispatcher = ToolDispatcher() if dispatcher is None else dispatcher
        self._encoder = CellEncoder(self.options.limits)
        self._setup: list[Cell] = []
        self._deaths = 0
        self._turn = CellTurn()
        self._changing = threading.RLock()  # guards starts and the end against each other; held while a kernel starts
        self._closed: str | None = None
        self._starter: KernelStarter | None = None
        self._kernel: LiveKernel | None = None
        self._number = 0  # of the next cell
        _sessions.add(self)

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether another thread runs a cell, or deals with the death of its kernel."""
        return self._turn.is_taken and not self._turn.is_mine

    @property
    def connection_file(self) -> Path | None:
        """What `jupyter console --existing` takes, while a kernel is there."""
        return None if self._starter is None or self._kernel is None else self._starter.home.directory.connection_file

    def start(self) -> None:
        """Start the kernel, if none runs yet. Blocks until it takes cells.

        Raises:
            SessionClosed, StartupFailed, ConfinementUnavailable.
        """
        with self._changing:
            self._check_open()
            if self._kernel is not None:
                return
            starter = KernelStarter(
                self.options, self._dispatcher, self.checkpoint_file, lambda: self._closed, self.warm
            )
            self._starter = starter
            try:
                self._kernel = starter.first()
            except BaseException:
                starter.remove()
                self._starter = None
                raise
            self.report, self.restored, self._number = starter.home.report, starter.restored, starter.first_cell

    def _check_open(self) -> None:
        if self._closed is not None:
            raise SessionClosed(self._closed)

    def close(self, reason: str = "the session was closed") -> None:
        """Kill the kernel, once the checkpoint of its last cell is kept, and remove everything it had.

        Idempotent; from any thread. A kernel that starts is given up. A thread that is busy with the end of a cell for
        longer, such as in `on_death`, is not waited for: it removes what is left when it comes to that. Nor does a tool
        of this session wait, for which that thread may wait.
        """
        if self._closed is None:
            self._closed = reason
        if self._turn.is_mine:
            self._dispose()
            return
        starter, kernel = self._starter, self._kernel
        try:
            if starter is not None and starter.keeper is not None and not self._turn.is_taken:
                starter.keeper.wait(_KEEP_SECONDS)
        finally:
            if kernel is not None:
                kernel.process.kill()
        # The sockets belong to the thread that runs a cell; it notices that the kernel is gone and lets go of them.
        if self._turn.take(0.0 if self._dispatcher.is_calling else _RUNNER_SECONDS):
            try:
                self._dispose()
            finally:
                self._turn.give_back()

    def _dispose(self) -> None:
        with self._changing:  # what was starting has been given up by now, and nothing starts any more
            starter, kernel = self._starter, self._kernel
        with contextlib.ExitStack() as stack:
            if starter is not None:
                stack.callback(starter.remove)
            if kernel is not None:
                stack.callback(kernel.close)
            if starter is not None:
                stack.callback(starter.stop_keeping)
            stack.callback(self._dispatcher.close)  # first: the kernel's threads may wait for async tools
        # Last: a Ctrl-C in the middle leaves them to the next close, or to the end of the process.
        self._kernel = self._starter = self.warm = None

    def _leave_to_parent(self) -> None:
        """In the child of a fork: let go of the kernel, its files and its directory, which are the parent's.

        No other thread is here, so a lock that one of them held is never released. A session without a kernel can still
        be started.
        """
        self._dispatcher.leave_to_parent()
        self._turn.leave_to_parent()
        if self._changing.acquire(blocking=False):  # it is free, or this thread's own
            self._changing.release()
        else:
            self._changing = threading.RLock()
        if self._starter is None:
            return
        if self._closed is None:
            self._closed = (
                f"this session's kernel belongs to process {os.getppid()}, of which this one is a fork, and cannot be "
                "used here; make a new one in this process"
            )
        if self._kernel is not None:
            self._kernel.leave_to_parent()
        self._kernel = self._starter = None

    def __enter__(self) -> KernelSession:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one. From any thread; does not wait."""
        if not self._turn.is_taken:
            return
        self._turn.interrupted = True  # for a cell that is still on its way
        kernel = self._kernel
        if kernel is not None:
            kernel.interrupt()

    # -- cells -------------------------------------------------------------------------------------------------------

    def run(self, cell: Cell | str, host: CellHost | None = None) -> CellOutcome:
        """Run a cell and wait for its end.

        Args:
            host: what the cell finds on its host; None: the session's own tools, judge and `on_death`.

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
        if not self._turn.take():
            raise SessionBusy("a cell is already running in this session")
        try:
            self.start()
            with watch_running_loop():
                outcome = self._run(cell, CellHost(self.tools, self.judge, self.on_death) if host is None else host)
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
                self._turn.give_back()

    def _run(self, cell: Cell, host: CellHost, *, again: bool = False) -> CellOutcome:
        kernel, starter = self._kernel, self._starter
        assert kernel is not None
        assert starter is not None
        if (failure := why_unreadable(cell.code)) is not None:
            return CellOutcome("", failure=failure)
        self._dispatcher.bind(host.tools, host.judge, host.page_sources)
        request = self._encoder.encode(cell, host, self._number, again=again)
        self._number += 1
        try:
            try:
                outcome, taken = kernel.run(request, lambda: self._turn.interrupted and not again)
            except KernelGone as gone:
                return self._replace_dead_kernel(gone, request.number, host)
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
        if starter.keeper is not None and not cell.setup:
            starter.keeper.expect(request.number, host.checkpoint_label, kernel.process.has_kept)
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

    def _replace_dead_kernel(self, gone: KernelGone, number: int, host: CellHost) -> CellOutcome:
        """Start a successor for a dead kernel, or end the session. A submission that was accepted stands."""
        with self._changing:
            kernel, starter = self._kernel, self._starter
            if self._closed is not None or kernel is None or starter is None:
                raise SessionClosed(self._closed or "the session was closed")
            ended = kernel.process.end()
            told = _tell_of_death(host)  # first: what the dead kernel has begun may be waited for below
            self._check_open()
            reason = (gone.reason or ended.clause()) + kernel.was_keeping(number)
            text = kernel.printed()
            if starter.keeper is not None:
                starter.keeper.look()  # as long as the dead kernel's word can be read
            kernel.close()
            self._kernel = None
            self._deaths += 1
            if self._deaths >= self.options.restarts:
                in_a_row = f", the {_ordinal(self._deaths)} time in a row" if self._deaths > 1 else ""
                kind = KernelUnresponsive if gone.unresponsive else KernelDied
                over = kind(f"the kernel died{in_a_row}: {reason}", ended.code, ended.stderr_tail)
                self.close(str(over))
                self.death = Death(reason, (), {}, False, told)
                if gone.submitted is None:
                    raise over
                return CellOutcome(text, submitted=gone.submitted, death=self.death)
            try:
                successor, names = starter.successor()
                self._kernel = successor
                self._encoder.variables.forget()
                for cell in self._setup:
                    self._run(cell, host, again=True)
            except BaseException:
                self.close("no successor could be started for a kernel that died")
                raise
            self.death = Death(reason, names.restored, names.lost, self.options.checkpoint, told)
            return CellOutcome(text, submitted=gone.submitted, death=self.death)


def _tell_of_death(host: CellHost) -> str | None:
    try:
        return None if host.on_death is None else host.on_death()
    except Exception:  # the owner's own code, and there is a successor to be started
        logger.warning("What was to be done at the death of a kernel failed", exc_info=True)
        return None


_sessions: weakref.WeakSet[KernelSession] = weakref.WeakSet()  # of this process, for its forks


def _leave_to_parent() -> None:
    for session in tuple(_sessions):
        session._leave_to_parent()  # pyright: ignore[reportPrivateUsage] - its own other half


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
