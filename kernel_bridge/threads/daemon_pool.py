"""A pool of threads that nobody has to wait for at the end of the process.

`concurrent.futures.ThreadPoolExecutor` keeps a process from ending until every thread is done, so one Ctrl-C would not
end a script whose LM has not answered yet.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable

from kernel_bridge.text import traceback_shown

__all__ = ["DaemonPool"]

logger = logging.getLogger(__name__)


class DaemonPool:
    """At most `threads` daemon threads, each started when there is work for it."""

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._name = name
        self._lock = threading.Lock()  # of the next two, and of the order of the last task and the end
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._tasks: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()

    def submit(self, task: Callable[[], object]) -> None:
        """Run `task` on one of the threads; what it raises is logged. Raises RuntimeError after `close`."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            self._tasks.put(task)
            if len(self._threads) < self._most:
                name = f"{self._name}-{len(self._threads) + 1}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()

    def close(self) -> None:
        """Take no more tasks; those that were submitted are still done. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                for _ in self._threads:
                    self._tasks.put(None)

    def join(self, seconds: float | None = None) -> int:
        """Wait for the threads after `close`, for at most so many seconds; None: as long as it takes.

        Gives the number of threads that are still at work.
        """
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
        return sum(thread.is_alive() for thread in self._threads)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            try:
                task()
            except Exception as error:  # noqa: BLE001 - a task answers for itself; the thread has others to do
                logger.error("A task of the pool %s failed:\n%s", self._name, traceback_shown(error))
            del task  # and with it what it holds, while this thread waits
