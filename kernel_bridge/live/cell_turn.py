"""The turn to run a cell in a session: one thread has it at a time."""

from __future__ import annotations

import threading

__all__ = ["CellTurn"]


class CellTurn:
    """Held by a thread while it runs a cell and deals with its end. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None  # the thread that has it
        self.interrupted = False  # an interrupt came since it was taken

    @property
    def is_taken(self) -> bool:
        """Whether any thread has it."""
        return self._lock.locked()

    @property
    def is_mine(self) -> bool:
        """Whether this thread has it."""
        return self._owner == threading.get_ident()

    def take(self, seconds: float = 0.0) -> bool:
        """Take it, after waiting for at most so long. False: another thread has it."""
        if not self._lock.acquire(timeout=seconds):
            return False
        self._owner = threading.get_ident()
        self.interrupted = False
        return True

    def give_back(self) -> None:
        """Let another thread take it."""
        self._owner = None
        self._lock.release()

    def leave_to_parent(self) -> None:
        """In the child of a fork: free, unless the thread that forked has it."""
        if not self.is_mine:
            self._owner, self._lock = None, threading.Lock()
