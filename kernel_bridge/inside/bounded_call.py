"""A time limit for one call of code that may swallow the exception which ends it."""

from __future__ import annotations

import signal
import threading
import time
import types
from collections.abc import Callable
from typing import TypeVar

__all__ = ["LEAST_SECONDS", "OutOfTime", "Seconds", "call_within"]

LEAST_SECONDS = 0.05  # that one of many calls gets, however much time others have used up
_AGAIN_SECONDS = 0.2  # code that swallows the exception gets it again, so often
_Result = TypeVar("_Result")


class OutOfTime(BaseException):
    """Time is over. Not an Exception, so that `except Exception` lets it through."""


def call_within(seconds: float, action: Callable[[], _Result]) -> _Result:
    """Call the action and return its result. Other threads, and platforms without timers, have no limit.

    The agent's own timer goes on afterwards.

    Raises:
        OutOfTime: it took longer.
        BaseException: whatever the action raises.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        return action()

    def stop(signum: int, frame: types.FrameType | None) -> None:
        if _is_acting(frame):
            raise OutOfTime(f"it took longer than {seconds:g} s")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN_SECONDS)
    try:
        return _act(action)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), every)


class Seconds:
    """Time that is used up piece by piece."""

    def __init__(self, left: float) -> None:
        self._left = left

    def run(self, action: Callable[[], _Result], share: float = 1.0) -> _Result:
        """Run this, within so large a share of what is left."""
        started = time.monotonic()
        try:
            return call_within(max(LEAST_SECONDS, self._left * share), action)
        finally:
            self._left -= time.monotonic() - started


def _act(action: Callable[[], _Result]) -> _Result:
    # Time may end only while this frame is on the stack, so that what puts the timer back is never broken off.
    return action()


def _is_acting(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code is _act.__code__:
            return True
        frame = frame.f_back
    return False
