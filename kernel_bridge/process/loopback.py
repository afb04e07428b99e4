"""A listener on the loopback interface that takes one kernel's connection.

Every user of the machine can connect to it, so it takes only who says the connection's key, by ZMTP's PLAIN mechanism.
The host listens and the kernel connects: the port is the host's all the time, so the key is told to nobody else.
"""

from __future__ import annotations

import contextlib
import hmac
import socket
import struct
import time
from collections.abc import Callable

__all__ = ["Endpoint", "LoopbackListener"]

_HANDSHAKE_SECONDS = 2.0  # for all of it; a kernel's own comes at once
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"PLAIN".ljust(20, b"\0") + b"\x01" + bytes(31)
_COMMAND = 4  # the flag of a short frame that is a command


class LoopbackListener:
    """Listens on a port of its own until it is closed.

    Args:
        key: at most 255 bytes.
        kind: the ZeroMQ type that this end claims to be.

    Raises:
        OSError: no port is free.
    """

    def __init__(self, key: bytes, kind: str) -> None:
        self._key = key
        self._ready = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind.encode()
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)

    @property
    def url(self) -> str:
        """Where the kernel connects to."""
        return f"tcp://127.0.0.1:{self._server.getsockname()[1]}"

    def accept(self) -> socket.socket | None:
        """The connection of a kernel that said the key, ready for messages; None: there is none yet.

        Whoever says something else is turned away.
        """
        try:
            made, _ = self._server.accept()
        except BlockingIOError:
            return None
        with contextlib.ExitStack() as undo:
            undo.callback(made.close)
            made.settimeout(_HANDSHAKE_SECONDS)
            with contextlib.suppress(OSError):
                if self._shakes_hands(made, time.monotonic() + _HANDSHAKE_SECONDS):
                    undo.pop_all()
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return made
        return None

    def _shakes_hands(self, made: socket.socket, deadline: float) -> bool:
        made.sendall(_GREETING)
        theirs = _read(made, len(_GREETING), deadline)
        if theirs[:1] + theirs[9:10] != b"\xff\x7f" or theirs[10:11] < b"\x03" or theirs[12:32] != _GREETING[12:32]:
            return False
        hello = _read_command(made, deadline)  # the command's name, the user's and the password, each after its length
        user = hello[6:7]
        if hello[:6] != b"\x05HELLO" or not user:
            return False
        said = hello[7 + user[0] :]
        if not hmac.compare_digest(said, bytes([len(self._key)]) + self._key):
            return False
        _send_command(made, b"\x07WELCOME")
        if not _read_command(made, deadline).startswith(b"\x08INITIATE"):
            return False
        _send_command(made, self._ready)
        return True

    def close(self) -> None:
        """Idempotent."""
        self._server.close()


def _read(made: socket.socket, size: int, deadline: float) -> bytes:
    found = b""
    while len(found) < size:
        made.settimeout(max(0.001, deadline - time.monotonic()))
        more = made.recv(size - len(found))
        if not more:
            raise ConnectionError("it was closed")
        found += more
    return found


def _read_command(made: socket.socket, deadline: float) -> bytes:
    flags, size = _read(made, 2, deadline)
    return _read(made, size, deadline) if flags == _COMMAND else b""


def _send_command(made: socket.socket, body: bytes) -> None:
    made.sendall(bytes([_COMMAND, len(body)]) + body)


Endpoint = str | Callable[[], str] | LoopbackListener
"""Where the host gets a connection to its kernel: an address, or what tells it later, or a listener of the host's."""
