"""A limit on the time of a block, for code of the agent's that may swallow it. Knows nothing of what the block does."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import types
from collections.abc import Generator

from kernel_bridge.inside.tracebacks import CELL_PREFIX

__all__ = ["OutOfTime", "time_limit"]

_AGAIN_SECONDS = 0.2  # an object that swallows the end of its time is told again, so often


class OutOfTime(BaseException):
    """Time is over. Not an Exception, so that `except Exception` lets it through."""


@contextlib.contextmanager
def time_limit(seconds: float, *, only_in_cells: bool = False) -> Generator[None]:
    """Raise OutOfTime in the block after some seconds, where the platform has timers and this is the main thread.

    Code that swallows it is told again. The agent's own timer goes on afterwards.

    Args:
        only_in_cells: raise it only where code of the agent's cells runs, each time that so many seconds have passed.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def stop(signum: int, frame: types.FrameType | None) -> None:
        if armed and (not only_in_cells or _in_a_cell(frame)):
            raise OutOfTime(f"it took longer than {seconds:g} s")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, seconds if only_in_cells else _AGAIN_SECONDS)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), every)


def _in_a_cell(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(CELL_PREFIX):
            return True
        frame = frame.f_back
    return False
