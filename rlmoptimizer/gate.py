"""The gate that every call of the agent passes: it can be closed, waited at, and keeps failures of the host from the
agent. Knows nothing of what the calls do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from .errors import AgentError

__all__ = ["Gate", "OptimizationStopped"]

logger = logging.getLogger(__name__)


class OptimizationStopped(AgentError):
    """The compile is being stopped from outside. What the agent sees instead of the reason."""

    def __init__(self) -> None:
        super().__init__("the optimization was stopped from outside; nothing more can be done here")


class Gate:
    """Open until `close`. Thread-safe.

    Args:
        on_failure: called once, from the thread that failed, after the gate was closed; stops the agent's cell.
    """

    def __init__(self, on_failure: Callable[[], None] = lambda: None) -> None:
        self.closed = threading.Event()
        self._on_failure = on_failure
        self._changed = threading.Condition()
        self._inside = 0
        self._failure: BaseException | None = None

    @property
    def failure(self) -> BaseException | None:
        """The first thing that went wrong and was not the agent's to mend."""
        return self._failure

    @contextmanager
    def passing(self) -> Generator[None]:
        """One call of the agent.

        Raises `OptimizationStopped` when the gate is closed, and in the place of every error but an `AgentError`: the
        metric's, the disk's or our own are for the caller, not for the agent, and close the gate.
        """
        with self._changed:
            self._inside += 1
        try:
            self.check()
            yield
        except AgentError:
            raise
        except Exception as error:  # noqa: BLE001 - kept in `failure`, which `compile()` raises
            self.fail(error)
            raise OptimizationStopped from None
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def check(self) -> None:
        """Raise `OptimizationStopped` if the gate is closed."""
        if self.closed.is_set():
            raise OptimizationStopped

    def close(self) -> None:
        """Let no call in any more. Idempotent."""
        self.closed.set()

    def wait_empty(self, seconds: float) -> bool:
        """Wait until no call is inside; close the gate first. False: it gave up, with a warning."""
        with self._changed:
            empty = self._changed.wait_for(lambda: self._inside == 0, seconds)
        if not empty:
            logger.warning("An evaluation is still running after %.0f s; it is abandoned", seconds)
        return empty

    def fail(self, error: BaseException) -> None:
        """Close the gate because of something that is not the agent's to mend. The first such error is kept."""
        with self._changed:
            first, self._failure = self._failure is None, self._failure or error
        self.close()
        if first:
            self._on_failure()
