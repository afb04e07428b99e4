"""The transcript: what a cell prints, as a terminal would show it, within a bound.

The reply of the cell has it. What was printed is also in a file at once, so that the host can read it after a crash.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque

from kernel_bridge.inside.screen import Screen

__all__ = ["Transcript", "sendable"]


class Transcript:
    """The text of one cell, at most `limit` bytes of it. Thread-safe.

    Args:
        file_path: of a file for the first half of it; None: no file.
    """

    def __init__(self, limit: int, file_path: str | None) -> None:
        self._half = max(1, limit // 2)
        self._lock = threading.RLock()  # a signal handler of the agent's may print in the middle of a print
        self._file = -1
        if file_path is not None:
            self._file = os.open(file_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0), 0o600)
        self._on_file = 0  # bytes
        self._active = False
        self._screen = Screen()
        self._unseen: deque[str] = deque()  # text that the screen has not got yet
        self._showing = False
        self._kept = _Ends(self._half)

    def begin(self) -> None:
        """Start a cell: what comes from now on is its text."""
        with self._lock:
            if self._on_file:
                with contextlib.suppress(OSError):  # the agent's code closed it
                    os.ftruncate(self._file, 0)
            self._on_file = 0
            self._kept = _Ends(self._half)
            self._screen.rest()
            self._active = True

    def end(self) -> tuple[str, str, int]:
        """End the cell: its head, its tail, and how many characters between them were left out."""
        with self._lock:
            self._active = False
            self._show()
            self._kept.add(self._screen.rest())
            return self._kept.parts()

    def add(self, text: str) -> None:
        """Add what was printed; it may write over what was printed before."""
        text = sendable(text)
        with self._lock:
            if not self._active:
                return
            self._mirror(text)
            self._unseen.append(text)
            if not self._showing:  # else this is a signal handler in the middle of it
                self._show()

    def _show(self) -> None:
        self._showing = True
        try:
            while self._unseen:
                self._kept.add(self._screen.feed(self._unseen.popleft()))
        finally:
            self._showing = False

    def add_result(self, text: str) -> None:
        """Add a value's text, every character of which counts."""
        text = sendable(text)
        with self._lock:
            if self._active:
                self._mirror(text)
                self._kept.add(self._screen.rest())
                self._kept.add(text)

    def _mirror(self, text: str) -> None:
        """Write the head to the file too, where it outlives this process."""
        if self._file >= 0 and self._on_file < self._half:
            with contextlib.suppress(OSError):  # a full disk costs the copy for the crash case, nothing else
                data = text[: self._half].encode()[: self._half]
                self._on_file += os.write(self._file, data)


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
