"""Warm kernels: started before anybody wants one, so that whoever does need not wait.

Nothing of any session has been put into one: no tool, variable or checkpoint. It is taken once, by one session.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator
from dataclasses import dataclass

from kernel_bridge.errors import BridgeError
from kernel_bridge.live.kernel import LiveKernel
from kernel_bridge.live.kernel_home import KernelHome
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.options import SessionOptions
from kernel_bridge.text import printable_line
from kernel_bridge.threads.starting import start_thread

__all__ = ["WarmKernel", "WarmKernels"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 1.0  # between two looks whether one has died; every taker looks, too
_WAIT_SECONDS = 0.05  # between two looks whether a session that waits for one was given up
_HEAD_START_SECONDS = 0.3  # see `WarmKernels`
_FIRST_RETRY_SECONDS, _LAST_RETRY_SECONDS = 1.0, 300.0  # after a failure, and after many in a row
_CLOSE_SECONDS = 20.0  # for all of them to end


@dataclass(frozen=True, slots=True)
class WarmKernel:
    """A kernel that is ready, and its home. Whoever has it ends it."""

    home: KernelHome
    kernel: LiveKernel

    @classmethod
    def start(cls, options: SessionOptions, given_up: Callable[[], str | None]) -> WarmKernel:
        """Start one. Raises: StartupFailed, ProtocolViolation, ConfinementUnavailable."""
        home = KernelHome(options)
        try:
            return cls(home, home.launch(ToolDispatcher(), given_up))  # nobody's tools are there to be called
        except BaseException:
            home.remove()
            raise

    def end(self) -> None:
        """Kill it and remove its directory. Idempotent."""
        try:
            self.kernel.close()
        finally:
            self.home.remove()


class WarmKernels:
    """Keeps some kernels warm that are all started with the same options. Thread-safe.

    They end with `close`, when this object is forgotten, and with the process. The child of a fork has none, until it
    asks for one.

    Args:
        most: how many are kept.
    """

    def __init__(self, options: SessionOptions, most: int) -> None:
        self._stock = _Stock(options.of_kernel(), most)  # held by its thread, which must not keep this object alive
        self._finalizer = weakref.finalize(self, self._stock.close)

    def rest(self) -> None:
        """From now on begin none but in blocks of `at_leisure`."""
        self._stock.rest(math.inf)

    @contextlib.contextmanager
    def at_leisure(self, seconds: float) -> Generator[None]:
        """A block in which the processors have nothing else to do: from so many seconds on, one may begin to start."""
        self._stock.rest(seconds)
        try:
            yield
        finally:
            self._stock.rest(math.inf)

    def fill(self) -> None:
        """Begin to start them, in the background."""
        self._stock.fill()

    def take(self, options: SessionOptions, given_up: Callable[[], str | None]) -> WarmKernel | None:
        """One for a session with these options; from now on it is the session's. None: start your own.

        Waits for one that is being started, if nobody else does.

        Args:
            given_up: why nobody wants it any more, asked while it waits; None: it is still wanted.
        """
        return self._stock.take(given_up) if options.of_kernel() == self._stock.options else None

    def wait_full(self, seconds: float) -> bool:
        """Wait until all of them are ready, but not longer than this. Whether they are."""
        return self._stock.wait_full(seconds)

    def close(self) -> None:
        """End all that nobody has taken; there will be no more. Idempotent."""
        self._finalizer()


class _Stock:
    """The kernels, and the thread that starts them one after the other and looks after them."""

    def __init__(self, options: SessionOptions, most: int) -> None:
        self.options = options
        self._most = most
        self._changed = threading.Condition()  # guards all below
        self._ready: list[WarmKernel] = []
        self._starting = False
        self._waiting = 0  # sessions, for the one that is being started
        self._not_before = 0.0  # the next start
        self._rests_until = 0.0  # as asked for by who keeps them; inf: until further notice
        self._failures = 0  # in a row, with none taken between
        self._closed = False
        self._thread: threading.Thread | None = None
        _stocks.add(self)

    def rest(self, seconds: float) -> None:
        with self._changed:
            self._rests_until = time.monotonic() + seconds
            self._changed.notify_all()

    def fill(self) -> None:
        with self._changed:
            if self._closed or self._thread is not None:
                return
            thread = threading.Thread(target=self._work, name="warm kernels", daemon=True)
            try:
                start_thread(thread)
            except OSError as error:
                self._note_failure(str(error))
                return
            self._thread = thread

    def take(self, given_up: Callable[[], str | None]) -> WarmKernel | None:
        self.fill()  # a fork has no thread yet
        with self._changed:
            if len(self._ready) <= self._waiting and (self._waiting or not self._is_one_coming()):
                return None
            self._waiting += 1
            try:
                while not self._ready and self._is_one_coming() and given_up() is None:
                    self._changed.wait(_WAIT_SECONDS)
            finally:
                self._waiting -= 1
            living = [warm for warm in self._ready if warm.kernel.is_alive()]
            if self._closed or not living or given_up() is not None:
                return None
            self._ready.remove(living[0])
            self._failures = 0
            self._not_before = time.monotonic() + _HEAD_START_SECONDS
            self._changed.notify_all()
            return living[0]

    def _is_one_coming(self) -> bool:
        return not self._closed and self._thread is not None and (self._starting or self._is_one_due())

    def _is_one_due(self) -> bool:
        return len(self._ready) < self._most and time.monotonic() >= max(self._not_before, self._rests_until)

    def wait_full(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closed or len(self._ready) >= self._most, seconds) and (
                not self._closed
            )

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_CLOSE_SECONDS)

    def leave_to_parent(self) -> None:
        """In the child of a fork: have none, and know nothing of the parent's."""
        self._changed = threading.Condition()
        for warm in self._ready:
            warm.kernel.leave_to_parent()
        self._ready = []
        self._starting, self._waiting, self._thread = False, 0, None

    # -- the thread --------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._closed:
                for dead in self._dead():
                    dead.end()
                if self._is_one_wanted():
                    self._start_one()
        finally:
            with self._changed:
                self._closed = True
                ending, self._ready = self._ready, []
            for warm in ending:
                warm.kernel.process.kill()  # does not wait
            with contextlib.ExitStack() as stack:
                for warm in ending:
                    stack.callback(warm.end)

    def _dead(self) -> list[WarmKernel]:
        """Those that have died since the last look, and are kept no longer."""
        with self._changed:
            dead = [warm for warm in self._ready if not warm.kernel.is_alive()]
            if dead:
                self._ready = [warm for warm in self._ready if warm not in dead]
                self._note_failure("one has died")
            return dead

    def _is_one_wanted(self) -> bool:
        """Whether to start one now; waits for a moment if not."""
        with self._changed:
            if self._closed:
                return False
            wait = max(self._not_before, self._rests_until) - time.monotonic()
            if self._is_one_due():
                self._starting = True
                return True
            self._changed.wait(min(wait, _LOOK_SECONDS) if wait > 0 else _LOOK_SECONDS)
            return False

    def _start_one(self) -> None:
        made, failure = None, None
        try:
            made = WarmKernel.start(self.options, lambda: "kernels are kept warm no longer" if self._closed else None)
        except BridgeError as error:
            failure = str(error)
        except Exception as error:
            logger.exception("The start of a kernel that was to be kept warm failed")
            failure = f"{type(error).__name__}: {error}"
        with self._changed:
            self._starting = False
            if made is not None:
                self._ready.append(made)
            elif failure is not None and not self._closed:
                self._note_failure(failure)
            self._changed.notify_all()

    def _note_failure(self, reason: str) -> None:
        if not self._failures:  # of many in a row, the first one is told
            logger.warning(
                "No kernel can be kept warm just now, so interpreters start their own: %s", printable_line(reason)
            )
        self._failures += 1
        wait = min(_FIRST_RETRY_SECONDS * 2 ** min(self._failures - 1, 16), _LAST_RETRY_SECONDS)
        self._not_before = time.monotonic() + wait


_stocks: weakref.WeakSet[_Stock] = weakref.WeakSet()  # of this process, for its forks


def _leave_to_parent() -> None:
    for stock in tuple(_stocks):
        stock.leave_to_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
