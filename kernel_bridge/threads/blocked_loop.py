"""An event loop that waits in `execute` for a cell, and so for the tools that the cell calls.

A tool that hands such a loop a coroutine and waits for its result would wait for ever: the loop goes on when the cell
has ended. What is handed over without waiting is left alone. Seen are `asyncio.run_coroutine_threadsafe(...).result()`
and `asyncio.wrap_future` of it, on loops that Python's own asyncio makes, from the thread or task that the tool was
called in; other ways of waiting for the loop are not.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, cast

__all__ = ["watch_running_loop"]

_watches: contextvars.ContextVar[tuple[_Watch, ...]] = contextvars.ContextVar("kernel_bridge_loops", default=())


class _Watch:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.blocked = True

    def check(self, future: Future[Any]) -> None:
        """Refuse to wait for what the loop cannot come to."""
        if self.blocked and not future.done():
            future.cancel()
            raise RuntimeError(
                "this tool waits for an event loop that itself waits, in execute(), for this call; run the cell beside "
                "the loop instead, such as with `await asyncio.to_thread(interpreter.execute, code)`"
            )

    def mark(self, future: Future[Any]) -> None:
        """Have the waits for this future checked."""
        wait, add = future.result, future.add_done_callback

        def result(timeout: float | None = None) -> Any:
            self.check(future)
            return wait(timeout)

        def add_done_callback(callback: Callable[[Future[Any]], object]) -> None:
            if getattr(callback, "__module__", None) == "asyncio.futures":  # of wrap_future
                self.check(future)
            add(callback)

        marked = cast("Any", future)
        marked.result, marked.add_done_callback = result, add_done_callback


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@contextlib.contextmanager
def watch_running_loop() -> Generator[None]:
    """While this thread waits in here, tools that wait for its running event loop, if it has one, are refused.

    Tools are what runs in a copy of the context that this makes.
    """
    loop: Any = _running_loop()
    if loop is None:
        yield  # not in an `except`: all that is raised in the block would have its error as context
        return
    watch = _Watch(loop)
    call, set_before = loop.call_soon_threadsafe, "call_soon_threadsafe" in getattr(loop, "__dict__", ())

    def call_soon_threadsafe(callback: Callable[..., object], *args: Any, **options: Any) -> Any:
        if watch in _watches.get():
            for cell in getattr(callback, "__closure__", None) or ():
                with contextlib.suppress(ValueError):  # an empty one
                    content: Any = cell.cell_contents
                    if isinstance(content, Future):
                        watch.mark(cast("Future[Any]", content))
        return call(callback, *args, **options)

    token = _watches.set((*_watches.get(), watch))
    with contextlib.suppress(AttributeError):  # a loop of another make
        loop.call_soon_threadsafe = call_soon_threadsafe
    try:
        yield
    finally:
        watch.blocked = False
        _watches.reset(token)
        with contextlib.suppress(AttributeError):
            if set_before:
                loop.call_soon_threadsafe = call
            else:
                del loop.call_soon_threadsafe
