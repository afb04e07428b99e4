"""ZMTP: the host's end of one ZeroMQ connection to a kernel, on a plain stream socket.

The kernel binds a libzmq socket; but once the agent's code runs, anything may speak at that end. libzmq on this side
would gather the frames of a message that never ends in the host's memory, would connect again, after a disconnect, to
whatever lies at the address by then, and is a large program in C to hand untrusted bytes to. So this side speaks the
protocol, ZMTP 3.0, for itself: it connects once, and reads within bounds.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from kernel_bridge.live.zmtp_reader import COMMAND, GREETING, LONG, MORE, Frame, ZmtpError, ZmtpReader
from kernel_bridge.process.loopback import Endpoint, LoopbackListener
from kernel_bridge.threads.waiting import NO_SIGNAL

__all__ = ["ZmtpClosed", "ZmtpSocket"]

_MOST_VECTORS = 64  # buffers for one system call
_MOST_TURNS = 64  # reads or writes in a row: the other end may keep up with any number of them
_SHORTEST_LONG = 256
_SEND_BYTES = 4 * 2**20  # that wait in the system: a large value costs fewer turns of both processes


class ZmtpClosed(ConnectionError):
    """The other end has closed the connection."""


class ZmtpSocket:
    """One connection. Nothing here blocks; for one thread at a time in each direction.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`, where the kernel listens, soon; or a listener of the host's.
        kind: the ZeroMQ type that this end claims to be: PAIR or DEALER.
        message_bytes: the longest message, all frames together.
        most_frames: the most frames in one message.
    """

    def __init__(self, endpoint: Endpoint, kind: str, *, message_bytes: int, most_frames: int) -> None:
        self._endpoint = endpoint
        self._socket: socket.socket | None = None
        listens = isinstance(endpoint, LoopbackListener)  # which shakes hands itself
        self._reader = ZmtpReader(message_bytes, most_frames, after_handshake=listens)
        name = kind.encode()
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(name)) + name
        ready += b"\x08Identity" + bytes(4)
        self._handshake = GREETING + bytes([COMMAND, len(ready)]) + ready
        self._out: deque[tuple[int, memoryview]] = deque()  # each with the count of bytes at its end
        self._sent: list[int] = []  # bytes, all together

    @property
    def fd(self) -> int:
        """The descriptor to wait for; -1 when there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self) -> bool:
        """Go on with the connecting. True: messages can be sent; False: nobody listens there yet, or has not answered.

        Raises: ZmtpClosed, ZmtpError.
        """
        if self._socket is None and not self._open():
            return False
        # libzmq refuses a message that comes before its own handshake was sent.
        while not self._reader.take_handshake():
            if not self._fill():
                return False
        return True

    def _open(self) -> bool:
        endpoint = self._endpoint
        if isinstance(endpoint, LoopbackListener):
            self._socket = endpoint.accept()
            if self._socket is None:
                return False
            endpoint.close()
            self._socket.setblocking(False)
            return True
        try:
            self._socket = _connect(endpoint if isinstance(endpoint, str) else endpoint())
        except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
            return False
        self._socket.setblocking(False)
        self._socket.send(self._handshake, NO_SIGNAL)  # the first bytes of a connection find room
        return True

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def shut_down(self) -> None:
        """End the connection, which wakes whoever waits for it, on both sides. From any thread."""
        made = self._socket
        if made is not None:
            with suppress(OSError):  # it has ended already
                made.shutdown(socket.SHUT_RDWR)

    # -- out ---------------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something still waits to be sent; `flush` goes on with it."""
        return bool(self._out)

    def send(self, frames: Sequence[bytes | bytearray | memoryview]) -> bool:
        """Send a message, as much as goes at once. What is left keeps the caller's buffers.

        Returns: whether nothing waits any more. Raises: ZmtpClosed.
        """
        last = len(frames) - 1
        buffers: list[bytes | bytearray | memoryview] = []
        short = bytearray()  # frames in a row, for one buffer
        for place, frame in enumerate(frames):
            more = MORE if place < last else 0
            size = len(frame)
            if size < _SHORTEST_LONG:
                short += bytes((more, size))
                short += frame
            else:
                short += struct.pack(">BQ", more | LONG, size)
                buffers += short, frame
                short = bytearray()
        buffers.append(short)
        end = self._out[-1][0] if self._out else sum(self._sent)
        waiting: list[tuple[int, memoryview]] = []
        for buffer in buffers:
            end += len(buffer)
            waiting.append((end, memoryview(buffer)))
        self._out.extend(waiting)  # all or none, if the caller is interrupted here
        return self.flush()

    def flush(self) -> bool:
        """Send what waits, as much as goes at once. True: nothing waits any more. Raises: ZmtpClosed."""
        for _ in range(_MOST_TURNS):
            position = self._forget_sent()
            if not self._out:
                return True
            try:
                self._send_some(position)
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise ZmtpClosed(str(error)) from error
        self._forget_sent()
        return not self._out

    def _forget_sent(self) -> int:
        """Let go of the buffers that were sent. Returns the count of all bytes sent. An interrupt changes nothing."""
        position = sum(self._sent)
        self._sent[:] = (position,)
        while self._out and self._out[0][0] <= position:
            self._out.popleft()
        return position

    def _send_some(self, position: int) -> None:
        if self._socket is None:
            raise ZmtpClosed("there is no connection")
        end, first = self._out[0]
        first = first[len(first) - (end - position) :]
        # Sending and counting are one call of C. An interrupt between them would have the same bytes sent again.
        if len(self._out) == 1 or not hasattr(self._socket, "sendmsg"):
            self._sent.extend(map(self._socket.send, (first,), (NO_SIGNAL,)))
            return
        some = [first, *(buffer for _, buffer in islice(self._out, 1, _MOST_VECTORS))]
        self._sent.extend(map(self._socket.sendmsg, (some,), ((),), (NO_SIGNAL,)))

    # -- in ----------------------------------------------------------------------------------------------------------

    @property
    def has_unread(self) -> bool:
        """Whether bytes were read that belong to no message yet, perhaps to one that is all there."""
        return self._reader.has_unread

    def receive(self) -> list[Frame] | None:
        """The next message, or None when it is not all there yet, or more has come of it than is read at once.

        Ask until it is None before waiting for the descriptor: several messages may have come at once. It returns soon
        however fast the other end sends; where bytes are left unread, the descriptor is ready again.

        Raises:
            ZmtpClosed: the other end has closed the connection.
            ZmtpError: it speaks something else, or beyond the bounds.
        """
        for _ in range(_MOST_TURNS):
            message = self._reader.take_message()
            if message is not None:
                return message
            if not self._fill():
                return None
        return self._reader.take_message()

    def _fill(self) -> bool:
        """Read what is there. False: nothing is."""
        if self._socket is None:
            raise ZmtpClosed("there is no connection")
        try:
            got = self._reader.fill(self._socket.recv_into)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise ZmtpClosed(str(error)) from error
        if not got:
            raise ZmtpClosed("the kernel closed its end")
        return True


def _connect(url: str) -> socket.socket:
    transport, _, address = url.partition("://")
    if transport == "tcp":
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=1.0)
    made = socket.socket(socket.AF_UNIX)
    try:
        with suppress(OSError):  # the system allows less
            made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BYTES)
        if not hasattr(os, "O_PATH"):
            made.connect(address)
            return made
        # Held first and looked at, because a link would be followed, to any socket of the host's user.
        held = os.open(address, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if not stat.S_ISSOCK(os.fstat(held).st_mode):
                raise ZmtpError(f"{os.path.basename(address)!r} is no socket")
            made.connect(f"/proc/self/fd/{held}")
        finally:
            os.close(held)
    except BaseException:
        made.close()
        raise
    return made
