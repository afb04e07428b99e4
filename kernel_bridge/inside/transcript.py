"""The transcript: what a cell prints, as a terminal would show it, within a bound.

The reply of the cell has it. What was printed is also in a file at once, so that the host can read it after a crash.
A print costs little: it leaves its text to be looked at with that of many others.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from kernel_bridge.inside.mirror import Mirror
from kernel_bridge.inside.screen import Screen

__all__ = ["LONGEST_WAITING", "MOST_WAITING", "Transcript", "clock", "sendable"]

LONGEST_WAITING = 1024  # characters of a text that waits to be looked at; longer ones never wait
MOST_WAITING = 1024  # such texts

clock = time.monotonic


class Transcript:
    """The text of one cell, at most `limit` bytes of it. Thread-safe.

    Args:
        file_path: of a file for the first half of it.

    Attributes:
        waiting: what was printed and not looked at yet. Short prints append to it themselves, and to the mirror.
        mirror: the copy of the first half that outlives the process.
        prints_until: a time of `clock`. Until then they may, if nothing else has written.
        alone_until: an earlier one. Until then nothing else can have written, so soon is it after a print.
    """

    def __init__(self, limit: int, file_path: str) -> None:
        self._half = max(1, limit // 2)
        self._lock = threading.RLock()  # a signal handler of the agent's may print in the middle of a print
        self.mirror = Mirror(file_path, self._half)
        self.waiting: list[str] = []
        self.prints_until = self.alone_until = 0.0
        self._active = False
        self._screen = Screen()
        self._showing = False
        self._kept = _Ends(self._half)

    def begin(self) -> None:
        """Start a cell: what comes from now on is its text."""
        with self._lock:
            self.mirror.clear()
            self.waiting.clear()  # what a thread has printed since the last one
            self._kept = _Ends(self._half)
            self._screen.rest()
            self._active = True

    def end(self) -> tuple[str, str, int]:
        """End the cell: its head, its tail, and how many characters between them were left out."""
        with self._lock:
            self._active = False
            self.prints_until = self.alone_until = 0.0
            self._show()
            self._kept.add(self._screen.rest())
            return self._kept.parts()

    def let_print(self, seconds: float) -> None:
        """For so long prints may append to `waiting`, while the cell runs."""
        with self._lock:
            if self._active:
                self.prints_until = clock() + seconds

    def add(self, text: str) -> None:
        """Add what was printed; it may write over what was printed before."""
        with self._lock:
            if not self._active:
                return
            self.keep(text)
            self.waiting.append(text)
            if len(self.waiting) >= MOST_WAITING or len(text) > LONGEST_WAITING:
                self._show()

    def _show(self) -> None:
        if self._showing:  # this is a signal handler in the middle of it
            return
        self._showing = True
        try:
            while count := len(self.waiting):
                text = "".join(self.waiting[:count])
                del self.waiting[:count]  # what other threads have appended meanwhile stays
                self._kept.add(self._screen.feed(sendable(text)))
        finally:
            self._showing = False

    def add_result(self, text: str) -> None:
        """Add a value's text, every character of which counts."""
        with self._lock:
            if self._active:
                self.keep(text)
                self._show()
                self._kept.add(self._screen.rest())
                self._kept.add(sendable(text))

    def keep(self, text: str) -> None:
        """Copy a text to the mirror, as much of it as may be there."""
        with self._lock:
            if self.mirror.write is None:
                return
            data = text[: self._half].encode("utf-8", "backslashreplace")
            try:
                self.mirror.write(data)
            except ValueError:
                self.mirror.spill(data)


class _Ends:
    """The first and the last characters of a text of any length."""

    def __init__(self, most: int) -> None:
        self._most = most  # characters of each end
        self._head: list[str] = []
        self._room = most  # left in the head
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._omitted = 0

    def add(self, text: str) -> None:
        if self._room > 0:
            self._head.append(text[: self._room])
            text = text[self._room :]
            self._room -= len(self._head[-1])
        if not text:
            return
        if len(text) > self._most:
            self._omitted += len(text) - self._most
            text = text[-self._most :]
        self._tail.append(text)
        self._tail_size += len(text)
        # A signal handler of the cell may print while this runs, and change both.
        while self._tail and (over := self._tail_size - self._most) > 0:
            oldest = self._tail.popleft()
            if len(oldest) > over:
                self._tail.appendleft(oldest[over:])
            cut = min(over, len(oldest))
            self._tail_size -= cut
            self._omitted += cut

    def parts(self) -> tuple[str, str, int]:
        """The head, the tail, and how many characters between them were left out."""
        return "".join(self._head), "".join(self._tail), self._omitted


def sendable(text: str) -> str:
    """The text with lone surrogates, which no message can hold, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
