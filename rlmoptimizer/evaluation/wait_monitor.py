"""Watches what is waited for, and reports when nothing comes for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Pending", "WaitMonitor", "Waited"]


Waited: TypeAlias = "tuple[str, str]"  # what is waited for: its kind and its name
Pending: TypeAlias = "tuple[int, Sequence[str]]"  # how many are waited for, and which, as far as they may be named


@dataclass(slots=True)
class _Wait:
    since: float  # of the clock: its beginning, or its last step
    due: float  # seconds after `since` until the next report
    count: int = 0
    pending: Callable[[], Pending] | None = None  # None: `count`, without names


class WaitMonitor:
    """Calls `report(waited, pending, seconds)` when something has made no step for `after` seconds.

    And again after twice that time, and so on; a step, such as one more evaluated example, starts the time anew. When
    several waits have one name, the end of each is a step. Thread-safe. `report` is called on a thread of its own,
    which runs from the first wait until `close`.
    """

    def __init__(
        self,
        report: Callable[[Waited, Pending, float], None],
        after: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._report = report
        self._after = after
        self._clock = clock
        self._changed = threading.Condition()
        self._waits: dict[Waited, _Wait] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def watch(
        self, waited: Waited, count: int = 1, pending: Callable[[], Pending] | None = None
    ) -> Generator[Callable[[], None]]:
        """`waited` is waited for in this block, `count` times; yields what is to be called at each step.

        `pending` is called on the reporting thread.
        """
        with self._changed:
            wait = self._waits.get(waited)
            if wait is None:
                wait = self._waits[waited] = _Wait(self._clock(), self._after, pending=pending)
            wait.count += count
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._serve, name="rlmoptimizer-waits", daemon=True)
                with suppress(RuntimeError):  # no thread can be started: the work goes on without reports
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()
        try:
            yield lambda: self._step(wait)
        finally:
            with self._changed:
                wait.count -= count
                if wait.count <= 0:
                    self._waits.pop(waited, None)
            self._step(wait)

    def close(self) -> None:
        """Report nothing more. Idempotent."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(1.0)  # a daemon; it may be blocked on a terminal that takes nothing

    def look(self) -> None:
        """Report what is due."""
        with self._changed:
            now = self._clock()
            late = [(waited, wait) for waited, wait in self._waits.items() if now - wait.since >= wait.due]
            reports = [(waited, wait.pending, wait.count, now - wait.since) for waited, wait in late]
            for _, wait in late:
                while now - wait.since >= wait.due:
                    wait.due *= 2
        for waited, pending, count, seconds in reports:
            self._report(waited, (count, ()) if pending is None else pending(), seconds)

    def _step(self, wait: _Wait) -> None:
        with self._changed:
            wait.since, wait.due = self._clock(), self._after

    def _serve(self) -> None:
        while True:
            self.look()
            with self._changed:
                if self._closed:
                    return
                now = self._clock()
                # Until the first is due. A new wait ends this earlier; a step only postpones a report.
                left = min((wait.since + wait.due - now for wait in self._waits.values()), default=None)
                self._changed.wait(None if left is None else max(0.0, left))
