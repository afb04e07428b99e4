"""Jupyter's messages in a kernel, without its session: read from their frames, answered, and shown to consoles.

Jupyter's session parses dates, remembers each signature and packs each part twice, and its kernels log each message,
which takes longer than a small cell. Importing it takes longer than everything else that a host's cell needs.
"""

# What comes from JSON is of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hmac
import threading
from collections.abc import Sequence
from typing import Any

import msgspec
import zmq

from kernel_bridge.wire.jupyter_messages import DELIMITER, SignedMessages

__all__ = ["Messages", "Publisher", "Replies"]

_MARK = b'"kernel_bridge"'  # in the metadata
_decode = msgspec.json.Decoder().decode
_READABLE = int(zmq.POLLIN)  # the flag itself is an enum's, which is slow to calculate with


class Messages:
    """Reads and makes messages.

    Args:
        key: of the signatures.
    """

    def __init__(self, key: bytes) -> None:
        self._written = SignedMessages(key, "kernel")

    def read_request(self, frames: Sequence[Any]) -> tuple[list[bytes], dict[str, Any]] | None:
        """The addresses and the message of a host's request. None: it is another message, for Jupyter's session.

        Args:
            frames: as pyzmq receives them without copies.
        """
        place = _place_of_message(frames)
        if place < 0 or _MARK not in frames[place + 3].bytes:
            return None
        found = self.read(frames, "execute_request")
        try:
            if found is None or not found[1]["metadata"]["kernel_bridge"].keys() & {"number", "restore"}:
                return None
        except (LookupError, TypeError, AttributeError):
            return None
        return found

    def read(self, frames: Sequence[Any], kind: str) -> tuple[list[bytes], dict[str, Any]] | None:
        """The addresses and the message. None: it is of another kind, malformed, or not signed with the key.

        Args:
            frames: as pyzmq receives them without copies.
        """
        place = _place_of_message(frames)
        if place < 0:
            return None
        signature, *parts = (frame.bytes for frame in frames[place : place + 5])
        if not hmac.compare_digest(signature, self._written.sign(parts)):
            return None
        try:
            header, parent_header, metadata, content = map(_decode, parts)
            number = header["msg_id"]
            if header["msg_type"] != kind:
                return None
        except (msgspec.MsgspecError, ValueError, LookupError, TypeError, RecursionError):
            return None
        message = {
            "header": header,
            "msg_id": number,
            "msg_type": kind,
            "parent_header": parent_header,
            "metadata": metadata,
            "content": content,
            "buffers": [memoryview(frame.buffer) for frame in frames[place + 5 :]],
        }
        return [frame.bytes for frame in frames[: place - 1]], message

    def frames(self, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        """The frames of a message that follows from another one, from the delimiter to the content."""
        return self._written.write(kind, content, parent=parent["header"], metadata={})[1]


def _place_of_message(frames: Sequence[Any]) -> int:
    """Where the signature stands, behind addresses and delimiter. -1: it is no whole message."""
    place = next((number for number, frame in enumerate(frames) if frame.bytes == DELIMITER), -1)
    return place + 1 if 0 <= place <= len(frames) - 6 else -1


class Replies:
    """Sends the replies to the host's requests.

    Args:
        shell: the socket of the shell channel, or a stream over it.
    """

    def __init__(self, messages: Messages, shell: Any) -> None:
        self._messages = messages
        self.shell = shell

    def send(self, content: dict[str, Any], parent: dict[str, Any], ident: list[bytes]) -> None:
        """Reply to a request, to whom its addresses name."""
        self.shell.send_multipart([*ident, *self.serialize(content, parent)], zmq.DONTWAIT)

    def serialize(self, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        """The frames of a reply, without addresses, from the delimiter to the content."""
        return self._messages.frames("execute_reply", content, parent)


class Publisher:
    """The iopub socket, used from any thread under a lock, with the methods of ipykernel's iopub thread."""

    def __init__(self, socket: zmq.Socket[bytes], messages: Messages) -> None:
        self._socket = socket
        self._messages = messages
        self._lock = threading.RLock()
        self._listeners = 0
        self._is_parents = False
        self.background_socket = self
        self.closed = False

    def listened_to(self) -> bool:
        """Whether any client, such as a console, is subscribed."""
        if self._is_parents:
            return False
        with self._lock:
            # Without asking first, every print would cost an exception.
            while int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                event = self._socket.recv(zmq.DONTWAIT)
                self._listeners += {b"\x01": 1, b"\x00": -1}.get(event[:1], 0)  # a client may send anything
            return self._listeners > 0

    def become_child(self) -> None:
        """In a forked process: the socket is the parent's, and to ask it never ends."""
        self._is_parents = True

    def publish(self, topic: str, kind: str, content: dict[str, Any], parent: dict[str, Any]) -> None:
        """Show consoles something that follows from a request of the host."""
        if self.listened_to():
            self.send_multipart([topic.encode(), *self._messages.frames(kind, content, parent)])

    def send_multipart(self, frames: list[Any], *_: Any, copy: bool = True, **__: Any) -> None:
        with self._lock:
            if self.listened_to():
                self._socket.send_multipart(frames, copy=copy)

    def schedule(self, action: Any) -> None:
        action()

    def flush(self, *_: Any) -> None:
        return None

    def stop(self) -> None:
        return None

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self._socket.close()
