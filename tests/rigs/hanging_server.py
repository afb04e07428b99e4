"""A provider on loopback that does not answer chosen requests until it is released. Knows no program."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dspy
from offline import Engine
from provider import answers_of
from responses_server import ResponsesServer

__all__ = ["HangingServer", "hanging_lm"]


class HangingServer(ResponsesServer):
    """Answers by `model`; a request that holds every text of one group in `hanging` waits for `release`."""

    def __init__(self, model: Engine, *hanging: tuple[str, ...]) -> None:
        super().__init__(answers_of(model))
        self.hanging = hanging
        self.arrived = threading.Semaphore(0)  # released for each request that hangs
        self.hung = 0  # so many did
        self._counting = threading.Lock()
        self._released = threading.Event()
        self._http.handle_error = self._ignore  # type: ignore[method-assign]

    def _ignore(self, request: Any, client_address: Any) -> None:
        """Who asked may be gone when the answer comes."""

    def release(self) -> None:
        self._released.set()

    def __exit__(self, *error: object) -> None:
        self.release()
        super().__exit__(*error)

    def respond(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> tuple[int, dict[str, Any]]:
        said = str(body)
        if any(all(text in said for text in group) for group in self.hanging) and not self._released.is_set():
            with self._counting:
                self.hung += 1
            self.arrived.release()
            self._released.wait(120)
        return super().respond(path, body, headers)


@contextmanager
def hanging_lm(model: Engine, *hanging: tuple[str, ...]) -> Iterator[tuple[HangingServer, dspy.LM]]:
    """The server, and an LM that asks it over HTTP."""
    with HangingServer(model, *hanging) as server:
        options: dict[str, Any] = {"api_base": server.url, "api_key": "none", "cache": False, "num_retries": 0}
        yield server, dspy.LM("openai/eval", **options)
