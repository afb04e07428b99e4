"""The host's end of one ZeroMQ connection to a kernel.

Once the agent's code runs, anything may speak at the other end. libzmq on this side would gather the frames of a
message that never ends in the host's memory, would connect again, after a disconnect, to whatever lies at the address
by then, and is a large program in C to hand untrusted bytes to. So this side speaks the protocol for itself: it
connects once, and reads within bounds.
"""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress

from kernel_bridge.process.loopback import Endpoint, LoopbackListener
from kernel_bridge.zmtp.reader import ZmtpError, ZmtpReader
from kernel_bridge.zmtp.stream import NO_SIGNAL, ZmtpStream, handshake

__all__ = ["ZmtpSocket"]

_SEND_BYTES = 4 * 2**20  # that wait in the system: a large value costs fewer turns of both processes


class ZmtpSocket(ZmtpStream):
    """One connection. Nothing here blocks; for one thread at a time in each direction.

    Args:
        endpoint: `ipc://PATH` or `tcp://HOST:PORT`, where the kernel listens, soon; or a listener of the host's.
        kind: the ZeroMQ type that this end claims to be: PAIR or DEALER.
        message_bytes: the longest message, all frames together.
        most_frames: the most frames in one message.
    """

    def __init__(self, endpoint: Endpoint, kind: str, *, message_bytes: int, most_frames: int) -> None:
        # A listener shakes hands itself.
        super().__init__(ZmtpReader(message_bytes, most_frames, after_handshake=isinstance(endpoint, LoopbackListener)))
        self._endpoint = endpoint
        self._handshake = handshake(kind)

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
