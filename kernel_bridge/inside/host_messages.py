"""The host's requests on Jupyter's shell channel, read from their frames, and the replies to them.

Jupyter's session parses dates, remembers each signature and packs each part twice, and its kernels log each message,
which takes longer than a small cell.
"""

# What comes from JSON is of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hmac
import itertools
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

__all__ = ["Replies", "read_request"]

_DELIMITER = b"<IDS|MSG>"
_MARK = b'"kernel_bridge"'  # in the metadata
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode
_EMPTY = b"{}"


def read_request(frames: Sequence[Any], sign: Any) -> tuple[list[bytes], dict[str, Any]] | None:
    """The addresses and the message of a host's request. None: it is another message, which Jupyter's session can read.

    Args:
        frames: as pyzmq receives them without copies.
        sign: makes the signature of four frames.
    """
    place = next((number for number, frame in enumerate(frames) if frame.bytes == _DELIMITER), -1)
    if place < 0 or len(frames) < place + 6 or _MARK not in frames[place + 4].bytes:
        return None
    signature, *parts = (frame.bytes for frame in frames[place + 1 : place + 6])
    try:
        header, parent_header, metadata, content = map(_decode, parts)
        if header["msg_type"] != "execute_request" or not metadata["kernel_bridge"].keys() & {"number", "restore"}:
            return None
    except (msgspec.MsgspecError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return None
    if not hmac.compare_digest(signature, sign(parts)):
        return None
    message = {
        "header": header,
        "msg_id": header["msg_id"],
        "msg_type": "execute_request",
        "parent_header": parent_header,
        "metadata": metadata,
        "content": content,
        "buffers": [memoryview(frame.buffer) for frame in frames[place + 6 :]],
    }
    return [frame.bytes for frame in frames[:place]], message


class Replies:
    """Sends the replies to the host's requests.

    Args:
        session: Jupyter's; its name and signatures are taken, and it packs what nothing else can.
        stream: of the shell channel.
    """

    def __init__(self, session: Any, stream: Any) -> None:
        self._session = session
        self._stream = stream
        self._numbers = itertools.count()

    def send(self, content: dict[str, Any], parent: dict[str, Any], ident: list[bytes]) -> None:
        """Reply to a request, to whom its addresses name."""
        self._stream.send_multipart([*ident, *self.serialize(content, parent)])

    def serialize(self, content: dict[str, Any], parent: dict[str, Any]) -> list[bytes]:
        """The frames of a reply, without addresses, from the delimiter to the content."""
        session = self._session
        header = {
            "msg_id": f"{session.session}_reply_{next(self._numbers)}",
            "msg_type": "execute_reply",
            "username": session.username,
            "session": session.session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.3",
        }
        parts = [self._pack(header), self._pack(parent["header"]), _EMPTY, self._pack(content)]
        return [_DELIMITER, session.sign(parts), *parts]

    def _pack(self, part: dict[str, Any]) -> bytes:
        try:
            return _encode(part)
        except Exception:  # noqa: BLE001 - a name that is no proper text, or a count that the agent has replaced
            return self._session.pack(part)
