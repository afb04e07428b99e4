"""The start of a kernel, from its launch to its first sign of life."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol

from kernel_bridge.errors import ProtocolViolation, StartupFailed, what_to_do
from kernel_bridge.live.channel_state import CLOSED
from kernel_bridge.live.shell_channel import ShellChannel
from kernel_bridge.live.tool_server import ToolServer
from kernel_bridge.process.exit_reason import ExitReason
from kernel_bridge.process.kernel_process import KernelProcess
from kernel_bridge.zmtp.reader import ZmtpError
from kernel_bridge.zmtp.stream import ZmtpClosed

__all__ = ["ENDED_BY_US", "PARTING_SECONDS", "Startup"]

PARTING_SECONDS = 2.0  # between a kernel's sockets closing and its exit
ENDED_BY_US = (None, -9) if os.name == "posix" else (None, 1)  # exit codes of what was killed
_LOOK_SECONDS = 0.001  # between two looks whether a starting kernel listens


class Channel(Protocol):
    """The host's end of a connection to the kernel."""

    @property
    def fd(self) -> int:
        """The descriptor to wait for; -1: there is no connection yet."""
        ...

    def connect(self) -> bool:
        """Go on with connecting; see `ZmtpSocket.connect`."""
        ...


class Startup:
    """Waits for one kernel that was launched.

    Args:
        given_up: why nobody wants it any more; None: it is still wanted.
        seconds: within which it must be ready.
    """

    def __init__(
        self,
        process: KernelProcess,
        shell: ShellChannel,
        tools: ToolServer,
        given_up: Callable[[], str | None],
        seconds: float,
    ) -> None:
        self._process = process
        self._shell = shell
        self._tools = tools
        self._given_up = given_up
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def wait(self, poll: Callable[[float], None]) -> None:
        """Connect, and wait until the kernel takes cells.

        Args:
            poll: waits for a sign of the kernel, at most so many seconds.

        Raises:
            StartupFailed, ProtocolViolation.
        """
        self._move_sockets()
        self._connect(*self._tools.channels)
        self._tools.start()
        self._wait_ready(poll)
        self._move_sockets()  # those that only a console needs
        try:
            self._process.connection.learn_ports()
        except (OSError, ValueError) as error:
            raise StartupFailed(f"the kernel did not start: {error}") from error
        self._connect(self._shell)  # not before: only now is it known that the kernel listens there

    def _move_sockets(self) -> None:
        """Wait until the kernel listens."""
        moved = self._process.connection.moved_sockets
        try:
            while moved is not None and not moved.move():
                self._look()
        except OSError as error:
            raise StartupFailed(str(error)) from error

    def _connect(self, *channels: Channel) -> None:
        """Connect, once and for all: what lies at an address later is nothing to the host."""
        try:
            while channels := tuple(channel for channel in channels if not channel.connect()):
                self._look(channels[0].fd)
        except ZmtpError as error:
            raise ProtocolViolation(str(error)) from error
        except ZmtpClosed as error:
            self._process.exits_within(PARTING_SECONDS)
            raise self._unready() from error

    def _look(self, awaited: int = -1) -> None:
        self._check_wanted()
        if self._process.exited_within(_LOOK_SECONDS, awaited) or time.monotonic() > self._deadline:
            raise self._unready()

    def _check_wanted(self) -> None:
        if (why := self._given_up()) is not None:
            raise StartupFailed(f"a kernel that was starting was given up: {why}")

    def _wait_ready(self, poll: Callable[[float], None]) -> None:
        state = self._tools.state
        while state.ready is None:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise self._unready()
            poll(left)
            self._check_wanted()
            if state.violation is not None:
                raise ProtocolViolation(state.violation)
            if state.lost is not None:
                self._process.exits_within(PARTING_SECONDS)
                raise self._unready()
            if state.ready is None and self._process.exited():
                raise self._unready()

    def _unready(self) -> StartupFailed:
        process = self._process
        gone = process.exited() or process.kernel_has_ended() is True
        late = not gone and time.monotonic() >= self._deadline
        ended = process.end(PARTING_SECONDS)  # what never was ready may not even have a guardian
        if late:
            reason = f"the kernel was not ready within {self._seconds:g} s"
        elif not gone and ended.verdict is None and ended.code in ENDED_BY_US:
            reason = f"the kernel did not start: {CLOSED}"
        else:
            reason = _why_it_ended(ended)
        return StartupFailed(reason, ended.code, ended.stderr_tail)


def _why_it_ended(ended: ExitReason) -> str:
    reason = f"the kernel did not start: {ended.clause()}"
    if "No module named" in ended.stderr_tail:
        reason += "; its Python needs the packages ipykernel (7 or newer) and msgspec"
    return reason + what_to_do(ended.stderr_tail)
