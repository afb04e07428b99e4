"""The sender of answers: one after the other onto the socket on which a kernel waits for them."""

from __future__ import annotations

import threading
import time

from kernel_bridge.live.channel_state import CLOSED, ChannelState
from kernel_bridge.live.zmtp import ZmtpSocket
from kernel_bridge.process.loopback import Endpoint
from kernel_bridge.threads.waiting import wait_for
from kernel_bridge.wire import HostMessage, write_head
from kernel_bridge.zmtp.stream import ZmtpClosed

__all__ = ["AnswerSender"]

_SEND_SECONDS = 30.0  # a kernel that does not take its answers for so long is given up


class AnswerSender:
    """Sends answers for the threads that run tools. Thread-safe.

    Args:
        state: is told when the kernel takes no answers any more.
    """

    def __init__(self, endpoint: Endpoint, state: ChannelState) -> None:
        self._socket = ZmtpSocket(endpoint, "PAIR", message_bytes=0, most_frames=0)
        self._state = state
        self._lock = threading.Lock()  # guards the socket
        self._closed = False

    @property
    def fd(self) -> int:
        """The descriptor of the socket; see `ZmtpSocket.fd`."""
        return self._socket.fd

    def connect(self) -> bool:
        """Go on with connecting; see `ZmtpSocket.connect`."""
        return self._socket.connect()

    def send(self, head: HostMessage, body: bytes) -> None:
        """Send an answer; wait until the kernel has taken it, or is given up."""
        with self._lock:
            if self._closed or self._state.is_over:
                return
            try:
                if self._socket.send([write_head(head), body]):
                    return
                deadline = time.monotonic() + _SEND_SECONDS
                while not self._closed and not self._socket.flush():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        self._state.lose(f"it took no answer to its calls for {_SEND_SECONDS:g} s")
                        return
                    wait_for((), (self._socket.fd,), left)
            except ZmtpClosed:
                if not self._closed:
                    self._state.lose(CLOSED)

    def close(self) -> None:
        """Send no more; what is being sent is left. Idempotent."""
        self._closed = True
        self._socket.shut_down()  # wakes a thread that waits until more can be sent
        with self._lock:
            self._socket.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: a thread that is not here may have held the lock."""
        self._lock = threading.Lock()
        self._closed = True
        self._socket.close()
