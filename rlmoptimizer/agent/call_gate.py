"""The gate that every call of the agent passes: it lets calls in, in order, and keeps host failures from the agent.

A run on the validation set is alone inside: it waits until the calls before it have ended, and the calls after it wait
for its end. So neither a figure nor a delay tells the agent anything of single examples. Calls are let in in the order
in which they came, so neither kind starves the other.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar

from rlmoptimizer.errors import AgentError

__all__ = ["CallGate", "OptimizationStopped"]

logger = logging.getLogger(__name__)


class OptimizationStopped(AgentError):
    """The compile is being stopped from outside. What the agent sees instead of the reason."""

    def __init__(self) -> None:
        super().__init__("the optimization was stopped from outside; nothing more can be done here")


class _Call:
    __slots__ = ("alone", "inside", "sent_away")

    def __init__(self, alone: bool) -> None:
        self.alone = alone
        self.inside = False
        self.sent_away = False


# The gate that the running call is inside of. A call within a call passes at once: waiting for its turn behind a call
# that waits for the outer one would be a deadlock.
_within: ContextVar[CallGate | None] = ContextVar("rlmoptimizer_gate", default=None)


class CallGate:
    """Open until `close`. Thread-safe.

    `closed`: no call is let in any more, and runs on train begin no further example. `stopped`: nothing at all goes on,
    not even a run on val that has begun.

    Args:
        on_failure: called once, from the thread that failed, after the gate was closed; stops the agent's cell.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self.closed = threading.Event()
        self.stopped = threading.Event()
        self._on_failure = on_failure
        self._changed = threading.Condition()  # of the next five
        self._waiting: deque[_Call] = deque()
        self._inside = 0
        self._alone = False  # the one inside is a call that must be alone
        self._refusal: Callable[[], AgentError] = OptimizationStopped
        self.failure: BaseException | None = None  # the first one that the agent cannot repair; `compile()` raises it

    @contextmanager
    def passing(self, *, alone: bool = False) -> Generator[None]:
        """One call of the agent, as `turn`.

        Raises `OptimizationStopped` also in the place of every error but an `AgentError`: the metric's, the disk's or
        our own are for the caller, not for the agent, and close the gate. So does a KeyboardInterrupt, which goes on.
        """
        try:
            with self.turn(alone=alone):
                yield
        except AgentError:
            raise
        except Exception as error:  # noqa: BLE001 - kept in `failure`, which `compile()` raises
            self.fail(error)
            raise OptimizationStopped from None
        except BaseException as error:
            self.fail(error)  # whoever made the call may be gone, such as a kernel that died
            raise

    @contextmanager
    def turn(self, *, alone: bool = False) -> Generator[None]:
        """Wait for one's turn and be inside for the block. `alone`: with no other call; not within another turn.

        Raises when the gate is closed or is closed meanwhile, as `check` does.
        """
        if _within.get() is self:
            self.check()
            yield
            return
        call = _Call(alone)
        try:
            with self._changed:
                self._waiting.append(call)
                self._let_in()
                self._changed.wait_for(lambda: call.inside or call.sent_away or self.closed.is_set())
            if not call.inside or self.closed.is_set():
                raise self._refusal()
            token = _within.set(self)
            try:
                yield
            finally:
                _within.reset(token)
        finally:
            with self._changed:
                if call.inside:
                    self._inside -= 1
                    self._alone = self._alone and not call.alone
                elif call in self._waiting:
                    self._waiting.remove(call)
                self._let_in()

    def _let_in(self) -> None:
        while self._waiting and not self._alone and not (self._waiting[0].alone and self._inside):
            call = self._waiting.popleft()
            call.inside = True
            self._inside += 1
            self._alone = call.alone
        self._changed.notify_all()

    def check(self) -> None:
        """If the gate is closed, raise what `close` was given, or `OptimizationStopped`."""
        if self.closed.is_set():
            raise self._refusal()

    def send_away(self) -> None:
        """Refuse all calls that wait now: their callers are gone."""
        with self._changed:
            for call in self._waiting:
                call.sent_away = True
            self._waiting.clear()
            self._let_in()

    def close(self, refusal: Callable[[], AgentError] | None = None) -> None:
        """Let no call in any more. Idempotent.

        `refusal` makes what calls raise from now on, those that wait included, unless the gate was closed before.
        """
        with self._changed:
            if refusal is not None and not self.closed.is_set():
                self._refusal = refusal
            self.closed.set()
            self._changed.notify_all()

    def stop(self) -> None:
        """Close, and end what is inside as soon as possible. Idempotent."""
        self.stopped.set()
        self.close()

    def wait_quiet(self) -> None:
        """Wait until no call is inside that must be alone, or everything is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone or self.stopped.is_set())

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no call is inside; close the gate first. False: it gave up, with a warning, after so many seconds.

        One that must be alone is waited for as long as it takes, unless everything is stopped.
        """
        self.wait_quiet()
        with self._changed:
            empty = self._changed.wait_for(lambda: self._inside == 0, seconds)
        if not empty:
            logger.warning("An evaluation is still running after %.0f s; it is abandoned", seconds)
        return empty

    def fail(self, error: BaseException) -> None:
        """Stop because of an error that the agent cannot repair. The first one is kept."""
        with self._changed:
            first, self.failure = self.failure is None, self.failure or error
        self.stop()
        if first:
            self._on_failure()
