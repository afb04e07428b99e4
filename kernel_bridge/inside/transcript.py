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
    """The text of one cell, at most `limit` bytes of it. Thread-safe."""

    def __init__(self, limit: int, file_path: str | None) -> None:
        self._half = max(1, limit // 2)
        self._lock = threading.RLock()  # a signal handler of the agent's may print in the middle of a print
        self._file = -1
        if file_path is not None:
            self._file = os.open(file_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.active = False
        self._screen = Screen()
        self._unseen: deque[str] = deque()  # of the screen yet
        self._showing = False
        self._reset()

    def _reset(self) -> None:
        self._head: list[str] = []
        self._head_size = 0
        self._tail: deque[str] = deque()
        self._tail_size = 0
        self._omitted = 0
        self._on_file = 0
        self._screen.rest()

    def begin(self) -> None:
        """Start a cell: what comes from now on is its text."""
        with self._lock:
            if self._on_file:
                with contextlib.suppress(OSError):  # the agent's code closed it
                    os.ftruncate(self._file, 0)
            self._reset()
            self.active = True

    def end(self) -> tuple[str, str, int]:
        """End the cell: its head, its tail, and how many characters between them were left out."""
        with self._lock:
            self.active = False
            self._show()
            self._keep(self._screen.rest())
            return "".join(self._head), "".join(self._tail), self._omitted

    def add(self, text: str) -> None:
        """What was printed: it may write over what was printed before."""
        text = sendable(text)
        with self._lock:
            if not self.active:
                return
            self._mirror(text)
            self._unseen.append(text)
            if not self._showing:  # else in a signal handler that came in the middle of this
                self._show()

    def _show(self) -> None:
        self._showing = True
        try:
            while self._unseen:
                self._keep(self._screen.feed(self._unseen.popleft()))
        finally:
            self._showing = False

    def add_result(self, text: str) -> None:
        """A value's text, every character of which counts."""
        text = sendable(text)
        with self._lock:
            if self.active:
                self._mirror(text)
                self._keep(self._screen.rest())
                self._keep(text)

    def _keep(self, text: str) -> None:
        room = self._half - self._head_size
        if room > 0:
            kept, text = text[:room], text[room:]
            self._head.append(kept)
            self._head_size += len(kept)
        if text:
            self._add_to_tail(text)

    def _add_to_tail(self, text: str) -> None:
        if len(text) > self._half:
            self._omitted += len(text) - self._half
            text = text[-self._half :]
        self._tail.append(text)
        self._tail_size += len(text)
        while self._tail and self._tail_size > self._half:
            over = self._tail_size - self._half
            oldest = self._tail[0]
            if len(oldest) <= over:
                self._tail.popleft()
            else:
                self._tail[0] = oldest[over:]
            cut = min(over, len(oldest))
            self._tail_size -= cut
            self._omitted += cut

    def _mirror(self, text: str) -> None:
        """Put the head on file as well; the page cache keeps it whatever happens to this process."""
        if self._file >= 0 and self._on_file < self._half:
            with contextlib.suppress(OSError):  # a full disk costs the copy for the crash case, nothing else
                data = text[: self._half].encode()[: self._half]
                self._on_file += os.write(self._file, data)


def sendable(text: str) -> str:
    """The text with lone surrogates, which no message can hold, written as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")
