"""Watching an optimization for the pages that show it: one look at its files every half second, whoever many look.

Nothing is watched while nobody looks. What is watched, and what is told of it, is the caller's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from typing import Final, Generic, TypeVar

__all__ = ["Changes"]

_S = TypeVar("_S", bound=Hashable)

LOOK_SECONDS: Final = 0.5  # between two looks
_SHARE: Final = 4.0  # what a change costs is spent at most a fifth of the time


class Changes(Generic[_S]):
    """Tells all listeners the newest status, each as often as it is new.

    Belongs to one event loop. `look` is called in another thread, never twice at once. It gives the status, and the
    seconds of work that its readers cause when they are told of a change. What it raises all who listen get.
    """

    def __init__(self, look: Callable[[], tuple[_S, float]]) -> None:
        self._look = look
        self._listeners = 0
        self._watching: asyncio.Task[None] | None = None
        self._newest: _S | None = None  # None: nobody has looked yet
        self._news = asyncio.Event()
        self._closed = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """While it lasts, `after` gives what is new."""
        self._listeners += 1
        if (self._watching is None or self._watching.done()) and not self._closed:
            self._watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            self._listeners -= 1
            if not self._listeners:
                self._stop()

    async def after(self, seen: _S | None) -> _S | None:
        """The newest status as soon as it differs from `seen`; None: no more will come. While it is listening."""
        while not self._closed and (self._newest is None or self._newest == seen):
            if self._watching is not None and self._watching.done():
                self._watching.result()
            await self._news.wait()
        return None if self._closed else self._newest

    def close(self) -> None:
        """End the listeners' waiting. Idempotent."""
        self._closed = True
        self._stop()
        self._news.set()

    def _stop(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
        self._newest = None  # who comes next must not be told what is old

    async def _watch(self) -> None:
        try:
            while True:
                status, seconds = await asyncio.to_thread(self._look)
                if status == self._newest:
                    seconds = 0.0
                else:
                    self._newest = status
                    self._tell()
                await asyncio.sleep(max(LOOK_SECONDS, _SHARE * seconds))
        finally:
            asyncio.get_running_loop().call_soon(self._tell)  # once it is known how this ended

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
