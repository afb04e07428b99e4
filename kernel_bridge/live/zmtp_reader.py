"""ZMTP 3.0 as bytes: a handshake and messages out of what was read, within bounds."""

from __future__ import annotations

import struct
from collections.abc import Callable

__all__ = ["COMMAND", "GREETING", "LONG", "MORE", "Frame", "ZmtpError", "ZmtpReader"]

MORE, LONG, COMMAND = 1, 2, 4  # flags of a frame
GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_BUFFER_BYTES = 65536
_FIRST_BYTES = 2**20  # of a long frame that are made room for before they come: its length is only a claim
_COMMAND_BYTES = 1024

Frame = bytes | bytearray


class ZmtpError(ValueError):
    """What arrives is not ZMTP, or beyond the bounds."""


class ZmtpReader:
    """Reads what one peer sends.

    Args:
        message_bytes: the longest message, all frames together.
        most_frames: the most frames in one message.
    """

    def __init__(self, message_bytes: int, most_frames: int, *, after_handshake: bool = False) -> None:
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
        self._long_more = False
        self._frames: list[Frame] = []  # of the message on its way
        self._size = 0
        self._greeted = self._is_ready = after_handshake

    def fill(self, read_into: Callable[[memoryview], int]) -> int:
        """Read once, with the function of a socket. Returns how many bytes came. Raises: what the function does.

        An interrupt comes after a call. So reading and noting how much was read are one call of C, and nothing is
        called between that and the end of the counting. What an interrupt left uncounted, the next `fill` counts.
        """
        if not self._got:
            self._read(read_into)
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
        """Whether something was read that was not looked at yet."""
        return self._start < self._end

    def take_handshake(self) -> bool:
        """Go on with the peer's handshake. True: it is done; False: more must be read. Raises: ZmtpError."""
        while not self._is_ready:
            taken = self._take_frame() if self._greeted or self._take_greeting() else None
            if taken is None:
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

    def take_message(self) -> list[Frame] | None:
        """The next message of what was read; None: more must be read. Raises: ZmtpError."""
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
        if self._end - self._start < len(GREETING):
            return False
        theirs = bytes(self._view[self._start : self._start + len(GREETING)])
        if theirs[0] != 0xFF or theirs[9] != 0x7F or theirs[10] < 3 or theirs[12:32] != GREETING[12:32]:
            raise ZmtpError(f"not a ZMTP greeting: {theirs[:16].hex()}")
        self._start += len(GREETING)
        self._greeted = True
        return True

    def _take_frame(self) -> tuple[Frame, bool] | None:
        """One frame, or the command of the handshake, and whether more follow; None: not all there yet."""
        at, end, view = self._start, self._end, self._view
        if end - at < 2:
            return None
        flags = view[at]
        if flags & LONG:
            if end - at < 9:
                return None
            size: int = struct.unpack_from(">Q", view, at + 1)[0]
            at += 9
        else:
            size = view[at + 1]
            at += 2
        self._check(flags, size)
        if flags & COMMAND:
            if end - at < size:
                return None
            self._start = at + size
            return self._take_command(bytes(view[at : at + size])), False
        if end - at >= size:
            self._size += size
            self._start = at + size
            return bytes(view[at : at + size]), bool(flags & MORE)
        if size <= _BUFFER_BYTES // 2:
            return None  # it fits, once the rest is there
        self._size += size
        got = end - at
        self._long = bytearray(min(size, max(_FIRST_BYTES, got)))
        self._long[:got] = view[at:end]
        self._long_size, self._long_got, self._long_more = size, got, bool(flags & MORE)
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

    def _take_command(self, body: bytes) -> bytes:
        if not body.startswith(b"\x05READY"):
            raise ZmtpError(f"not a ZMTP handshake: {body[:16].hex()}")
        self._is_ready = True
        return body
