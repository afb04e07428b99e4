"""The kernel's end of the shell channel: one message at a time in, replies out at once."""

# pyzmq's stream is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import zmq
from zmq.eventloop.zmqstream import ZMQStream

__all__ = ["ShellStream"]

_READABLE = int(zmq.POLLIN)  # the flag itself is an enum's, which is slow to calculate with


class ShellStream(ZMQStream):
    """A stream over a ROUTER, which takes every message at once or drops it, so that nothing ever waits to be sent.

    The stock stream queues each reply, polls, and looks up enums of Python's for every event, which takes a third of
    a small cell.
    """

    _receive: Callable[[list[Any]], object] | None = None

    def on_recv(self, callback: Any, copy: bool = True) -> None:
        """Have each message handed to this, as frames without copies."""
        self._receive = callback
        self._look_again()

    def send_multipart(self, msg: Any, flags: int = 0, copy: bool = True, track: bool = False, **_: Any) -> None:
        """Send now."""
        self.socket.send_multipart(msg, flags | zmq.DONTWAIT, copy, track)
        self._look_again()

    def flush(self, *_: Any, **__: Any) -> int:
        """Nothing waits to be sent."""
        return 0

    def _handle_events(self, fd: Any, events: int) -> None:
        receive = self._receive
        if receive is None or self.closed() or not self._has_message():
            return
        message = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
        self._look_again()
        receive(message)

    def _has_message(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & _READABLE)

    def _look_again(self) -> None:
        # The descriptor tells of a change once, and sending or receiving may have been what noticed it.
        if self._receive is not None and self._has_message():
            self.io_loop.add_callback(self._handle_events, None, 0)
