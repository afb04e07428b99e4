"""Waiting for descriptors of any number, on any platform, and waking the thread that waits."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Sequence

__all__ = ["NO_SIGNAL", "Wakeup", "wait_for"]

NO_SIGNAL = getattr(socket, "MSG_NOSIGNAL", 0)  # for every send: a host may have SIGPIPE kill it


class Wakeup:
    """Wakes a thread that waits for its `fd`. Any thread may call it."""

    def __init__(self) -> None:
        self._readable, self._writable = socket.socketpair()
        self._readable.setblocking(False)
        self._writable.setblocking(False)

    @property
    def fd(self) -> int:
        """The descriptor to wait for."""
        return self._readable.fileno()

    def set(self) -> None:
        """Wake the thread that waits now, or the next one that does."""
        with contextlib.suppress(OSError):  # it was set often enough, or is closed
            self._writable.send(b"w", NO_SIGNAL)

    def clear(self) -> None:
        """Wake nobody any more."""
        with contextlib.suppress(BlockingIOError):
            self._readable.recv(4096)

    def close(self) -> None:
        """Idempotent."""
        self._readable.close()
        self._writable.close()


def wait_for(readable: Sequence[int], writable: Sequence[int], seconds: float | None) -> set[int]:
    """Wait until some of these descriptors are ready or closed at their other ends; which. None: however long."""
    if not hasattr(select, "poll"):
        found = select.select(readable, writable, readable, seconds)
        return {fd for ready in found for fd in ready}
    poller = select.poll()  # select() takes no descriptor above 1023
    wanted = dict.fromkeys(readable, select.POLLIN)
    for fd in writable:
        wanted[fd] = wanted.get(fd, 0) | select.POLLOUT
    for fd, events in wanted.items():
        poller.register(fd, events)
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        ready = poller.poll(None if left is None else int(left * 1000) + (left > 0))
        if ready or left is not None:
            return {fd for fd, _ in ready}
