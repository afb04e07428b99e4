"""The host's requests on Jupyter's shell channel, read from their frames.

Jupyter's session parses dates and remembers each signature, and its kernels log each message, which takes longer than a
small cell.
"""

# What comes from JSON is of any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Any

import msgspec

__all__ = ["read_request"]

_DELIMITER = b"<IDS|MSG>"
_MARK = b'"kernel_bridge"'  # in the metadata
_decode = msgspec.json.Decoder().decode


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
