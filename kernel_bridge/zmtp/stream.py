"""Messages over one connected stream socket, by ZMTP 3.0."""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice

from kernel_bridge.zmtp.reader import COMMAND, LONG, MORE, Frame, ZmtpReader, greeting

__all__ = ["NO_SIGNAL", "ZmtpClosed", "ZmtpStream", "handshake", "ready_command"]

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # for every send: a process may have SIGPIPE kill it
_MOST_VECTORS = 64  # buffers for one system call
_MOST_TURNS = 64  # reads or writes in a row: the other end may keep up with any number of them
_SHORTEST_LONG = 256


class ZmtpClosed(ConnectionError):
    """The other end has closed the connection."""


def handshake(kind: str) -> bytes:
    """What an end says first, without waiting for the other one. kind: the ZeroMQ type that it claims to be."""
    ready = ready_command(kind) + b"\x08Identity" + bytes(4)
    return greeting(b"NULL") + bytes([COMMAND, len(ready)]) + ready


def ready_command(kind: str) -> bytes:
    """The command READY, with the ZeroMQ type that an end claims to be."""
    name = kind.encode()
    return b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(name)) + name


class ZmtpStream:
    """One connection. Nothing here blocks; for one thread at a time in each direction.

    Args:
        reader: of what the other end sends.
        gathers: several buffers are sent by one system call, `sendmsg`.
    """

    def __init__(self, reader: ZmtpReader, *, gathers: bool = True) -> None:
        self._socket: socket.socket | None = None
        self._reader = reader
        self._gathers = gathers and hasattr(socket.socket, "sendmsg")
        self._out: deque[tuple[int, memoryview]] = deque()  # each with the count of bytes at its end
        self._sent: list[int] = []  # bytes, all together

    @property
    def fd(self) -> int:
        """The descriptor to wait for; -1 when there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

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
        if len(self._out) == 1 or not self._gathers:
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
        message = self.look()
        self.drop()
        return message

    def look(self) -> list[Frame] | None:
        """What `receive` returns, which stays the next message until `drop`. Raises the same.

        Whoever is interrupted between the two has lost nothing.
        """
        for _ in range(_MOST_TURNS):
            message = self._next()
            if message is not None:
                return message
            if not self._fill():
                return None
        return self._next()

    def drop(self) -> None:
        """Go on to the message after the one that `look` has found."""
        self._reader.drop_message()

    def _next(self) -> list[Frame] | None:
        return self._reader.next_message() if self._reader.take_handshake() else None

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
            raise ZmtpClosed("the other end closed the connection")
        return True
