"""Tasks that run again and again when they are due, on a few threads for all of them.

One thread waits until the next task is due and runs it. Another one stands by, and takes its place when a task takes
long, so that it holds up no other. So there are two threads for any number of tasks that are soon done, none soon after
the last task, and in the worst case one for each task and one that stands by.
"""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
from contextlib import suppress
from typing import Protocol

from kernel_bridge.threads.starting import start_thread

__all__ = ["DueTask", "DueTasks"]

logger = logging.getLogger(__name__)

_LONG_SECONDS = 0.25  # that a task runs until the thread that stands by goes on with the others
_IDLE_SECONDS = 5.0  # after which a thread ends that is one too many
_LINGER_SECONDS = 1.0  # that threads wait for another task when there is none
_KEPT_IDLE = 2
_TOGETHER_SECONDS = 0.05  # what is due within so long is run one after the other, with one wake-up


class DueTask(Protocol):
    """Something to be done again and again, never twice at once."""

    def run(self) -> float | None:
        """Do it once. Returns the seconds until it is due again; None: it is not, until it is added once more."""
        ...


class DueTasks:
    """Runs tasks on daemon threads. Thread-safe."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._numbers = itertools.count(1)
        self._begin()

    def _begin(self) -> None:
        """Have no task and no thread."""
        self._lock = threading.Lock()  # guards all below
        self._changed = threading.Condition(self._lock)  # notified when a task may be due earlier
        self._settled = threading.Condition(self._lock)  # notified when a task has run
        self._due: dict[DueTask, float] = {}  # monotonic time
        self._running: dict[DueTask, tuple[int, float]] = {}  # on which thread, since when
        self._cancelled: set[DueTask] = set()  # of those that run
        self._idle = 0  # threads
        self._has_first = False  # one of them waits until the next task is due; the others stand by

    def add(self, task: DueTask, seconds: float) -> None:
        """Run a task in so many seconds, or earlier when it is due before. Raises: OSError when there is no thread."""
        with self._lock:
            if not self._idle:
                try:
                    self._start()
                except OSError:
                    if not self._running:
                        raise
            self._cancelled.discard(task)
            self._set_due(task, seconds)
            self._changed.notify_all()

    def cancel(self, task: DueTask, seconds: float) -> bool:
        """Run a task no more. True: nor does it run now; False: it still does, after waiting for so long.

        A task that cancels itself is not waited for.
        """
        with self._lock:
            self._due.pop(task, None)
            if task in self._running:
                self._cancelled.add(task)
            self._changed.notify_all()
            me = threading.get_ident()
            return self._settled.wait_for(lambda: self._running.get(task, (me,))[0] == me, timeout=seconds)

    def leave_to_parent(self) -> None:
        """In the child of a fork: begin anew. A thread that is not here may have held the lock."""
        self._begin()

    def make_due(self, task: DueTask) -> None:
        """Run a task now, if it is to be run at all."""
        with self._lock:
            if task in self._due:
                self._due[task] = 0.0
                self._changed.notify_all()

    def _set_due(self, task: DueTask, seconds: float) -> None:
        due = time.monotonic() + seconds
        if seconds > 2 * _TOGETHER_SECONDS:
            due = math.ceil(due / _TOGETHER_SECONDS) * _TOGETHER_SECONDS
        self._due[task] = min(due, self._due.get(task, due))

    def _start(self) -> None:
        """Start a thread. With the lock, which it takes when it has begun. Counted as idle from now on."""
        name = f"{self._name} {next(self._numbers)}"
        start_thread(threading.Thread(target=self._work, name=name, daemon=True))
        self._idle += 1

    def _work(self) -> None:
        with self._lock:
            while (task := self._wait()) is not None:
                self._idle -= 1
                self._running[task] = threading.get_ident(), time.monotonic()
                if not self._idle and self._due:
                    with suppress(OSError):  # no thread is left: what this one runs holds up the others
                        self._start()
                self._lock.release()
                try:
                    seconds = self._run(task)
                finally:
                    self._lock.acquire()
                    del self._running[task]
                    self._idle += 1
                    self._settled.notify_all()
                if seconds is not None and task not in self._cancelled:
                    self._set_due(task, seconds)
                self._cancelled.discard(task)
                del task
            self._idle -= 1

    def _run(self, task: DueTask) -> float | None:
        try:
            return task.run()
        except Exception:
            logger.exception("A task of %s failed, and is not run again", self._name)
            return None

    def _wait(self) -> DueTask | None:
        """The next task, once it is due and taken out. None: this thread is not needed. With the lock."""
        since = time.monotonic()
        is_first = False
        try:
            while True:
                now = time.monotonic()
                if not is_first and not self._has_first and self._all_take_long(now):
                    is_first = self._has_first = True
                due, task = self._next()
                if is_first and task is not None and now >= due:
                    del self._due[task]
                    return task
                is_over = not (self._due or self._running) and now >= since + _LINGER_SECONDS
                is_too_many = not is_first and self._idle > _KEPT_IDLE and now >= since + _IDLE_SECONDS
                if is_over or is_too_many:
                    return None
                left = _LONG_SECONDS if not is_first else _LINGER_SECONDS if task is None else due - now
                self._changed.wait(min(left, _LINGER_SECONDS))
        finally:
            if is_first:
                self._has_first = False

    def _all_take_long(self, now: float) -> bool:
        """Whether no thread is soon back from the task that it runs. With the lock."""
        return all(now >= began + _LONG_SECONDS for _, began in self._running.values())

    def _next(self) -> tuple[float, DueTask | None]:
        """The task that is due first, of those that do not run now, and when. With the lock."""
        waiting = [(due, task) for task, due in self._due.items() if task not in self._running]
        return min(waiting, key=lambda found: found[0], default=(0.0, None))
