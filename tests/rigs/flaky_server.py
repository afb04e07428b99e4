"""A provider on loopback that fails for chosen messages, in all the ways in which providers fail. Knows no program."""

from __future__ import annotations

import socket
import struct
import sys
import threading
from collections import Counter
from typing import Any, Final

from offline import Engine
from provider import answers_of
from responses_server import ResponsesServer

__all__ = ["FAILURES", "FlakyServer"]

# Kind of failure -> the status that is answered; None: there is no answer.
FAILURES: Final[dict[str, int | None]] = {
    "rate_limit": 429,
    "server": 500,
    "auth": 401,
    "transport": None,  # the connection is reset
    "timeout": None,  # nothing comes until the server ends
}


class _Reset(Exception):
    """The connection is to be reset."""


class FlakyServer(ResponsesServer):
    """Answers by `model`; a request that holds one of the texts in `failing` fails, `times` times (None: always)."""

    def __init__(self, model: Engine) -> None:
        super().__init__(answers_of(model))
        self.failing: tuple[str, ...] = ()
        self.kind = "server"
        self.times: int | None = None
        self.failed: Counter[str] = Counter()  # of each text in `failing`
        self._released = threading.Event()
        self._http.handle_error = self._reset  # type: ignore[method-assign]

    def __exit__(self, *error: object) -> None:
        self._released.set()
        super().__exit__(*error)

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        said = str(body)
        for text in self.failing:
            if text in said and (self.times is None or self.failed[text] < self.times):
                with self._lock:
                    self.failed[text] += 1
                return self._fail()
        return super().respond(path, body, headers)

    def _fail(self) -> tuple[int, dict[str, Any]]:
        status = FAILURES[self.kind]
        if self.kind == "timeout":
            self._released.wait(60)
        if status is None:
            raise _Reset
        code = {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(status, "server_error")
        return status, {"error": {"message": f"scripted {self.kind}", "type": code, "param": None, "code": code}}

    def _reset(self, request: Any, client_address: Any) -> None:
        """In the place of a traceback on stderr."""
        if isinstance(sys.exc_info()[1], _Reset):
            request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            request.close()
