"""The handshake by ZMTP's PLAIN mechanism, in which the end that connects says a key. Blocks until a deadline."""

from __future__ import annotations

import hmac
import socket
import time

from kernel_bridge.zmtp.reader import COMMAND, GREETING_BYTES, greeting, is_greeting
from kernel_bridge.zmtp.stream import ready_command

__all__ = ["accepts_plain", "greet_with_plain"]

_MECHANISM = b"PLAIN"
_USER = b"kernel"


def accepts_plain(made: socket.socket, key: bytes, kind: str, deadline: float) -> bool:
    """Shake hands as the end that listens. False: the other end has not said the key. Raises: OSError."""
    made.sendall(greeting(_MECHANISM, as_server=True))
    if not is_greeting(_read(made, GREETING_BYTES, deadline), _MECHANISM):
        return False
    hello = _read_command(made, deadline)  # the command's name, the user's and the password, each after its length
    user = hello[6:7]
    if hello[:6] != b"\x05HELLO" or not user:
        return False
    if not hmac.compare_digest(hello[7 + user[0] :], bytes([len(key)]) + key):
        return False
    _send_command(made, b"\x07WELCOME")
    if not _read_command(made, deadline).startswith(b"\x08INITIATE"):
        return False
    _send_command(made, ready_command(kind))
    return True


def greet_with_plain(made: socket.socket, key: bytes, kind: str, deadline: float) -> None:
    """Shake hands as the end that connects. key: at most 255 bytes. Raises: OSError."""
    made.sendall(greeting(_MECHANISM))
    _read(made, GREETING_BYTES, deadline)
    _send_command(made, b"\x05HELLO" + bytes([len(_USER)]) + _USER + bytes([len(key)]) + key)
    _read_command(made, deadline)
    _send_command(made, b"\x08INITIATE" + ready_command(kind)[len(b"\x05READY") :])
    _read_command(made, deadline)


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
    return _read(made, size, deadline) if flags == COMMAND else b""


def _send_command(made: socket.socket, body: bytes) -> None:
    made.sendall(bytes([COMMAND, len(body)]) + body)
