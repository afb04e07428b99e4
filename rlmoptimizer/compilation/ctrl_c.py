"""Ctrl-C while something long is under way on the main thread. Knows nothing of what that is.

Three things go wrong with Python's own handling. The system may hand the signal to any thread, most easily to one that
is just starting another: the main thread then sleeps on, and raises only when what it waits for has come. An exception
that is raised while Python finalizes an object is dropped. And several in a row raise in the midst of what the first
one is ending, where they leave locks behind that nobody holds.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from types import FrameType, TracebackType
from typing import Final

__all__ = ["CtrlC"]

_APART_SECONDS: Final = 1.0  # between two KeyboardInterrupts
_HEARD_SECONDS: Final = 0.1  # how long a main thread that is awake takes to run the handler
_LOST_SECONDS: Final = 8.0  # a KeyboardInterrupt that has not come through by then was dropped somewhere
_JOIN_SECONDS: Final = 5.0  # of the watching thread, which ends at once; it is a daemon if ever it does not
_OVER: Final = b"\0"  # no signal has this number

_entered: CtrlC | None = None  # the one whose handler is set; there is but one main thread


class CtrlC:
    """Within `with CtrlC() as ctrl_c`, Ctrl-C raises KeyboardInterrupt surely and at once, but not one upon the other.

    One that comes within a second of the one before waits until that second is over, and raises if the block has not
    ended. One that was raised and has not led to `came_through()` is raised again after some seconds, once.

    Does nothing where Ctrl-C would not raise KeyboardInterrupt: on a thread other than the main one, and where the
    program has set a handler of its own; nor on Windows, which wakes the main thread by itself.
    """

    def __init__(self) -> None:
        # The handler interrupts the main thread anywhere, in itself too: so it takes no lock, and sets these only.
        self._raised: float | None = None  # when it raised last
        self._held_back = False  # one has come too soon: after the one before, or for the block
        self._raised_again = False
        self._nudged = False  # the signal that comes now is our own
        self._came_through = False
        self._within = False  # the block
        self._before = -1  # the wake-up descriptor that was set before
        self._wake: tuple[socket.socket, socket.socket] | None = None
        self._thread: threading.Thread | None = None

    def came_through(self) -> None:
        """What was under way is being ended: no KeyboardInterrupt need be raised again."""
        self._came_through = True

    def __enter__(self) -> CtrlC:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
            and hasattr(signal, "pthread_kill")
        ):
            global _entered
            _entered = self
            # First: from now on nothing is raised before the block begins.
            signal.signal(signal.SIGINT, self._handle)
            try:
                self._begin_to_watch()
            except BaseException:
                self._undo()
                raise
            self._within = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._within = False
        if self._wake is None:
            return
        self._undo()
        if self._held_back and (kind is None or not issubclass(kind, KeyboardInterrupt)):
            raise KeyboardInterrupt

    def _begin_to_watch(self) -> None:
        reader, writer = self._wake = socket.socketpair()
        writer.setblocking(False)
        self._before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        thread = threading.Thread(target=self._watch, args=(reader,), name="rlmoptimizer-ctrl-c", daemon=True)
        thread.start()
        self._thread = thread

    def _undo(self) -> None:
        """Leave all as it was found, however much of it was done."""
        global _entered
        if self._wake is not None:
            try:
                signal.set_wakeup_fd(self._before)
            except (OSError, ValueError):  # whose it is has closed it
                signal.set_wakeup_fd(-1)
            reader, writer = self._wake
            if self._thread is not None:
                writer.setblocking(True)
                writer.sendall(_OVER)
                self._thread.join(_JOIN_SECONDS)
            reader.close()
            writer.close()
            self._wake = self._thread = None
        if signal.getsignal(signal.SIGINT) == self._handle:  # else the block has left one of its own
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _entered = None

    def undo_in_child(self) -> None:
        """In a process that was forked meanwhile: its signals are not its parent's, whose thread is not here."""
        self._within = False
        self._thread = None
        self._undo()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        """What Python calls on the main thread."""
        nudged, self._nudged = self._nudged, False
        since = self._since()
        due = since is None or since >= _APART_SECONDS
        if due and self._within and not _enters_or_leaves(frame):
            self._raised = time.monotonic()
            self._held_back = False
            raise KeyboardInterrupt
        if due or not nudged:  # we nudge for a press that has not been raised
            self._held_back = True

    def _since(self) -> float | None:
        return None if self._raised is None else time.monotonic() - self._raised

    def _watch(self, reader: socket.socket) -> None:
        """See to it that what was pressed is raised. Python writes the number of every signal that comes here."""
        heard_by: float | None = None  # when the handler must have run for the signal that came last
        while True:
            # Without anything to see to it sleeps until a signal comes or the block ends, which writes `_OVER`.
            quiet = heard_by is None and self._raised is None and not self._held_back
            reader.settimeout(None if quiet else _HEARD_SECONDS)
            try:
                numbers = reader.recv(256)
            except TimeoutError:
                numbers = b""
            if _OVER in numbers:
                return
            self._pass_on(numbers)
            if signal.SIGINT in numbers:
                heard_by = time.monotonic() + _HEARD_SECONDS
            if heard_by is not None and time.monotonic() >= heard_by:
                heard_by = None
                if (since := self._since()) is None or since >= _APART_SECONDS:
                    self._nudge()
            elif self._raises_again():
                self._nudge()

    def _raises_again(self) -> bool:
        since = self._since()
        if self._held_back:
            return since is None or since >= _APART_SECONDS
        if since is None or since < _LOST_SECONDS or self._came_through or self._raised_again:
            return False
        self._raised_again = True
        return True

    def _nudge(self) -> None:
        """Wake the main thread with a signal for it alone."""
        ident = threading.main_thread().ident
        if ident is not None and self._within:
            self._nudged = True
            signal.pthread_kill(ident, signal.SIGINT)

    def _pass_on(self, numbers: bytes) -> None:
        if numbers and self._before != -1:
            with contextlib.suppress(OSError):
                os.write(self._before, numbers)


def _enters_or_leaves(frame: FrameType | None) -> bool:
    """Whether the block is being entered or left: what is raised there would leave half of it behind."""
    while frame is not None:
        if frame.f_code in _AT_THE_BORDERS:
            return True
        frame = frame.f_back
    return False


_AT_THE_BORDERS: Final = (CtrlC.__enter__.__code__, CtrlC.__exit__.__code__)


def _undo_in_child() -> None:
    if _entered is not None:
        _entered.undo_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_undo_in_child)
