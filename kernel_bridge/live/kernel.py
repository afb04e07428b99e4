"""A live kernel: its process, its sockets, its tool server, and the wait for a cell's answer. Knows no successor.

One thread at a time may call it, but for `interrupt`.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from typing import Any, cast

from kernel_bridge.cells import CellOutcome
from kernel_bridge.errors import ProtocolViolation, StartupFailed
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.screen import Screen
from kernel_bridge.live.reply import Reply, find_reply, largest_reply, outcome_of
from kernel_bridge.live.request import CellFrame, CellVariable
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.tool_server import CLOSED, ToolServer
from kernel_bridge.live.zmtp import NO_SIGNAL, Frame, Peer, PeerError, PeerGone, wait_for, wake_pair
from kernel_bridge.os_errors import what_to_do
from kernel_bridge.process.exit_reason import ExitReason
from kernel_bridge.process.kernel_process import KernelProcess
from kernel_bridge.process.launch import LaunchOptions

__all__ = ["GRACE_SECONDS", "Gone", "LiveKernel"]

_LOOK_SECONDS = 0.001  # between two looks whether a starting kernel listens
GRACE_SECONDS = 2.0  # from the interrupt to the kill
_PARTING_SECONDS = 2.0  # between a kernel's sockets closing and its exit
_LONGEST_POLL_SECONDS = 0.5  # another thread may have taken a Ctrl-C: Python raises when the main one runs again
_SWEEP_SECONDS = 0.5  # how often a platform without pidfd looks whether the kernel lives
_MOST_FRAMES = 16  # of a reply; Jupyter's have six
_MOST_STRAYS = 8  # replies in one cell that are not to it; an honest kernel sends one, to a cell that was given up
_ENDED_BY_US = (None, -9) if os.name == "posix" else (None, 1)  # exit codes of what was killed


class Gone(Exception):
    """A kernel died, or had to be killed, under a cell. `reason` None: look at how it exited."""

    def __init__(self, reason: str | None, *, unresponsive: bool = False) -> None:
        self.reason = reason
        self.unresponsive = unresponsive  # it lived, and was killed because it did not answer
        self.submitted: dict[str, Any] | None = None  # what the cell had submitted and the host accepted


class LiveKernel:
    """One running kernel: its process, its sockets, its tool server.

    Args:
        given_up: why nobody wants it any more, asked while it starts; None: it is still wanted.
    """

    def __init__(
        self,
        directory: SessionDirectory,
        options: LaunchOptions,
        *,
        dispatcher: ToolDispatcher,
        restore: bool,
        given_up: Callable[[], str | None],
    ) -> None:
        from jupyter_client.session import Session

        self._directory = directory
        self._limits = limits = options.limits
        self._given_up = given_up
        self.process = KernelProcess(directory, options, restore=restore)
        self._ready_by = time.monotonic() + limits.start_seconds
        connection = self.process.connection
        with contextlib.ExitStack() as undo:
            undo.callback(self.process.files.close)
            undo.callback(self.process.end)
            self._messages = Session(key=connection.info["key"], username="host")
            self._wake_in, self._wake_out = wake_pair()
            undo.callback(self._wake_in.close)
            undo.callback(self._wake_out.close)
            self.tools = ToolServer(*connection.urls, dispatcher=dispatcher, limits=limits, wake=self._wake)
            undo.callback(self.tools.close)
            self._shell = Peer(
                connection.url("shell"), "DEALER", message_bytes=largest_reply(limits), most_frames=_MOST_FRAMES
            )
            undo.callback(self._shell.close)
            undo.callback(self.process.end)  # first: a tool that still runs is waited for
            self._cut = False  # the kernel's end of the shell socket is gone
            self._cell = 0  # the number of the cell that the kernel has not answered yet
            self._request = ""  # the id of the message that it came in
            self._strays = 0  # since the last cell began
            self._open_doors()
            self._connect()
            self._wait_ready()
            self.tools.clock.measure(self.process.cpu_clock())
            self._ending = undo.pop_all()

    def _open_doors(self) -> None:
        """Wait until the kernel listens."""
        doors = self.process.connection.doors
        try:
            while doors is not None and not doors.open():
                self._check_wanted()
                if self.process.exited_within(_LOOK_SECONDS) or time.monotonic() > self._ready_by:
                    raise self._unready()
        except OSError as error:
            raise StartupFailed(str(error)) from error

    def _connect(self) -> None:
        """Connect, once and for all: what lies at the addresses later is nothing to the host."""
        try:
            while not (self._shell.connect() and self.tools.connect()):
                self._check_wanted()
                if self.process.exited_within(_LOOK_SECONDS) or time.monotonic() > self._ready_by:
                    raise self._unready()
        except PeerError as error:
            raise ProtocolViolation(str(error)) from error
        except PeerGone as error:
            self.process.exits_within(_PARTING_SECONDS)
            raise self._unready() from error
        self.tools.start()

    def _check_wanted(self) -> None:
        if (why := self._given_up()) is not None:
            raise StartupFailed(f"a kernel that was starting was given up: {why}")

    def _unready(self) -> StartupFailed:
        gone = self.process.exited() or self.process.kernel_has_ended() is True
        late = not gone and time.monotonic() >= self._ready_by
        ended = self.process.end(_PARTING_SECONDS)  # what never was ready may not even have a guardian
        if late:
            reason = f"the kernel was not ready within {self._limits.start_seconds:g} s"
        elif not gone and ended.verdict is None and ended.code in _ENDED_BY_US:
            reason = f"the kernel did not start: {CLOSED}"
        else:
            reason = _stillborn(ended)
        return StartupFailed(reason, ended.code, ended.stderr_tail)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b"w", NO_SIGNAL)

    def _wait_ready(self) -> None:
        while self.tools.ready is None:
            left = self._ready_by - time.monotonic()
            if left <= 0:
                raise self._unready()
            self._poll(min(left, _LONGEST_POLL_SECONDS / 5), shell=False)
            self._check_wanted()
            if self.tools.violation is not None:
                raise ProtocolViolation(self.tools.violation)
            if self.tools.lost is not None:
                self.process.exits_within(_PARTING_SECONDS)
                raise self._unready()
            if self.tools.ready is None and self.process.exited():
                raise self._unready()
        self._open_doors()  # those that only a console needs

    def _poll(self, seconds: float, *, shell: bool = True) -> None:
        """Wait for the shell socket, the process's end or a wake-up, and send what waits to be sent.

        `shell`: what comes on the socket is read after this; else it would end every wait at once.
        """
        watched = [self._wake_in.fileno()]
        if shell and not self._cut:
            watched.append(self._shell.fd)
        if self.process.exit_fd is not None:
            watched.append(self.process.exit_fd)
        else:
            seconds = min(seconds, _SWEEP_SECONDS)
        unsent = self._shell.unsent and not self._cut
        ready = wait_for(watched, [self._shell.fd] if unsent else (), seconds)
        if watched[0] in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_in.recv(4096)
        if unsent:
            self._flush()

    def _flush(self) -> None:
        try:
            self._shell.flush()
        except PeerGone:
            self._cut = True

    def _receive(self) -> list[Frame] | None:
        """The next message on the shell socket, if one is there."""
        try:
            return None if self._cut else self._shell.receive()
        except PeerGone:
            self._cut = True
            return None
        except PeerError as error:
            raise ProtocolViolation(f"the kernel broke the protocol: {error}") from error

    def request(self, code: str, number: int, names: list[CellVariable], *, setup: bool, again: bool) -> dict[str, Any]:
        """The message that runs a cell."""
        return cast("Any", self._messages).msg(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": False,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": False,
            },
            metadata={"kernel_bridge": {"number": number, "variables": names, "setup": setup, "again": again}},
        )

    def run(
        self, request: dict[str, Any], frames: list[CellFrame], interrupted: Callable[[], bool]
    ) -> tuple[CellOutcome, bool]:
        """Run a cell. Returns its outcome, and whether the kernel took the variables that came with it.

        Args:
            interrupted: whether it has been interrupted already, before it was sent.
        """
        if self.tools.violation is not None:  # noticed when the cell before had already answered, as is the next
            raise ProtocolViolation(f"the kernel broke the protocol: {self.tools.violation}")
        if self.tools.lost is not None:
            self._part()
            raise Gone(None)
        self._strays = 0
        while self._receive() is not None:
            self._count_stray()  # such as the late answer to a cell that was given up
        parts = [*self._messages.serialize(request), *frames]
        self.tools.open_cell()
        self._cell = request["metadata"]["kernel_bridge"]["number"]
        self._request = request["header"]["msg_id"]
        try:
            try:
                self._shell.send(parts)
            except PeerGone:
                self._cut = True
            if interrupted():
                self.interrupt()
            reply, timed_out = self._await_reply()
        except Gone as gone:
            gone.submitted = self.tools.close_cell()
            raise
        finally:
            submitted = self.tools.close_cell()
        if self.tools.fatal is not None:
            raise self.tools.fatal  # the cell had answered before we looked
        return outcome_of(reply, submitted, timed_out, self._limits.output_bytes), reply.kernel_bridge.taken

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one."""
        if number := self._cell:
            self.process.interrupt(number)

    def _await_reply(self) -> tuple[Reply, str | None]:
        clock = self.tools.clock
        overran: str | None = None
        deadline = 0.0
        while True:
            left, limit = clock.left() if overran is None else (deadline - time.monotonic(), overran)
            if left <= 0:
                if overran is not None:
                    self.process.end()
                    raise Gone(
                        f"it was killed, because the cell {overran} and did not react to an interrupt",
                        unresponsive=True,
                    )
                overran = limit
                deadline = time.monotonic() + GRACE_SECONDS
                self.interrupt()
                continue
            self._poll(min(left, _LONGEST_POLL_SECONDS))
            if self.tools.fatal is not None:  # before the answer of the cell, which it may have ended
                raise self.tools.fatal
            if (reply := self._find_reply()) is not None:
                return reply, overran
            if self.tools.violation is not None:
                raise ProtocolViolation(f"the kernel broke the protocol: {self.tools.violation}")
            if self._cut or self.tools.lost is not None:
                self._part()
            if self.process.exited():
                if (reply := self._find_reply()) is not None:
                    return reply, overran
                raise Gone(None)

    def _part(self) -> None:
        """The kernel cannot be talked to any more. If it does not end by itself, end it."""
        if self.process.exits_within(_PARTING_SECONDS):
            return
        # What was ready and is not to be found has ended, and only its guardian has not told yet.
        late = sys.platform.startswith("linux") and self.process.kernel_has_ended() is not False
        ended = self.process.end()
        if late or ended.verdict is not None or ended.code not in _ENDED_BY_US:
            raise Gone(None)
        raise Gone(self.tools.lost or CLOSED, unresponsive=True)

    def _find_reply(self) -> Reply | None:
        """The reply to our request, if it has come; others are dropped, but not for long."""
        while (frames := self._receive()) is not None:
            if (reply := find_reply(frames, self._request)) is not None:
                self._cell = 0
                return reply
            self._count_stray()
        return None

    def _count_stray(self) -> None:
        self._strays += 1
        if self._strays > _MOST_STRAYS:
            raise ProtocolViolation(
                f"the kernel broke the protocol: it sent more than {_MOST_STRAYS} replies that nobody asked for"
            )

    def stop(self, seconds: float) -> bool:
        """Interrupt the running cell and wait until it has answered. False: it has not, or the kernel is gone."""
        self.interrupt()
        deadline = time.monotonic() + seconds
        try:
            while self._cell and (left := deadline - time.monotonic()) > 0:
                self._poll(left)
                if self._find_reply() is None and (self._cut or self.process.exited()):
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

    def close(self) -> None:
        """Kill the process and close all sockets; idempotent."""
        self._ending.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: close this process's own descriptors, and nothing else."""
        self._ending.pop_all()
        self._shell.close()
        self.tools.leave_to_parent()
        self._wake_in.close()
        self._wake_out.close()
        self.process.leave_to_parent()


def _stillborn(ended: ExitReason) -> str:
    reason = f"the kernel did not start: {ended.clause()}"
    if "No module named" in ended.stderr_tail:
        reason += "; its Python needs the packages ipykernel (7 or newer) and msgspec"
    return reason + what_to_do(ended.stderr_tail)
