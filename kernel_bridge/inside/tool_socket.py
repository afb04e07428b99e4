"""The kernel's end of one connection of the tool channel.

It speaks ZeroMQ's protocol for itself, as the host does. libzmq has threads of its own, and a message that passes
through one of them takes longer than everything else that a small call needs.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

from kernel_bridge.zmtp.plain_handshake import greet_with_plain
from kernel_bridge.zmtp.reader import ZmtpReader
from kernel_bridge.zmtp.stream import NO_SIGNAL, ZmtpStream, handshake

__all__ = ["ToolSocket"]

_KIND = "PAIR"
_HANDSHAKE_SECONDS = 3600.0  # the host ends a kernel that is not ready in time, which is much sooner


class ToolSocket(ZmtpStream):
    """Listens on a Unix socket from now on; on TCP, where others can connect too, the host listens.

    Args:
        url: `ipc://PATH` or `tcp://HOST:PORT`.
        key: what the host wants to be told on TCP.
    """

    def __init__(self, url: str, key: bytes) -> None:
        transport, _, self._address = url.partition("://")
        reader = ZmtpReader(sys.maxsize, 2, after_handshake=transport != "ipc", trusted=True)
        super().__init__(reader, gathers=False)  # some kernels may not use `sendmsg`, which can send descriptors
        self._key = key
        self._listener: socket.socket | None = None
        if transport == "ipc":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._address)  # of a kernel that died before the host had moved it
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self._address)
            self._listener.listen(1)

    def open(self) -> None:
        """Wait for the connection; messages can be sent then. Raises: OSError."""
        if self._listener is not None:
            self._socket, _ = self._listener.accept()
            self._listener.close()
            self._socket.send(handshake(_KIND), NO_SIGNAL)  # the first bytes of a connection find room
        else:
            host, _, port = self._address.rpartition(":")
            self._socket = socket.create_connection((host, int(port)))
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            greet_with_plain(self._socket, self._key, _KIND, time.monotonic() + _HANDSHAKE_SECONDS)
        self._socket.setblocking(False)

    def close(self) -> None:
        """Close the connection, and listen no more. Idempotent."""
        super().close()
        if self._listener is not None:
            self._listener.close()
