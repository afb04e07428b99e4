"""Requests to a kernel as Jupyter's protocol writes them, signed. Its own session takes long to import and to use."""

from __future__ import annotations

import hmac
import itertools
import os
import secrets
from datetime import datetime, timezone
from typing import Any

import msgspec

__all__ = ["DELIMITER", "SignedRequests"]

DELIMITER = b"<IDS|MSG>"  # between addresses and a message
_encode = msgspec.json.Encoder().encode
_EMPTY = b"{}"


class SignedRequests:
    """Makes the execute requests of one client. For one thread at a time.

    Args:
        key: of the signatures.
    """

    def __init__(self, key: bytes) -> None:
        self._signature = hmac.new(key, digestmod="sha256")
        self._session = secrets.token_hex(16)
        self._numbers = itertools.count(1)

    def make(self, code: str, metadata: dict[str, Any]) -> tuple[str, list[bytes]]:
        """The id of a new request, and its frames, after which its buffers come. Nothing is kept in a history."""
        id = f"{self._session}_{os.getpid()}_{next(self._numbers)}"
        header = {
            "msg_id": id,
            "msg_type": "execute_request",
            "username": "host",
            "session": self._session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": "5.3",
        }
        content: dict[str, Any] = {
            "code": code,
            "silent": False,
            "store_history": False,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        parts = [_encode(header), _EMPTY, _encode(metadata), _encode(content)]
        signature = self._signature.copy()
        for part in parts:
            signature.update(part)
        return id, [DELIMITER, signature.hexdigest().encode(), *parts]
