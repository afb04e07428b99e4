"""Waits: who is waited for, and one word about it when nothing comes for long. Knows no LMs, runs or kernels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["Pending", "Waits", "What"]


What: TypeAlias = "tuple[str, str]"  # of which kind, and its name
Pending: TypeAlias = "tuple[int, Sequence[str]]"  # how many are waited for, and which, as far as they may be named


@dataclass(slots=True)
class _Wait:
    """Something under way that should come to an end, or go on from step to step."""

    since: float  # of the clock: its begin, or its last step
    due: float  # seconds after `since`, when something is said next
    count: int = 0
    pending: Callable[[], Pending] | None = None  # None: `count`, without names


class Waits:
    """Calls `tell(what, pending, seconds)` when something has made no step for `after` seconds.

    And again after twice that time, and so on; a step, such as one more example that was evaluated, begins it anew. Of
    several waits of one name each end is a step. Thread-safe. `tell` is called on a thread of its own, which runs from
    the first wait until `close`.
    """

    def __init__(
        self,
        tell: Callable[[What, Pending, float], None],
        after: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tell = tell
        self._after = after
        self._clock = clock
        self._changed = threading.Condition()
        self._waits: dict[What, _Wait] = {}
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def on(
        self, what: What, count: int = 1, pending: Callable[[], Pending] | None = None
    ) -> Generator[Callable[[], None]]:
        """`what` is waited for in this block, `count` times; gives what is to be called at each step.

        `pending` is asked on the telling thread.
        """
        with self._changed:
            wait = self._waits.get(what)
            if wait is None:
                wait = self._waits[what] = _Wait(self._clock(), self._after, pending=pending)
            wait.count += count
            if self._thread is None and not self._closed:
                thread = threading.Thread(target=self._serve, name="rlmoptimizer-waits", daemon=True)
                with suppress(RuntimeError):  # no thread is to be had: the work goes on without a word about it
                    thread.start()
                    self._thread = thread
            self._changed.notify_all()
        try:
            yield lambda: self._step(wait)
        finally:
            with self._changed:
                wait.count -= count
                if wait.count <= 0:
                    self._waits.pop(what, None)
            self._step(wait)

    def close(self) -> None:
        """Tell nothing more. Idempotent."""
        with self._changed:
            self._closed = True
            thread, self._thread = self._thread, None
            self._changed.notify_all()
        if thread is not None:
            thread.join(1.0)  # a daemon; it may just be telling something to a terminal that takes nothing

    def look(self) -> None:
        """Tell what is due."""
        with self._changed:
            now = self._clock()
            late = [(what, wait) for what, wait in self._waits.items() if now - wait.since >= wait.due]
            told = [(what, wait.pending, wait.count, now - wait.since) for what, wait in late]
            for _, wait in late:
                while now - wait.since >= wait.due:
                    wait.due *= 2
        for what, pending, count, seconds in told:
            self._tell(what, (count, ()) if pending is None else pending(), seconds)

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
                # Until the first is due. A new wait ends this earlier; a step only moves what is due further away.
                left = min((wait.since + wait.due - now for wait in self._waits.values()), default=None)
                self._changed.wait(None if left is None else max(0.0, left))
