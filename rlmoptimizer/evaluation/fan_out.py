"""Runs a function over many items on many workers and delivers the outcomes as they come.

A worker queues its outcome and goes on: delivering may wait for a disk, and the worker has an LM to ask meanwhile. One
thread delivers, what gathered while it delivered the last time at once. Beside our own workers that is a thread of its
own, which no Ctrl-C interrupts; beside an executor it is the thread that waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from kernel_bridge.threads.daemon_pool import DaemonPool

__all__ = ["FanOut", "FanOutJob", "Halt", "ItemAbandoned", "ThreadFanOut"]

_POLL_SECONDS: Final = 0.5  # how long a wait for outcomes lasts before it looks again whether it was halted

_T = TypeVar("_T")
_R = TypeVar("_R")


class Halt(Protocol):
    """Whether something is to stop; a `threading.Event` is one."""

    def is_set(self) -> bool: ...


class ItemAbandoned(BaseException):
    """The function raises this for an item that it was told to stop: there is no outcome and no failure."""


@dataclass(frozen=True, slots=True)
class FanOutJob(Generic[_T, _R]):
    """One sequence of items to be worked on; at most `width` of them under way at once.

    `deliver` gets every outcome with the index of its item, several at once, in the order in which they came; never two
    calls at a time, but on any thread. When it raises, everything ends. Once one of `halts` is set no further item is
    begun; those under way are finished.
    """

    items: Sequence[_T]
    deliver: Callable[[list[tuple[int, _R]]], None]
    width: int
    halts: tuple[Halt, ...] = ()


class FanOut(Generic[_T, _R]):
    """Does the work. One thread calls `start()`, then `wait()`, then, in any case, `stop()` or `abandon()`."""

    def __init__(self, work: FanOutJob[_T, _R]) -> None:
        self._deliver = work.deliver
        self._width = min(work.width, len(work.items))
        self._stopped = threading.Event()
        self._abandoned = False
        self._halts: tuple[Halt, ...] = (self._stopped, *work.halts)
        self._lock = threading.Lock()  # of the next two
        self._waiting: Iterator[tuple[int, _T]] = enumerate(work.items)
        self._under_way: set[int] = set()
        self._came: deque[tuple[int, _R]] = deque()
        self._delivering = threading.Lock()
        self._failure: BaseException | None = None
        self._all_came = threading.Event()
        self._news = threading.Event()  # for the thread that waits

    def start(self) -> None:
        """Begin the first items."""
        raise NotImplementedError

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until every item has ended and every outcome is delivered.

        Notices a halt, a failure and a Ctrl-C within half a second.
        False: that took longer than `seconds` (None: no limit), or everything was abandoned.
        Raises what the function, the executor or `deliver` raised.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _POLL_SECONDS if deadline is None else max(0.0, min(_POLL_SECONDS, deadline - time.monotonic()))
            self._news.wait(left)
            self._news.clear()
            if self._is_halted():
                self._drop_queued()
                self._end_if_idle()
            self._advance()
            over = self._all_came.is_set()  # before the last look, not after it
            if self._delivering.acquire(timeout=left):
                try:
                    self._deliver_all()
                finally:
                    self._delivering.release()
            else:
                over = False  # another thread is still delivering
            if self._failure is not None:
                raise self._failure
            if over:
                return not self._abandoned
            if deadline is not None and time.monotonic() >= deadline:
                return False

    def under_way(self) -> list[int]:
        """The indexes of the items that have begun and have no outcome yet."""
        with self._lock:
            return sorted(self._under_way)

    def stop(self) -> None:
        """Begin no further item."""
        self._stopped.set()
        self._drop_queued()
        self._end_if_idle()

    def abandon(self, seconds: float = 2.0) -> None:
        """Drop outcomes that still come, and begin no further delivery; wait `seconds` at most for one under way."""
        self._abandoned = True
        self.stop()
        if self._delivering.acquire(timeout=seconds):
            self._delivering.release()
        self._end()

    def _is_halted(self) -> bool:
        return any(halt.is_set() for halt in self._halts)

    def _drop_queued(self) -> None:
        """Cancel items that an executor has not begun."""

    def _advance(self) -> None:
        """What the waiting thread does each time it wakes up."""

    def _take(self) -> tuple[int, _T] | None:
        with self._lock:
            halted = self._is_halted()
            item = None if halted or len(self._under_way) >= self._width else next(self._waiting, None)
            if item is not None:
                self._under_way.add(item[0])
            elif not self._under_way:
                self._end()
            return item

    def _end_if_idle(self) -> None:
        """End after a halt where nothing is under way: perhaps no worker is free to look for an item."""
        with self._lock:
            if not self._under_way:
                self._end()

    def _end(self) -> None:
        self._all_came.set()
        self._news.set()

    def _bring(self, index: int, outcome: _R) -> None:
        self._came.append((index, outcome))
        self._deliver_soon()
        self._drop(index)

    def _deliver_soon(self) -> None:
        """Have what came delivered; here by the waiting thread."""
        self._news.set()

    def _deliver_all(self) -> None:
        """Deliver what has come. The caller holds `_delivering`."""
        batch = [self._came.popleft() for _ in range(len(self._came))]
        if not batch or self._abandoned or self._failure is not None:
            return
        try:
            self._deliver(batch)
        except BaseException as error:  # noqa: BLE001 - raised by `wait` on the caller's thread
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stopped.set()
        self._end()  # the caller need not wait for what is still under way

    def _drop(self, index: int, error: BaseException | None = None) -> None:
        """Give back an item that was taken; an `error` ends everything."""
        if error is not None and not isinstance(error, ItemAbandoned):
            self._fail(error)
        with self._lock:
            self._under_way.discard(index)


class ThreadFanOut(FanOut[_T, _R]):
    """On the threads of a pool in this process, each of which calls `function` with one item after another.

    `is_crowded`: others want the pool too, so a thread goes back to it after each item.
    """

    def __init__(
        self,
        work: FanOutJob[_T, _R],
        function: Callable[[_T], _R],
        pool: DaemonPool,
        is_crowded: Callable[[], bool],
    ) -> None:
        super().__init__(work)
        self._function = function
        self._pool = pool
        self._is_crowded = is_crowded
        self._outcomes = threading.Event()  # for the thread that delivers
        self._deliverer = threading.Thread(target=self._deliver_until_end, name="rlmoptimizer-results", daemon=True)

    def start(self) -> None:
        self._deliverer.start()
        for _ in range(max(self._width, 1)):
            self._pool.submit(self._serve)

    def abandon(self, seconds: float = 2.0) -> None:
        deadline = time.monotonic() + seconds
        super().abandon(seconds)
        if self._deliverer.ident is not None and self._deliverer is not threading.current_thread():
            self._deliverer.join(max(0.0, deadline - time.monotonic()))

    def _serve(self) -> None:
        while (item := self._take()) is not None:
            index, value = item
            try:
                outcome = self._function(value)
            except BaseException as error:  # noqa: BLE001 - raised by `wait` on the caller's thread
                self._drop(index, error)
                continue
            self._bring(index, outcome)
            if self._is_crowded() and self._resubmit():
                return

    def _deliver_soon(self) -> None:
        self._outcomes.set()

    def _end(self) -> None:
        super()._end()
        self._outcomes.set()

    def _deliver_until_end(self) -> None:
        while not self._all_came.is_set():
            self._outcomes.wait()
            self._outcomes.clear()
            with self._delivering:
                self._deliver_all()

    def _resubmit(self) -> bool:
        try:
            self._pool.submit(self._serve)
        except RuntimeError:  # the pool is being shut down
            return False
        return True
