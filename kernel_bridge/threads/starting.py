"""Starts threads, and says clearly when the system has none left."""

from __future__ import annotations

import errno
import threading

__all__ = ["start_thread"]


def start_thread(thread: threading.Thread) -> None:
    """Start a thread. Raises: OSError when the system has none left, for which Python raises a bare RuntimeError."""
    try:
        thread.start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, f"Resource temporarily unavailable: {error}") from error
