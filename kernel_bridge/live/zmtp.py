"""ZMTP: the host's end of one ZeroMQ connection to a kernel, on a plain stream socket. Knows frames, not their sense.

The kernel binds a libzmq socket; but once the agent's code runs, anything may speak at that end. libzmq on this side
would gather the frames of a message that never ends in the host's memory, would connect again, after a disconnect, to
whatever lies at the address by then, and is a large program in C to hand untrusted bytes to. So this side speaks the
protocol, ZMTP 3.0 without authentication, for itself: it connects once, and reads within bounds.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections import deque
from collections.abc import Sequence

from kernel_bridge.threads.waiting import NO_SIGNAL

__all__ = ["ZmtpClosed", "ZmtpError", "ZmtpSocket"]

_BUFFER_BYTES = 65536
_FIRST_BYTES = 2**20  # of a long frame that are made room for before they come: its length is only a claim
_MOST_VECTORS = 64  # buffers for one system call
_MOST_TURNS = 64  # reads or writes in a row: the other end may keep up with any number of them
_COMMAND_BYTES = 1024
_MORE, _LONG, _COMMAND = 1, 2, 4
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_SHORTEST_LONG = 256

Frame = bytes | bytearray


class ZmtpError(ValueError):
    """What arrives is not ZMTP, or beyond the bounds."""


class ZmtpClosed(ConnectionError):
    """The other end has closed the connection."""


class ZmtpSocket:
    """One connection. Nothing here blocks; for one thread at a time in each direction.

    Args:
        url: `ipc://PATH` or `tcp://HOST:PORT`, where the kernel listens, soon.
        kind: the ZeroMQ type that this end claims to be: PAIR or DEALER.
        message_bytes: the longest message, all frames together.
        most_frames: the most frames in one message.
    """

    def __init__(self, url: str, kind: str, *, message_bytes: int, most_frames: int) -> None:
        self._url = url
        self._socket: socket.socket | None = None
        self._message_bytes = message_bytes
        self._most_frames = most_frames
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start: int = 0  # of what was read and not yet looked at
        self._end: int = 0
        self._long: bytearray | None = None  # a frame longer than the buffer, on its way
        self._long_size: int = 0
        self._long_got: int = 0
        self._long_more = False
        self._frames: list[Frame] = []  # of the message on its way
        self._size = 0
        self._greeted = self._is_ready = False
        name = kind.encode()
        ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(name)) + name
        ready += b"\x08Identity" + bytes(4)
        self._handshake = _GREETING + bytes([_COMMAND, len(ready)]) + ready
        self._out: deque[memoryview] = deque()

    @property
    def fd(self) -> int:
        """The descriptor to wait for; -1 when there is no connection."""
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self) -> bool:
        """Go on with the connecting. True: messages can be sent; False: nobody listens there yet, or has not answered.

        Raises: ZmtpClosed, ZmtpError.
        """
        if self._socket is None:
            try:
                self._socket = _connect(self._url)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
                return False
            self._socket.setblocking(False)
            self._socket.send(self._handshake, NO_SIGNAL)  # the first bytes of a connection find room
        # libzmq refuses a message that comes before its own handshake was sent.
        while not self._is_ready:
            taken = self._take_frame() if self._greeted or self._take_greeting() else None
            if taken is None and not self._fill():
                return False
        return True

    def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    # -- out ---------------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> bool:
        """Whether something still waits to be sent; `flush` goes on with it."""
        return bool(self._out)

    def send(self, frames: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send a message, as much as goes at once. What is left keeps the caller's buffers. Raises: ZmtpClosed."""
        last = len(frames) - 1
        for place, frame in enumerate(frames):
            more = _MORE if place < last else 0
            size = len(frame)
            if size < _SHORTEST_LONG:
                self._out.append(memoryview(bytes((more, size)) + frame))
            else:
                self._out.append(memoryview(struct.pack(">BQ", more | _LONG, size)))
                self._out.append(memoryview(frame))
        self.flush()

    def flush(self) -> bool:
        """Send what waits, as much as goes at once. True: nothing waits any more. Raises: ZmtpClosed."""
        out = self._out
        for _ in range(_MOST_TURNS):
            if not out:
                return True
            try:
                sent = self._send_some()
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                raise ZmtpClosed(str(error)) from error
            while sent:
                first = out[0]
                if len(first) > sent:
                    out[0] = first[sent:]
                    break
                sent -= len(first)
                out.popleft()
        return not out

    def _send_some(self) -> int:
        if self._socket is None:
            raise ZmtpClosed("there is no connection")
        while self._out and not self._out[0]:
            self._out.popleft()  # an empty frame
        if len(self._out) == 1 or not hasattr(self._socket, "sendmsg"):
            return self._socket.send(self._out[0], NO_SIGNAL) if self._out else 0
        some = [self._out[i] for i in range(min(len(self._out), _MOST_VECTORS))]
        return self._socket.sendmsg(some, (), NO_SIGNAL)

    # -- in ----------------------------------------------------------------------------------------------------------

    def receive(self) -> list[Frame] | None:
        """The next message, or None when it is not all there yet, or more has come of it than is read at once.

        Ask until it is None before waiting for the descriptor: several messages may have come at once. It returns soon
        however fast the other end sends; where bytes are left unread, the descriptor is ready again.

        Raises:
            ZmtpClosed: the other end has closed the connection.
            ZmtpError: it speaks something else, or beyond the bounds.
        """
        for _ in range(_MOST_TURNS):
            message = self._next()
            if message is not None:
                return message
            if not self._fill():
                return None
        return self._next()

    def _fill(self) -> bool:
        """Read what is there. False: nothing is."""
        if self._socket is None:
            raise ZmtpClosed("there is no connection")
        if self._long is not None:
            target = memoryview(self._long)[self._long_got :]
        else:
            self._make_room()
            target = self._view[self._end :]
        try:
            got: int = self._socket.recv_into(target)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise ZmtpClosed(str(error)) from error
        finally:
            target.release()  # else the frame could not grow
        if not got:
            raise ZmtpClosed("the kernel closed its end")
        if self._long is not None:
            self._long_got += got
        else:
            self._end += got
        return True

    def _make_room(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER_BYTES:
            rest = self._buffer[self._start : self._end]
            self._view[: len(rest)] = rest
            self._start, self._end = 0, len(rest)

    def _next(self) -> list[Frame] | None:
        """Take the next message out of what was read; None when more must be read."""
        while True:
            taken = self._take_long() if self._long is not None else self._take_frame()
            if taken is None:
                return None
            frame, more = taken
            self._frames.append(frame)
            if not more:
                message, self._frames, self._size = self._frames, [], 0
                return message

    def _take_greeting(self) -> bool:
        if self._end - self._start < len(_GREETING):
            return False
        theirs = bytes(self._view[self._start : self._start + len(_GREETING)])
        if theirs[0] != 0xFF or theirs[9] != 0x7F or theirs[10] < 3 or theirs[12:32] != _GREETING[12:32]:
            raise ZmtpError(f"not a ZMTP greeting: {theirs[:16].hex()}")
        self._start += len(_GREETING)
        self._greeted = True
        return True

    def _take_frame(self) -> tuple[Frame, bool] | None:
        """One frame, or the command of the handshake, and whether more follow; None: not all there yet."""
        at, end, view = self._start, self._end, self._view
        if end - at < 2:
            return None
        flags = view[at]
        if flags & _LONG:
            if end - at < 9:
                return None
            size: int = struct.unpack_from(">Q", view, at + 1)[0]
            at += 9
        else:
            size = view[at + 1]
            at += 2
        self._check(flags, size)
        if flags & _COMMAND:
            if end - at < size:
                return None
            self._start = at + size
            return self._take_command(bytes(view[at : at + size])), False
        if end - at >= size:
            self._size += size
            self._start = at + size
            return bytes(view[at : at + size]), bool(flags & _MORE)
        if size <= _BUFFER_BYTES // 2:
            return None  # it fits, once the rest is there
        self._size += size
        got = end - at
        self._long = bytearray(min(size, max(_FIRST_BYTES, got)))
        self._long[:got] = view[at:end]
        self._long_size, self._long_got, self._long_more = size, got, bool(flags & _MORE)
        self._start = self._end = 0
        return self._take_long()

    def _take_long(self) -> tuple[Frame, bool] | None:
        frame = self._long
        assert frame is not None
        if self._long_got < len(frame):
            return None
        left = self._long_size - len(frame)
        if left:
            frame.extend(bytes(min(left, len(frame))))
            return None
        self._long = None
        return frame, self._long_more

    def _check(self, flags: int, size: int) -> None:
        if flags & ~(_MORE | _LONG | _COMMAND):
            raise ZmtpError(f"a frame with the flags {flags:#x}")
        if flags & _COMMAND:
            if self._is_ready or size > _COMMAND_BYTES or flags & _MORE:
                raise ZmtpError("a command where there is none")
        elif not self._is_ready:
            raise ZmtpError("a message before the handshake was done")
        elif self._size + size > self._message_bytes:
            raise ZmtpError(f"a message of more than {self._message_bytes} bytes")
        elif len(self._frames) >= self._most_frames:
            raise ZmtpError(f"a message of more than {self._most_frames} frames")

    def _take_command(self, body: bytes) -> bytes:
        if not body.startswith(b"\x05READY"):
            raise ZmtpError(f"not a ZMTP handshake: {body[:16].hex()}")
        self._is_ready = True
        return body


def _connect(url: str) -> socket.socket:
    transport, _, address = url.partition("://")
    if transport == "tcp":
        host, _, port = address.rpartition(":")
        return socket.create_connection((host, int(port)), timeout=1.0)
    made = socket.socket(socket.AF_UNIX)
    try:
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
