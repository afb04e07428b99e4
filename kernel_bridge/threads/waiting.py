"""Waiting for descriptors of any number, on any platform, and waking the thread that waits."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Sequence

from kernel_bridge.zmtp.stream import NO_SIGNAL

__all__ = ["Wakeup", "wait_for"]


class Wakeup:
    """Wakes a thread that waits for its `fd`. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # whoever sets it must not write to what has got its descriptor's number
        self._pair: tuple[socket.socket, socket.socket] | None = None
        if hasattr(os, "eventfd"):  # one descriptor in the place of two
            self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return
        self._pair = socket.socketpair()
        for end in self._pair:
            end.setblocking(False)
        self._fd = self._pair[0].fileno()

    @property
    def fd(self) -> int:
        """The descriptor to wait for; -1 when it is closed."""
        return self._fd

    def set(self) -> None:
        """Wake the thread that waits now, or the next one that does."""
        with self._lock, contextlib.suppress(OSError):  # it was set often enough
            if self._pair is not None:
                self._pair[1].send(b"w", NO_SIGNAL)
            elif self._fd >= 0:
                os.eventfd_write(self._fd, 1)

    def clear(self) -> None:
        """Wake nobody any more."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if self._pair is not None:
                self._pair[0].recv(4096)
            elif self._fd >= 0:
                os.eventfd_read(self._fd)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: closed. A thread that is not here may have held the lock."""
        self._lock = threading.Lock()
        self._close()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if self._pair is not None:
            for end in self._pair:
                end.close()
        elif fd >= 0:
            os.close(fd)


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
