"""Messages of Jupyter's protocol, written and signed. Jupyter's own `Session` takes long to import and to use."""

from __future__ import annotations

import hmac
import itertools
import json
import os
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import msgspec

__all__ = ["DELIMITER", "SignedMessages"]

DELIMITER = b"<IDS|MSG>"  # between addresses and a message
_encode = msgspec.json.Encoder().encode


class SignedMessages:
    """Writes the messages of one sender. Thread-safe.

    Args:
        key: of the signatures.
        username: of the sender, for the headers.
    """

    def __init__(self, key: bytes, username: str) -> None:
        self._signature = hmac.new(key, digestmod="sha256")
        self._username = username
        self._session = os.urandom(16).hex()
        self._numbers = itertools.count(1)

    def write(
        self, kind: str, content: dict[str, Any], *, parent: dict[str, Any], metadata: dict[str, Any]
    ) -> tuple[str, list[bytes]]:
        """The id of a new message, and its frames from the delimiter to the content. Its buffers would follow them.

        Args:
            parent: the header of the message that it follows from.
        """
        id = f"{self._session}_{os.getpid()}_{next(self._numbers)}"
        header = {
            "msg_id": id,
            "msg_type": kind,
            "username": self._username,
            "session": self._session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.3",
        }
        parts = [_json(part) for part in (header, parent, metadata, content)]
        return id, [DELIMITER, self.sign(parts), *parts]

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature of four frames."""
        signature = self._signature.copy()
        for part in parts:
            signature.update(part)
        return signature.hexdigest().encode()


def _json(part: dict[str, Any]) -> bytes:
    try:
        return _encode(part)
    except Exception:  # noqa: BLE001 - in a kernel: a lone surrogate, or an execution count that the agent has replaced
        return json.dumps(part, default=str).encode()
