"""The shell channel of one kernel: requests out, the reply to the last one in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kernel_bridge.errors import ProtocolViolation
from kernel_bridge.live.reply import Reply, RestoredNames, find_reply, largest_reply, read_reply, read_restored
from kernel_bridge.live.request import CellRequest, RestoreRequest
from kernel_bridge.live.zmtp import ZmtpSocket
from kernel_bridge.options import Limits
from kernel_bridge.wire.jupyter_messages import SignedMessages
from kernel_bridge.zmtp.reader import Frame, ZmtpError
from kernel_bridge.zmtp.stream import ZmtpClosed

__all__ = ["ShellChannel"]

_MOST_FRAMES = 16  # of a reply; Jupyter's have six
_MOST_STRAYS = 8  # replies in one cell that are not to it; an honest kernel sends one, to a cell that was given up

_Reply = TypeVar("_Reply")


class ShellChannel:
    """The host's end of the channel. For one thread at a time.

    Args:
        url: where the kernel listens; asked for when it is ready.
        key: of Jupyter's signatures.
    """

    def __init__(self, url: Callable[[], str], key: bytes, limits: Limits) -> None:
        self._socket = ZmtpSocket(url, "DEALER", message_bytes=largest_reply(limits), most_frames=_MOST_FRAMES)
        self._messages = SignedMessages(key, "host")
        self._request = ""  # the id of the last one
        self._strays = 0  # since then
        self.is_cut = False  # the kernel's end is gone

    @property
    def fd(self) -> int:
        """The descriptor to wait for."""
        return self._socket.fd

    @property
    def unsent(self) -> bool:
        """Whether something still waits to be sent; `flush` goes on with it."""
        return self._socket.unsent and not self.is_cut

    def connect(self) -> bool:
        """Go on with connecting; see `ZmtpSocket.connect`."""
        return self._socket.connect()

    def send(self, request: CellRequest | RestoreRequest) -> None:
        """Send a request. Raises: ProtocolViolation when too many replies came that nobody asked for."""
        self._strays = 0
        while self._receive() is not None:
            self._count_stray()  # such as the late answer to a cell that was given up
        content: dict[str, Any] = {
            "code": request.code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        metadata = {"kernel_bridge": request.metadata()}
        self._request, frames = self._messages.write("execute_request", content, parent={}, metadata=metadata)
        try:
            self._socket.send([*frames, *request.frames])
        except ZmtpClosed:
            self.is_cut = True

    def flush(self) -> None:
        """Go on with sending."""
        try:
            self._socket.flush()
        except ZmtpClosed:
            self.is_cut = True

    def find_reply(self) -> Reply | None:
        """The reply to the last request, a cell, if it has come; others are dropped, but not for long.

        Raises:
            ProtocolViolation: what came is no reply, or too many came that nobody asked for.
        """
        return self._find(read_reply)

    def find_restored(self) -> RestoredNames | None:
        """The reply to a `RestoreRequest`, if it has come. Raises as `find_reply` does."""
        return self._find(read_restored)

    def _find(self, read: Callable[[Frame], _Reply]) -> _Reply | None:
        while (frames := self._receive()) is not None:
            if (reply := find_reply(frames, self._request, read)) is not None:
                return reply
            self._count_stray()
        return None

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _receive(self) -> list[Frame] | None:
        try:
            return None if self.is_cut else self._socket.receive()
        except ZmtpClosed:
            self.is_cut = True
            return None
        except ZmtpError as error:
            raise ProtocolViolation(f"the kernel broke the protocol: {error}") from error

    def _count_stray(self) -> None:
        self._strays += 1
        if self._strays > _MOST_STRAYS:
            raise ProtocolViolation(
                f"the kernel broke the protocol: it sent more than {_MOST_STRAYS} replies that nobody asked for"
            )
