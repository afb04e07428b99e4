"""A listener on the loopback interface that takes one kernel's connection.

Every user of the machine can connect to it, so it takes only who says the connection's key, by ZMTP's PLAIN mechanism.
The host listens and the kernel connects: the port is the host's all the time, so the key is told to nobody else.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

from kernel_bridge.zmtp.plain_handshake import accepts_plain

__all__ = ["Endpoint", "LoopbackListener"]

_HANDSHAKE_SECONDS = 2.0  # for all of it; a kernel's own comes at once


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
        self._kind = kind
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
                if accepts_plain(made, self._key, self._kind, time.monotonic() + _HANDSHAKE_SECONDS):
                    undo.pop_all()
                    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    return made
        return None

    def close(self) -> None:
        """Idempotent."""
        self._server.close()


Endpoint = str | Callable[[], str] | LoopbackListener
"""Where the host gets a connection to its kernel: an address, or what tells it later, or a listener of the host's."""
