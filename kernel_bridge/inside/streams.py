"""The standard streams of the kernel: what is printed goes to the transcript, and to consoles while one listens."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kernel_bridge.inside.descriptor_capture import DescriptorCapture
from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.transcript import Transcript

__all__ = ["CellStream", "StandardStreams"]

_LONGEST_LINE = 4096  # characters of a line that a forked process has begun and not ended, before they are written


class StandardStreams:
    """`sys.stdout`, `sys.stderr` and their descriptors, which the agent's code may replace or close. One per process.

    Args:
        publish: shows text, of a stream by its name, to the consoles that listen.
    """

    def __init__(self, transcript: Transcript, interrupts: Interrupts, publish: Callable[[str, str], None]) -> None:
        self.transcript = transcript
        self._capture: DescriptorCapture | None = None
        if os.name == "posix":
            self._capture = DescriptorCapture(transcript.add)
        self._out = CellStream(1, self, interrupts, publish)
        self.error = CellStream(2, self, interrupts, publish)

    def restore(self) -> None:
        """Put the streams and the descriptors back in their places."""
        sys.stdout, sys.stderr = self._out, self.error
        if self._capture is not None:
            self._capture.restore()

    def drain(self) -> None:
        """Take what subprocesses have written so far, so that it keeps its place in the text."""
        if self._capture is not None:
            self._capture.drain()

    def become_child(self) -> None:
        """In a forked process: write to the descriptors, which the kernel reads."""
        for stream in (self._out, self.error):
            stream.become_child()

    def flush(self) -> None:
        for stream in (self._out, self.error):
            stream.flush()


class CellStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of the kernel, and of the processes that the agent's code forks from it."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self, fd: int, streams: StandardStreams, interrupts: Interrupts, publish: Callable[[str, str], None]
    ) -> None:
        super().__init__()
        self.name = "stdout" if fd == 1 else "stderr"
        self._fd = fd
        self._streams = streams
        self._interrupts = interrupts
        self._publish = publish
        self._child: _LineWriter | None = None

    def become_child(self) -> None:
        """Write to the file descriptor from now on, which the kernel reads: its sockets and locks are not ours."""
        self._child = _LineWriter(self._fd)

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        return self._fd

    @property
    def buffer(self) -> Any:
        return _ByteSide(self)

    def write(self, text: str) -> int:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - agent code calls it
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        if self._child is not None:
            self._child.write(text)
        elif text:
            with self._interrupts.held():  # half a message on a socket would spoil the rest
                self._streams.drain()
                self._streams.transcript.add(text)
                self._publish(self.name, text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._child is not None:
            self._child.flush()

    def close(self) -> None:
        return None  # a cell that closes sys.stdout must not silence the ones after it


class _LineWriter:
    """Writes whole lines to a descriptor at once, so that the lines of several processes do not mix."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.RLock()
        self._begun = ""  # of a line

    def write(self, text: str) -> None:
        with self._lock:
            self._begun += text
            whole = self._begun.rfind("\n") + 1
            if len(self._begun) - whole > _LONGEST_LINE:
                whole = len(self._begun)
            text, self._begun = self._begun[:whole], self._begun[whole:]
            self._write(text)

    def flush(self) -> None:
        with self._lock:
            text, self._begun = self._begun, ""
            self._write(text)

    def _write(self, text: str) -> None:
        view = memoryview(text.encode("utf-8", "backslashreplace"))
        while view:
            view = view[os.write(self._fd, view) :]


class _ByteSide(io.RawIOBase):
    """`sys.stdout.buffer`: bytes are text in disguise here."""

    def __init__(self, stream: CellStream) -> None:
        super().__init__()
        self._stream = stream

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        raw = bytes(data)
        self._stream.write(raw.decode("utf-8", "replace"))
        return len(raw)
