"""Room in memory for the kernel's own code, so that a cell that used up all its memory can still be answered."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator

_MOST_ROOM_BYTES = 64 * 2**20
_PART = 8  # of a small limit, one part in so many


class MemoryReserve:
    """Lowers this process's soft limit of private memory while the agent's code runs.

    The hard limit is the host's and stays. Code that raises the soft limit itself gains no more than the room.
    """

    def __init__(self) -> None:
        self.was_used_up = False  # by the cell before: the next one needs a little to let go of something
        self._limit: int | None = None
        if os.name != "posix":
            return
        import resource

        self._get_limits, self._set_limits = resource.getrlimit, resource.setrlimit
        self._which = resource.RLIMIT_DATA
        hard = resource.getrlimit(self._which)[1]
        self._all = hard, hard
        if hard != resource.RLIM_INFINITY:
            self._limit = hard
            self._room = min(_MOST_ROOM_BYTES, hard // _PART)

    def keep(self) -> None:
        """The agent's code runs now."""
        if self._limit is not None:
            self._set(self._limit - (self._room // 2 if self.was_used_up else self._room))

    def use(self) -> None:
        """The kernel's own code runs now. Takes no memory itself, for there may be none left."""
        if self._limit is None:
            return
        try:
            self._set_limits(self._which, self._all)
        except (OSError, ValueError):  # the agent's code has lowered the hard limit
            self._set(self._limit)

    @contextlib.contextmanager
    def lent(self) -> Generator[None]:
        """A block of the kernel's own code in the middle of what may be the agent's."""
        if self._limit is None:
            yield
            return
        soft = self._get_limits(self._which)[0]
        self.use()
        try:
            yield
        finally:
            self._set(soft)

    def _set(self, soft: int) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._set_limits(self._which, (soft, self._get_limits(self._which)[1]))
