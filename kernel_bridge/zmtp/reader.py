"""ZMTP 3.0 as bytes: a handshake and messages out of what was read, within bounds."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

__all__ = ["COMMAND", "GREETING_BYTES", "LONG", "MORE", "Frame", "ZmtpError", "ZmtpReader", "greeting", "is_greeting"]

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
GREETING_BYTES = 64
_BUFFER_BYTES = 65536
_FIRST_BYTES = 2**20  # of a long frame that are made room for before they come: its length is only a claim
_COMMAND_BYTES = 1024

Frame = bytes | bytearray
_NONE: Sequence[Frame] = ()


def greeting(mechanism: bytes, *, as_server: bool = False) -> bytes:
    """What an end says first: that it speaks ZMTP 3.0, by this security mechanism."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def is_greeting(said: bytes, mechanism: bytes) -> bool:
    """Whether the other end speaks ZMTP 3.0 or newer, by this mechanism. said: GREETING_BYTES."""
    return said[0] == 0xFF and said[9] == 0x7F and said[10] >= 3 and said[12:32] == mechanism.ljust(20, b"\0")


class ZmtpError(ValueError):
    """What arrives is not ZMTP, or beyond the bounds."""


class ZmtpReader:
    """Reads what one peer sends.

    Args:
        message_bytes: the longest message, all frames together.
        most_frames: the most frames in one message.
        after_handshake: that has been done by others.
        trusted: the peer's claim of a length is taken for true.
    """

    def __init__(
        self, message_bytes: int, most_frames: int, *, after_handshake: bool = False, trusted: bool = False
    ) -> None:
        self._message_bytes = message_bytes
        self._most_frames = most_frames
        self._buffer = bytearray(_BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._start: int = 0  # of what was read and not yet looked at
        self._end: int = 0
        self._got: list[int] = []  # bytes of the last read, as long as they are not counted
        self._long: bytearray | None = None  # a frame longer than the buffer, on its way
        self._long_size: int = 0
        self._long_got: int = 0
        self._long_more = 0
        self._frames: Sequence[Frame] = _NONE  # of the message on its way
        self._size = 0
        self._whole: list[Frame] | None = None  # a message that has not been taken
        self._greeted = self._is_ready = after_handshake
        self._first_bytes = message_bytes if trusted else _FIRST_BYTES

    def fill(self, read_into: Callable[[memoryview], int]) -> int:
        """Read once, with the function of a socket. Returns how many bytes came. Raises: what the function does.

        An interrupt comes after a call. So reading and noting how much was read are one call of C, and nothing is
        called between that and the end of the counting. What an interrupt left uncounted is counted before anything
        else is read or looked at: to take a message may change the place where bytes are put.
        """
        if not self._got:
            self._read(read_into)
        return self._count()

    def _count(self) -> int:
        got = self._got[0]
        if self._long is not None:
            self._long_got += got
        else:
            self._end += got
        self._got = []
        return got

    def _read(self, read_into: Callable[[memoryview], int]) -> None:
        if self._long is not None:
            target = memoryview(self._long)[self._long_got :]
        else:
            self._make_room()
            target = self._view[self._end :]
        try:
            self._got.extend(map(read_into, (target,)))
        finally:
            target.release()  # else the frame could not grow

    @property
    def has_unread(self) -> bool:
        """Whether something was read that was not taken yet."""
        return self._start < self._end or self._whole is not None or self._got != []

    def take_handshake(self) -> bool:
        """Go on with the peer's handshake. True: it is done; False: more must be read. Raises: ZmtpError."""
        if self._got:
            self._count()
        while not self._is_ready:
            if not (self._greeted or self._take_greeting()) or not self._take_frame():
                return False
        return True

    def _make_room(self) -> None:
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == _BUFFER_BYTES:
            rest = self._buffer[self._start : self._end]
            size = len(rest)  # called before anything is changed; see `fill`
            self._view[:size] = rest
            self._start, self._end = 0, size

    def next_message(self) -> list[Frame] | None:
        """The next message of what was read, the same until `drop_message`. None: read more. Raises: ZmtpError."""
        if self._got:
            self._count()
        while self._whole is None:
            if not (self._take_frame() if self._long is None else self._take_long()):
                return None
        return self._whole

    def drop_message(self) -> None:
        """Go on to the message after the next one."""
        self._whole = None

    # An interrupt comes after a call or before a loop's next turn. So what is taken is noted in a row of plain stores.

    def _take_greeting(self) -> bool:
        if self._end - self._start < GREETING_BYTES:
            return False
        theirs = bytes(self._view[self._start : self._start + GREETING_BYTES])
        if not is_greeting(theirs, b"NULL"):
            raise ZmtpError(f"not a ZMTP greeting: {theirs[:16].hex()}")
        self._start += GREETING_BYTES
        self._greeted = True
        return True

    def _take_frame(self) -> bool:
        """One frame, or the command of the handshake. False: it is not all there yet."""
        at, end, view = self._start, self._end, self._view
        if end - at < 2:
            return False
        flags = view[at]
        if flags & LONG:
            if end - at < 9:
                return False
            size: int = struct.unpack_from(">Q", view, at + 1)[0]
            at += 9
        else:
            size = view[at + 1]
            at += 2
        self._check(flags, size)
        if flags & COMMAND:
            if end - at < size:
                return False
            body = bytes(view[at : at + size])
            if not body.startswith(b"\x05READY"):
                raise ZmtpError(f"not a ZMTP handshake: {body[:16].hex()}")
            self._start = at + size
            self._is_ready = True
            return True
        if end - at >= size:
            self._add(bytes(view[at : at + size]), flags & MORE, at + size)
            return True
        if size <= _BUFFER_BYTES // 2:
            return False  # it fits, once the rest is there
        got = end - at
        long = bytearray(min(size, max(self._first_bytes, got)))
        long[:got] = view[at:end]
        self._start = self._end = 0
        self._long = long
        self._long_size = size
        self._long_got = got
        self._long_more = flags & MORE
        return self._take_long()

    def _take_long(self) -> bool:
        long = self._long
        assert long is not None
        if self._long_got < len(long):
            return False
        left = self._long_size - len(long)
        if left:
            long.extend(bytes(min(left, len(long))))
            return False
        self._add(long, self._long_more, self._start)
        return True

    def _add(self, frame: Frame, more: int, start: int) -> None:
        """A frame is all there, and what was read goes on at `start`."""
        frames = [*self._frames, frame]
        whole, rest, total = (None, frames, self._size + len(frame)) if more else (frames, _NONE, 0)
        self._start = start
        self._long = None
        self._whole = whole
        self._frames = rest
        self._size = total

    def _check(self, flags: int, size: int) -> None:
        if flags & ~(MORE | LONG | COMMAND):
            raise ZmtpError(f"a frame with the flags {flags:#x}")
        if flags & COMMAND:
            if self._is_ready or size > _COMMAND_BYTES or flags & MORE:
                raise ZmtpError("a command after the handshake, or one that is too long")
        elif not self._is_ready:
            raise ZmtpError("a message before the handshake was done")
        elif self._size + size > self._message_bytes:
            raise ZmtpError(f"a message of more than {self._message_bytes} bytes")
        elif len(self._frames) >= self._most_frames:
            raise ZmtpError(f"a message of more than {self._most_frames} frames")
