"""Delivery of events to functions of the user: each gets them in order, on a thread of its own.

The work that emits never waits for them. Imports no DSPy.
"""

from __future__ import annotations

import contextvars
import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from kernel_bridge.text import printable_line, traceback_shown
from rlmoptimizer.events import Event, ExamplesScored

__all__ = ["EventCallback", "EventDelivery"]

logger = logging.getLogger(__name__)

EventCallback: TypeAlias = Callable[[Event], Any]

_MOST_WAITING: Final = 1000  # events that one callback has not taken yet
_NAME_CHARS: Final = 200


class EventDelivery:
    """An observer that hands each event on to every callback. Thread-safe; it never waits and never raises.

    A callback runs in a copy of the context of whoever makes this, and gets copies of the events. One that raises,
    whatever it is, is logged once with its traceback and gets nothing more. `most_waiting` events wait for a callback
    that is slow; when there are more, of the `ExamplesScored` of one run only the newest is kept, since it has the
    totals of the earlier ones. If that does not help, further events are not delivered to it, and `close` says how
    many.
    """

    def __init__(self, callbacks: Sequence[EventCallback], *, most_waiting: int = _MOST_WAITING) -> None:
        self._recipients = [_Recipient(callback, most_waiting) for callback in callbacks]

    def __call__(self, event: Event) -> None:
        for recipient in self._recipients:
            recipient.put(event)

    def close(self, seconds: float) -> None:
        """Wait until all is delivered, at most so long; what is not by then never will be. Idempotent."""
        deadline = time.monotonic() + seconds
        for recipient in self._recipients:
            recipient.finish()
        for recipient in self._recipients:
            recipient.join(max(0.0, deadline - time.monotonic()))


class _Recipient:
    """One callback, its queue and its thread."""

    def __init__(self, callback: EventCallback, most_waiting: int) -> None:
        self._callback = callback
        self._most = most_waiting
        self._context = contextvars.copy_context()
        self._changed = threading.Condition()  # of the next five
        self._waiting: deque[Event] = deque()
        self._lost = 0  # events that found no place
        self._busy = False  # in the callback
        self._finishing = False  # nothing more comes
        self._detached = False  # nothing more is delivered
        # A daemon: a callback that hangs must not keep the process alive.
        self._thread: threading.Thread | None = threading.Thread(
            target=self._serve, name="rlmoptimizer-callback", daemon=True
        )
        self._thread.start()

    def put(self, event: Event) -> None:
        with self._changed:
            if self._detached or self._finishing:
                return
            if len(self._waiting) >= self._most:
                self._thin_out()
            if len(self._waiting) >= self._most:
                self._lost += 1
                return
            self._waiting.append(event)
            self._changed.notify_all()

    def finish(self) -> None:
        with self._changed:
            self._finishing = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            thread.join(seconds)
        finally:
            with self._changed:
                missed = self._lost + (0 if self._detached else len(self._waiting))
                hangs, self._detached = self._busy, True
                self._waiting.clear()
        if missed or hangs:
            logger.warning(
                "The callback %s did not keep up: %d events were not delivered to it%s",
                self._name,
                missed,
                ", and it has not returned from the last one that was" if hangs else "",
            )

    def _thin_out(self) -> None:
        """Of the progress of a run keep only the newest."""
        newest = {event.run_id: event for event in self._waiting if isinstance(event, ExamplesScored)}
        kept = [e for e in self._waiting if not isinstance(e, ExamplesScored) or newest[e.run_id] is e]
        self._waiting = deque(kept)

    def _serve(self) -> None:
        while (event := self._next()) is not None:
            try:
                # A copy: some events hold dicts, which the callback may change.
                self._context.run(self._callback, copy.deepcopy(event))
            except BaseException as error:  # noqa: BLE001 - foreign code; not even an exit of its thread ends a compile
                self._detach(event, error)
                return

    def _next(self) -> Event | None:
        with self._changed:
            self._busy = False
            self._changed.wait_for(lambda: self._waiting or self._finishing)
            if self._detached or not self._waiting:
                return None
            self._busy = True
            return self._waiting.popleft()

    def _detach(self, event: Event, error: BaseException) -> None:
        with self._changed:
            self._busy = False
            self._detached = True
            self._waiting.clear()
            self._lost = 0  # it is said that it gets nothing more
        logger.warning(
            "The callback %s failed on %s and gets no further event:\n%s",
            self._name,
            type(event).__name__,
            traceback_shown(error),
        )

    @property
    def _name(self) -> str:
        name: object = None
        with suppress(Exception):  # its class may define attributes as it likes
            name = getattr(self._callback, "__qualname__", None)
        return printable_line(name if isinstance(name, str) else type(self._callback).__qualname__, _NAME_CHARS)
