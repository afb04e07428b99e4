"""Ctrl-C while something long is under way on the main thread.

Python alone does two things wrong here. The system may hand the signal to any thread, most easily to one that is just
starting another: the main thread then sleeps on until what it waits for has come. And several presses in a row raise in
the midst of what the first one is ending, where they leave locks behind that nobody holds.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import threading
import time
import weakref
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType
from typing import Final

__all__ = ["prompt_ctrl_c"]

_APART_SECONDS: Final = 1.0  # between two KeyboardInterrupts
_HEARD_SECONDS: Final = 0.1  # how long a main thread that is awake takes to run the handler
_OVER: Final = b"\0"  # no signal has this number


@contextmanager
def prompt_ctrl_c() -> Generator[None]:
    """In the block, Ctrl-C raises KeyboardInterrupt promptly, and at most once a second.

    A press within a second of the one before raises when that second is over, if the block has not ended.

    Does nothing where Ctrl-C would not raise KeyboardInterrupt: on a thread other than the main one, and where the
    program has set a handler of its own; nor on Windows, which wakes the main thread by itself.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or not hasattr(signal, "pthread_kill")
    ):
        yield
        return
    presses = _Presses()
    # Set first and put back last: a press in between is held back until the block begins, or has ended.
    signal.signal(signal.SIGINT, presses.handle)
    try:
        with presses.watched():
            presses.may_raise = True
            try:
                yield
            finally:
                presses.may_raise = False
    finally:
        if signal.getsignal(signal.SIGINT) == presses.handle:  # else the block has left one of its own
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if presses.held_back:
        raise KeyboardInterrupt


class _Presses:
    """What was pressed and has not raised yet."""

    def __init__(self) -> None:
        # The handler interrupts the main thread anywhere, in itself too: so it takes no lock, and sets these only.
        self.may_raise = False
        self.held_back = False
        self._raised_at: float | None = None
        self._nudged = False  # the signal that comes now is our own
        os.register_at_fork(after_in_child=functools.partial(_leave_to_parent, weakref.ref(self)))

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls on the main thread."""
        nudged, self._nudged = self._nudged, False
        due = self._due()
        if due and self.may_raise:
            self._raised_at = time.monotonic()
            self.held_back = False
            raise KeyboardInterrupt
        if due or not nudged:  # a nudge is for a press that has not been raised
            self.held_back = True

    @contextmanager
    def watched(self) -> Generator[None]:
        """Raise also presses that the main thread has not heard of, or that were held back."""
        reader, writer = socket.socketpair()
        with reader, writer:
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            owner = os.getpid()
            try:
                watch = threading.Thread(
                    target=self._watch, args=(reader, before), name="rlmoptimizer-ctrl-c", daemon=True
                )
                watch.start()
                try:
                    yield
                finally:
                    if os.getpid() == owner:  # in a child of a fork the socket leads to its parent's thread
                        writer.setblocking(True)
                        writer.sendall(_OVER)
                        watch.join()
            finally:
                try:
                    signal.set_wakeup_fd(before)
                except (OSError, ValueError):  # its owner has closed it
                    signal.set_wakeup_fd(-1)

    def _due(self) -> bool:
        return self._raised_at is None or time.monotonic() - self._raised_at >= _APART_SECONDS

    def _watch(self, reader: socket.socket, before: int) -> None:
        """Nudge the main thread. Python writes the number of every signal to the socket, whichever thread took it."""
        pressed, unheard = self.held_back, False  # one that came before this could hear it
        while True:
            reader.settimeout(_HEARD_SECONDS if pressed else None)
            try:
                numbers = reader.recv(256)
            except TimeoutError:
                if (unheard or self.held_back) and self._due() and self.may_raise:
                    self._nudged = True
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                unheard = False
                continue
            if _OVER in numbers:
                return
            if before != -1:
                with contextlib.suppress(OSError):
                    os.write(before, numbers)
            if signal.SIGINT in numbers:
                pressed = unheard = True


def _leave_to_parent(ref: weakref.ref[_Presses]) -> None:
    """In the child of a fork: a signal that comes here is no press for its parent, to whose thread the socket leads."""
    presses = ref()
    if presses is not None and signal.getsignal(signal.SIGINT) == presses.handle:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
