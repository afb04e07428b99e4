"""One event loop on a thread of its own, for async tools, programs and metrics.

One loop for all of an owner's, because clients, locks and semaphores belong to the loop that used them first.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
from collections.abc import Awaitable
from concurrent.futures import Future, InvalidStateError
from typing import Any, Final, TypeVar

from kernel_bridge.threads.daemon_executor import DaemonExecutor

__all__ = ["LoopThread"]

logger = logging.getLogger(__name__)

_CLOSE_SECONDS: Final = 5.0  # how long each part of closing may take; only what refuses to be cancelled ever does

_BLOCKED_SECONDS: Final = 1.0  # without a sign from it, after which a loop counts as blocked

_EXECUTOR_THREADS: Final = 32  # for what async code hands to threads, such as with asyncio.to_thread

_CLOSED: Final = "the event loop is closed"

_T = TypeVar("_T")


def _fail(outcome: Future[Any], error: BaseException) -> None:
    with contextlib.suppress(InvalidStateError):  # it has one already
        outcome.set_exception(error)


def _drop(awaitable: Any) -> None:
    if asyncio.iscoroutine(awaitable):
        awaitable.close()  # nobody will await it, which Python would warn of


class LoopThread:
    """Runs awaitables for other threads. The loop is started when first needed and stopped by `close()`."""

    def __init__(self, name: str = "async calls") -> None:
        self._name = name
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly
        self._awaited: set[Future[Any]] = set()  # under the lock, as the next two
        # What each thread waits for: its task, once that has begun, and its loop.
        self._waiting: dict[threading.Thread, tuple[list[asyncio.Task[None]], asyncio.AbstractEventLoop]] = {}
        self._closed = False

    def run(self, awaitable: Awaitable[_T]) -> _T:
        """Wait for `awaitable` and give its result; it sees the context variables of the calling thread.

        Raises whatever it raises, SystemExit and CancelledError included, without harm to the loop, and RuntimeError
        when the loop was closed meanwhile, or is the one that would have to wait.
        """
        if threading.current_thread() is self._thread:
            _drop(awaitable)
            raise RuntimeError(
                "async code that runs on this event loop cannot wait for more of it from a plain function, which would "
                "keep the loop from ever running that; await it, or call the plain function with asyncio.to_thread"
            )
        outcome: Future[_T] = Future()
        begun: list[asyncio.Task[None]] = []

        async def settle() -> None:
            try:
                answer = await awaitable
            except BaseException as error:  # noqa: BLE001 - handed to the thread that asked; the loop must live on
                _fail(outcome, error)
            else:
                with contextlib.suppress(InvalidStateError):  # nobody waits for it any more
                    outcome.set_result(answer)

        def start() -> None:
            task = asyncio.ensure_future(settle())
            begun.append(task)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        try:
            loop = self._running_loop(outcome)
            with self._lock:  # what has begun must be known to whoever cancels it
                loop.call_soon_threadsafe(start, context=contextvars.copy_context())
                self._waiting[threading.current_thread()] = begun, loop
        except (RuntimeError, OSError):  # it is closed, or there is no thread or descriptor for it
            _drop(awaitable)
            raise
        try:
            # As long as the program takes. Whatever becomes of the loop, `close` ends this.
            return outcome.result()
        finally:
            with self._lock:
                self._awaited.discard(outcome)
                self._waiting.pop(threading.current_thread(), None)

    def cancel(self, thread: threading.Thread) -> None:
        """Cancel what a thread waits for in `run`, if it does.

        Something on the loop may block it, so that nothing can be cancelled any more. Then the loop is left behind with
        its thread, and what is run from now on has another one.
        """
        with self._lock:
            waiting = self._waiting.get(thread)
        if waiting is None:
            return
        begun, loop = waiting
        taken = threading.Event()

        def cancel() -> None:
            taken.set()
            for task in begun:
                task.cancel()

        try:
            loop.call_soon_threadsafe(cancel)
        except RuntimeError:  # it is closed
            return
        if not taken.wait(_BLOCKED_SECONDS):
            self._leave(loop)

    def _leave(self, loop: asyncio.AbstractEventLoop) -> None:
        with self._lock:
            if self._loop is not loop:
                return
            self._loop = self._thread = None
        logger.warning("The event loop of %s is blocked; it is left behind, and another one is begun", self._name)
        loop.call_soon_threadsafe(loop.stop)  # when it comes to that

    def close(self) -> None:
        """Cancel what runs and stop the thread, or warn and leave one that will not stop in time. Idempotent."""
        with self._lock:
            self._closed = True
            loop, thread = self._loop, self._thread
            self._loop = self._thread = None
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            if thread is not threading.current_thread():  # where its owner may be collected as garbage
                thread.join(3 * _CLOSE_SECONDS)
                if thread.is_alive():
                    logger.warning("The event loop of %s is blocked; its thread is abandoned", self._name)
        with self._lock:
            left = tuple(self._awaited)
        for outcome in left:  # what refused to be cancelled, what the loop never came to, and what blocks it
            _fail(outcome, RuntimeError(_CLOSED))

    def _running_loop(self, awaited: Future[Any]) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._closed:
                raise RuntimeError(_CLOSED)
            if self._loop is None:
                loop = asyncio.new_event_loop()
                loop.set_default_executor(DaemonExecutor(_EXECUTOR_THREADS, f"{self._name}, in threads"))
                thread = threading.Thread(target=self._serve, args=(loop,), name=self._name, daemon=True)
                try:
                    thread.start()
                except BaseException:  # the system has no thread left: the next call tries again
                    loop.close()
                    raise
                self._loop, self._thread = loop, thread
            self._awaited.add(awaited)
            return self._loop

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_forever()
            loop.run_until_complete(self._wind_up(loop))
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    async def _wind_up(self, loop: asyncio.AbstractEventLoop) -> None:
        left = asyncio.all_tasks() - {asyncio.current_task()}  # those that calls have left behind, too
        for task in left:
            task.cancel()
        if left:
            await asyncio.wait(left, timeout=_CLOSE_SECONDS)
        for shutdown in (loop.shutdown_asyncgens(), loop.shutdown_default_executor()):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(shutdown, _CLOSE_SECONDS)

    # A copy in another process starts a loop of its own.
    def __reduce__(self) -> tuple[Any, ...]:
        return LoopThread, (self._name,)
