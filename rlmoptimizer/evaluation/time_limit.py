"""How long one example may take: a limit, and the threads that are left behind where it was not kept."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.evaluation.fan_out import Halt

__all__ = ["TimeLimit"]

logger = logging.getLogger(__name__)

_MOST_LEFT: Final = 100  # threads that were left behind and have not ended
_LOOK_SECONDS: Final = 0.5  # how often a wait for one of them looks for a halt

_T = TypeVar("_T")


class TimeLimit:
    """Calls functions, each of which may take `seconds`; None: as long as it takes. Thread-safe.

    Python cannot stop a thread. So with a limit each call is made on a thread of its own; when its time is up it is
    given up: what it still waits for on `loop` is cancelled, the thread is left behind, and its answer is dropped. It
    is a daemon, so it never keeps the process alive. At most `most_left` are left behind at once: beyond that, callers
    wait until one of them ends, and a warning says so.
    """

    def __init__(self, seconds: float | None, loop: LoopThread, *, most_left: int = _MOST_LEFT) -> None:
        self.seconds = seconds
        self.loop = loop
        self._most = most_left
        self._changed = threading.Condition()  # of the next two
        self._left = 0
        self._warned = False

    @property
    def left(self) -> int:
        """The threads that were left behind and have not ended."""
        with self._changed:
            return self._left

    def call(self, function: Callable[[], _T], give_up: Callable[[], _T], halt: Halt) -> _T:
        """What `function` returns or raises; when its time is up, what `give_up` returns.

        Once `halt` is set, nobody waits any more for threads that were left behind.
        """
        if self.seconds is None:
            return function()
        outcome: Future[_T] = Future()

        def work() -> None:
            try:
                outcome.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised by `result` on the calling thread, or dropped
                outcome.set_exception(error)

        thread = threading.Thread(target=work, name="rlmoptimizer-example", daemon=True)
        thread.start()
        wait([outcome], min(self.seconds, threading.TIMEOUT_MAX))
        if outcome.done():
            return outcome.result()
        answer = give_up()
        self.loop.cancel(thread)
        self._leave(outcome, halt)
        return answer

    def _leave(self, outcome: Future[_T], halt: Halt) -> None:
        with self._changed:
            while self._left >= self._most and not outcome.done() and not halt.is_set():
                self._warn_once()
                self._changed.wait(_LOOK_SECONDS)
            self._left += 1
        outcome.add_done_callback(lambda _: self._came_back())  # at once, if it has ended

    def _came_back(self) -> None:
        with self._changed:
            self._left -= 1
            self._changed.notify_all()

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "%d examples did not keep example_timeout and still hang in threads that cannot be stopped. Further "
                "ones keep their place until one of these ends. Give the LMs a timeout of their own, such as "
                "dspy.LM(..., timeout=60)",
                self._left,
            )
