"""Ctrl-C while something long is under way on the main thread.

Python alone does two things wrong here. The system may hand the signal to any thread, most easily to one that is just
starting another: the main thread then sleeps on until what it waits for has come. And several presses in a row raise in
the midst of what the first one is ending, where they leave locks behind that nobody holds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType
from typing import Final

__all__ = ["PromptCtrlC"]

_APART_SECONDS: Final = 1.0  # between two KeyboardInterrupts
_HEARD_SECONDS: Final = 0.1  # how long a main thread that is awake takes to run the handler
_OVER: Final = b"\0"  # no signal has this number


class PromptCtrlC:
    """In its block, Ctrl-C raises KeyboardInterrupt promptly, and at most once a second.

    A press within a second of the one before raises when that second is over, if the block has not ended. One that
    comes while the block is entered or left raises when it has begun or ended.

    Does nothing where Ctrl-C would not raise KeyboardInterrupt: on a thread other than the main one, and where the
    program has set a handler of its own; nor on Windows, which wakes the main thread by itself.
    """

    def __init__(self) -> None:
        self._undo = ExitStack()
        # The handler interrupts the main thread anywhere, in itself too: so it takes no lock, and sets these only.
        self._held_back = False  # what was pressed has not raised yet
        self._raised_at: float | None = None
        self._nudged = False  # the signal that comes now is our own

    def __enter__(self) -> None:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            and hasattr(signal, "pthread_kill")
        ):
            self._undo.enter_context(self._handled())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo.close()
        if self._held_back and not isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt

    @contextmanager
    def _handled(self) -> Generator[None]:
        # Set first and put back last: a press in between is held back.
        signal.signal(signal.SIGINT, self._handle)
        try:
            with self._watched():
                yield
        finally:
            if signal.getsignal(signal.SIGINT) == self._handle:  # else the block has left one of its own
                signal.signal(signal.SIGINT, signal.default_int_handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls on the main thread."""
        nudged, self._nudged = self._nudged, False
        due = self._due()
        if due and not _enters_or_leaves(frame):
            self._raised_at = time.monotonic()
            self._held_back = False
            raise KeyboardInterrupt
        if due or not nudged:  # a nudge is for a press that has not been raised
            self._held_back = True

    @contextmanager
    def _watched(self) -> Generator[None]:
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
        pressed, unheard = self._held_back, False  # one that came before this could hear it
        while True:
            reader.settimeout(_HEARD_SECONDS if pressed else None)
            try:
                numbers = reader.recv(256)
            except TimeoutError:
                if (unheard or self._held_back) and self._due():
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


def _enters_or_leaves(frame: FrameType | None) -> bool:
    """Whether a block is being entered or left: what is raised there would leave half of it behind."""
    while frame is not None:
        if frame.f_code in (PromptCtrlC.__enter__.__code__, PromptCtrlC.__exit__.__code__):
            return True
        frame = frame.f_back
    return False


def _leave_to_parent() -> None:
    """In the child of a fork: a signal that comes here is no press for its parent, to whose thread the socket leads."""
    if isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), PromptCtrlC):
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.default_int_handler)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
