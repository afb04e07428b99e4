"""A live kernel: its process, its channels, and the wait for a cell's answer.

One thread at a time may call it, but for `interrupt`.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from typing import Any

from kernel_bridge.cells import CellOutcome
from kernel_bridge.errors import KernelDied, KernelUnresponsive, ProtocolViolation, StartupFailed
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.screen import Screen
from kernel_bridge.live.channel_state import CLOSED
from kernel_bridge.live.reply import Reply, RestoredNames, outcome_of
from kernel_bridge.live.request import CellRequest, RestoreRequest
from kernel_bridge.live.shell_channel import ShellChannel
from kernel_bridge.live.startup import ENDED_BY_US, PARTING_SECONDS, Startup
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.tool_server import ToolServer
from kernel_bridge.process.kernel_process import KernelProcess
from kernel_bridge.process.launch import LaunchOptions
from kernel_bridge.threads.waiting import Wakeup, wait_for

__all__ = ["GRACE_SECONDS", "KernelGone", "LiveKernel"]

GRACE_SECONDS = 2.0  # from the interrupt to the kill
_LONGEST_POLL_SECONDS = 0.5  # another thread may have taken a Ctrl-C: Python raises when the main one runs again


class KernelGone(Exception):
    """A kernel died, or had to be killed, under a cell. `reason` None: look at how it exited."""

    def __init__(self, reason: str | None, *, unresponsive: bool = False) -> None:
        self.reason = reason
        self.unresponsive = unresponsive  # it lived, and was killed because it did not answer
        self.submitted: dict[str, Any] | None = None  # what the cell had submitted and the host accepted


class LiveKernel:
    """One running kernel.

    Args:
        given_up: why nobody wants it any more, asked while it starts; None: it is still wanted.

    Raises:
        StartupFailed, ProtocolViolation.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        options: LaunchOptions,
        dispatcher: ToolDispatcher,
        given_up: Callable[[], str | None],
    ) -> None:
        self._limits = limits = options.session.limits
        self._cell = 0  # the number of the cell that the kernel has not answered yet; 0: none
        self.process = KernelProcess(directory, options)
        connection = self.process.connection
        with contextlib.ExitStack() as undo:
            undo.callback(self.process.files.close)
            undo.callback(self.process.end)
            self._wakeup = Wakeup()
            undo.callback(self._wakeup.close)
            self._tools = ToolServer(connection.endpoints, dispatcher, limits, self._wakeup.set)
            undo.callback(self._tools.close)
            self._shell = ShellChannel(lambda: connection.url("shell"), connection.info["key"], limits)
            undo.callback(self._shell.close)
            undo.callback(self.process.end)  # first: a tool that still runs is waited for
            startup = Startup(self.process, self._shell, self._tools, given_up, limits.start_seconds)
            startup.wait(lambda seconds: self._poll(min(seconds, _LONGEST_POLL_SECONDS / 5), shell=False))
            self._tools.clock.measure(self.process.cpu_clock())
            self._ending = undo.pop_all()

    def is_alive(self) -> bool:
        """Whether it still runs and can be talked to, as far as is known. From any thread; does not wait."""
        return not self.process.exited() and not self._tools.state.is_over

    def hand_over(self, dispatcher: ToolDispatcher) -> None:
        """From now on, before its first cell, the kernel's calls go to this dispatcher."""
        self._tools.hand_over(dispatcher)

    def restore(self, given_up: Callable[[], str | None]) -> RestoredNames:
        """Let the kernel load the checkpoint that lies in its directory: once, and before its first cell.

        Args:
            given_up: why nobody wants it any more, asked meanwhile; None: it is still wanted.

        Raises:
            SessionLost: it died of that, took too long, was given up, or answered what nobody agreed on. It is to be
                closed then.
        """
        seconds = self._limits.start_seconds
        deadline = time.monotonic() + seconds
        self._shell.send(RestoreRequest())
        while (found := self._shell.find_restored()) is None:
            if (why := given_up()) is not None:
                raise StartupFailed(f"a kernel that was restoring variables was given up: {why}")
            if (left := deadline - time.monotonic()) <= 0:
                ended = self.process.end()
                raise KernelUnresponsive(f"it took longer than {seconds:g} s", ended.code, ended.stderr_tail)
            self._poll(min(left, _LONGEST_POLL_SECONDS / 5))
            self._check_alive()
        return found

    def _check_alive(self) -> None:
        """While a checkpoint is restored. What the kernel has answered before its end does not help: it is gone."""
        state = self._tools.state
        if state.violation is not None:
            raise ProtocolViolation(f"the kernel broke the protocol: {state.violation}")
        try:
            if self._shell.is_cut or state.lost is not None:
                self._end_silent_kernel()
        except KernelGone as gone:
            if gone.reason is not None:
                raise KernelUnresponsive(gone.reason) from None
        if self.process.exited():
            ended = self.process.end()
            raise KernelDied(ended.clause(), ended.code, ended.stderr_tail)

    def run(self, request: CellRequest, interrupted: Callable[[], bool]) -> tuple[CellOutcome, bool]:
        """Run a cell. Returns its outcome, and whether the kernel took the variables that came with it.

        Args:
            interrupted: whether it has been interrupted already, before it was sent.

        Raises:
            KernelGone: the kernel died under it, or had to be killed.
            ProtocolViolation: the kernel sent what nobody agreed on.
            BaseException: what a tool raised that no kernel may have, such as KeyboardInterrupt.
        """
        state = self._tools.state
        if state.violation is not None:  # noticed when the cell before had already answered, as is the next
            raise ProtocolViolation(f"the kernel broke the protocol: {state.violation}")
        if state.lost is not None:
            self._end_silent_kernel()
            raise KernelGone(None)
        self._tools.open_cell()
        self._cell = request.number
        try:
            self._shell.send(request)
            if interrupted():
                self.interrupt()
            reply, timed_out = self._await_reply()
        except KernelGone as gone:
            gone.submitted = self._tools.close_cell()
            raise
        finally:
            submitted = self._tools.close_cell()
        if state.fatal is not None:
            raise state.fatal  # the cell had answered before we looked
        return outcome_of(reply, submitted, timed_out, self._limits.output_bytes), reply.kernel_bridge.taken

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one."""
        if number := self._cell:
            self.process.interrupt(number)

    def _await_reply(self) -> tuple[Reply, str | None]:
        """The cell's reply, and which of its time limits it ran into, if it did."""
        clock, state = self._tools.clock, self._tools.state
        overran: str | None = None
        deadline = 0.0
        while True:
            left, limit = clock.left() if overran is None else (deadline - time.monotonic(), overran)
            if left <= 0:
                if overran is not None:
                    self.process.end()
                    why = f"it was killed, because the cell {overran} and did not react to an interrupt"
                    raise KernelGone(why, unresponsive=True)
                overran = limit
                deadline = time.monotonic() + GRACE_SECONDS
                self.interrupt()
                continue
            self._poll(min(left, _LONGEST_POLL_SECONDS))
            if state.fatal is not None:  # before the answer of the cell, which it may have ended
                raise state.fatal
            if (reply := self._find_reply()) is not None:
                return reply, overran
            if state.violation is not None:
                raise ProtocolViolation(f"the kernel broke the protocol: {state.violation}")
            if self._shell.is_cut or state.lost is not None:
                self._end_silent_kernel()
            if self.process.exited():
                if (reply := self._find_reply()) is not None:
                    return reply, overran
                raise KernelGone(None)

    def _find_reply(self) -> Reply | None:
        reply = self._shell.find_reply()
        if reply is not None:
            self._cell = 0
        return reply

    def _poll(self, seconds: float, *, shell: bool = True) -> None:
        """Wait for the shell channel, the process's end or a wake-up, and send what waits to be sent.

        `shell`: what comes on the channel is read after this; else it would end every wait at once.
        """
        watched = [self._wakeup.fd]
        if shell and not self._shell.is_cut:
            watched.append(self._shell.fd)
        if self.process.exit_fd is not None:
            watched.append(self.process.exit_fd)
        unsent = self._shell.unsent
        if self._wakeup.fd in wait_for(watched, [self._shell.fd] if unsent else (), seconds):
            self._wakeup.clear()
        if unsent:
            self._shell.flush()

    def _end_silent_kernel(self) -> None:
        """The kernel cannot be talked to any more. If it does not end by itself, end it."""
        if self.process.exits_within(PARTING_SECONDS):
            return
        # A kernel that was ready and is not found any more has ended, though its guardian has not reported it yet.
        late = sys.platform.startswith("linux") and self.process.kernel_has_ended() is not False
        ended = self.process.end()
        if late or ended.verdict is not None or ended.code not in ENDED_BY_US:
            raise KernelGone(None)
        raise KernelGone(self._tools.state.lost or CLOSED, unresponsive=True)

    def stop(self, seconds: float) -> bool:
        """Interrupt the running cell and wait until it has answered. False: it has not, or the kernel is gone."""
        self.interrupt()
        deadline = time.monotonic() + seconds
        try:
            while self._cell and (left := deadline - time.monotonic()) > 0:
                self._poll(min(left, _LONGEST_POLL_SECONDS))
                if self._find_reply() is None and (self._shell.is_cut or self.process.exited()):
                    return False
        except ProtocolViolation:
            return False
        return not self._cell

    def printed(self) -> str:
        """What the cell under which the kernel died had printed, from the file the kernel kept it in."""
        limit = self._limits.output_bytes
        data = self.process.files.take_transcript(limit)
        screen = Screen()
        text = screen.feed(data.decode("utf-8", "replace")) + screen.rest()
        if len(data) < limit // 2:
            return text
        return f"{text}\n... [what it printed after this was lost with it] ..."

    def was_keeping(self, cell: int) -> str:
        """Whether the dead kernel was making a checkpoint, as the end of a sentence about its death in this cell."""
        keeping = self.process.files.was_keeping()
        if keeping is None:
            return ""
        if keeping == cell:  # it died before its answer had left it
            return ", while it kept the variables after this cell, which had come to its end"
        return ", while it kept the variables after an earlier cell; this cell had not begun"

    def close(self) -> None:
        """Kill the process and close all sockets; idempotent."""
        self._ending.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: close this process's own descriptors, and nothing else."""
        self._ending.pop_all()
        self._shell.close()
        self._tools.leave_to_parent()
        self._wakeup.leave_to_parent()
        self.process.leave_to_parent()
