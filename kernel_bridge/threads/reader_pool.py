"""Threads that take turns at reading from many sources, and do the work that they read.

One thread at a time, the leader, waits for all descriptors. Work that is expected to be brief it does itself, and leads
on; the next one awake, the spare, takes the lead from it when that was a mistake. Before other work it hands the lead
to another thread. So brief work costs one wake-up, and no work holds up the reading.
"""

from __future__ import annotations

import itertools
import logging
import selectors
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from kernel_bridge.threads.starting import start_thread
from kernel_bridge.threads.waiting import Wakeup

__all__ = ["ReaderPool", "ReaderPools", "Source", "Work"]

logger = logging.getLogger(__name__)

_BRIEF_SECONDS = 0.002  # that the spare lets the leader work before it takes the lead
_ALERT_SECONDS = 0.1  # without brief work, after which the spare sleeps until it is woken
_IDLE_SECONDS = 5.0  # after which a thread ends that is not the only one to stand by


class Work(Protocol):
    """What was read, and is now to be done."""

    @property
    def is_brief(self) -> bool:
        """Whether it is expected to take less time than waking a thread."""
        ...

    def run(self) -> None:
        """Do it. Whatever it raises is logged."""
        ...


class Source(Protocol):
    """Something that is read from."""

    @property
    def fd(self) -> int:
        """The descriptor to wait for; the same as long as the source is in the pool."""
        ...

    def read(self) -> tuple[Work | None, bool]:
        """Read once; must not wait. What is to be done, and whether more may be read without waiting for `fd`."""
        ...


class _Worker:
    """One thread."""

    def __init__(self) -> None:
        self.wake = threading.Lock()  # released to wake it
        self.wake.acquire()


class ReaderPool:
    """Serves its sources with daemon threads, from the first `add` until the last `remove`; then it is used up.

    Threads are started when they are needed and end when they are not. There are at most as many as there is work at
    once, and two more.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()  # guards all below
        self._selector = selectors.DefaultSelector()
        self._wakeup = Wakeup()
        self._selector.register(self._wakeup.fd, selectors.EVENT_READ)
        self._sources: dict[Source, bool] = {}  # and whether their descriptors are waited for
        self._ready: deque[Source] = deque()  # in this round
        self._unread: deque[Source] = deque()  # that have more, for the next one
        self._leader: _Worker | None = None
        self._idle: list[_Worker] = []
        self._spare: _Worker | None = None  # one of the idle ones that watches over brief work
        self._since: float | None = None  # the leader is doing brief work
        self._done = 0  # pieces of brief work
        self._ended = False

    def add(self, source: Source) -> bool:
        """Begin to read from it. False: the pool is used up. Raises: OSError when the system has no thread left."""
        with self._lock:
            if self._ended:
                return False
            if self._leader is None:
                try:
                    self._start()
                except OSError:
                    if not self._sources:
                        self._end()
                    raise
            self._admit(source)
        return True

    def remove(self, source: Source) -> None:
        """Read no more from it, once a read that is under way is done. Idempotent."""
        with self._lock:
            waited_for = self._sources.pop(source, None)
            if waited_for:
                self._selector.unregister(source.fd)
            if waited_for is not None and not self._sources:
                self._end()

    def pause(self, source: Source) -> None:
        """Read nothing from it until `resume`."""
        with self._lock:
            if self._sources.get(source):
                self._sources[source] = False
                self._selector.unregister(source.fd)

    def resume(self, source: Source) -> None:
        """Read on."""
        with self._lock:
            if self._sources.get(source) is not False:
                return
            self._admit(source)

    def _admit(self, source: Source) -> None:
        """Have a source read. With the lock."""
        self._sources[source] = True
        self._selector.register(source.fd, selectors.EVENT_READ, source)
        self._ready.append(source)  # its descriptor does not announce what was taken from it already
        self._wakeup.set()

    def leave_to_parent(self) -> None:
        """In the child of a fork: be used up. The threads are the parent's, and so is what the selector waits for."""
        self._lock = threading.Lock()
        self._ended = True
        self._leader = None
        with suppress(OSError):  # some systems leave nothing of it to a child
            self._selector.close()
        self._wakeup.leave_to_parent()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        """Start a thread that leads. With the lock."""
        before, self._leader = self._leader, _Worker()
        name = f"{self._name} {next(self._numbers)}"
        try:
            start_thread(threading.Thread(target=self._work, args=(self._leader,), name=name, daemon=True))
        except OSError:
            self._leader = before
            raise

    def _end(self) -> None:
        """Let all threads end. With the lock."""
        self._ended = True
        for worker in self._idle:
            worker.wake.release()
        self._idle.clear()
        if self._leader is None or self._since is not None:
            self._close()
        else:
            self._wakeup.set()  # the leader waits, and closes them when it wakes

    def _close(self) -> None:
        self._leader = None
        self._selector.close()
        self._wakeup.close()

    def _work(self, worker: _Worker) -> None:
        try:
            while self._leader is worker or self._stand_by(worker):
                self._lead(worker)
        finally:
            with self._lock:
                if self._leader is worker:  # something went wrong that nobody thought of
                    self._leader = self._since = None
                    with suppress(OSError):
                        self._pass_on()

    def _stand_by(self, worker: _Worker) -> bool:
        """Wait for the lead. False: this thread is not needed any more."""
        with self._lock:
            if self._ended:
                return False
            self._idle.append(worker)
            if self._spare is None:
                self._spare = worker
        seen, alert_until = self._done, time.monotonic() + _ALERT_SECONDS
        while True:
            woken = worker.wake.acquire(timeout=_BRIEF_SECONDS if self._spare is worker else _IDLE_SECONDS)
            with self._lock:
                if not woken:
                    woken = worker.wake.acquire(blocking=False)  # just now
                if woken:
                    return self._leader is worker
                if self._spare is not worker:
                    if len(self._idle) > 1:
                        self._idle.remove(worker)
                        return False
                    continue
                now = time.monotonic()
                if self._since is not None:
                    if now - self._since >= _BRIEF_SECONDS:
                        self._idle.remove(worker)
                        self._spare, self._leader, self._since = None, worker, None
                        return True
                elif seen != self._done:
                    seen, alert_until = self._done, now + _ALERT_SECONDS
                elif now >= alert_until:
                    self._spare = None

    def _pass_on(self) -> None:
        """Let another thread lead. With the lock. Raises: OSError when there is none, nor can one be started."""
        if self._idle:
            follower = self._idle.pop()
            if follower is self._spare:
                self._spare = None
            self._leader = follower
            follower.wake.release()
        else:
            self._start()

    def _lead(self, worker: _Worker) -> None:
        """Read, and do what is read, for as long as this thread leads."""
        while (work := self._next()) is not None:
            with self._lock:
                if self._ended:
                    self._close()
                elif work.is_brief and self._spare is not None:
                    self._since = time.monotonic()
                else:
                    with suppress(OSError):  # the system has no thread left: this one reads on when it has done it
                        self._pass_on()
            self._do(work.run)
            del work  # and with it what it holds, while this thread waits
            with self._lock:
                if self._leader is not worker:
                    return
                self._since = None
                self._done += 1

    def _do(self, run: Callable[[], None]) -> None:
        try:
            run()
        except Exception:
            logger.exception("A thread of %s failed", self._name)

    def _next(self) -> Work | None:
        """The next work. None: the pool has ended."""
        while (work := self._read()) is None:
            found = self._wait(0.0 if self._unread else None)  # nobody who sends without end keeps others from a turn
            if found is None:
                return None
            self._ready.extend(found)
            self._ready.extend(source for source in self._unread if source not in found)
            self._unread.clear()
            del found  # a source that is removed meanwhile is not to be held while this thread waits
        return work

    def _read(self) -> Work | None:
        """The next work of those sources that can be read in this round; None: the round is over."""
        while self._ready:
            source = self._ready.popleft()
            if not self._sources.get(source):
                continue
            work, more = source.read()
            if more:
                self._unread.append(source)
            if work is not None:
                return work
        return None

    def _wait(self, seconds: float | None) -> list[Source] | None:
        """The sources that can be read; None: the pool has ended."""
        found: list[Any] = [key.data for key, _ in self._selector.select(seconds)]
        if None in found:
            found.remove(None)
            self._wakeup.clear()
        if self._ended:
            with self._lock:
                self._close()
            return None
        return found


class ReaderPools:
    """One pool after the other: another one when that was used up or belongs to the parent of a fork."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._pool: ReaderPool | None = None

    def add(self, source: Source) -> ReaderPool:
        """Have a source read, by the pool that is given back. Raises: OSError."""
        with self._lock:
            while self._pool is None or not self._pool.add(source):
                self._pool = ReaderPool(self._name)
            return self._pool

    def leave_to_parent(self) -> None:
        """In the child of a fork: begin anew. A thread that is not here may have held the lock."""
        self._lock = threading.Lock()
        if self._pool is not None:
            self._pool.leave_to_parent()
            self._pool = None
