"""The standard streams of the kernel: what is printed goes to the transcript, and to consoles while one listens."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kernel_bridge.inside.descriptor_capture import DescriptorCapture
from kernel_bridge.inside.interrupts import HELD, Interrupts
from kernel_bridge.inside.transcript import LONGEST_WAITING, MOST_WAITING, Transcript, clock

__all__ = ["CellStream", "StandardStreams"]

_ALONE_SECONDS = 0.01  # after nobody listened: how soon somebody who listens now is noticed
_LONGEST_LINE = 4096  # characters of a line that a forked process has begun and not ended, before they are written


class StandardStreams:
    """`sys.stdout`, `sys.stderr` and their descriptors, which the agent's code may replace or close. One per process.

    Args:
        publish: shows text, of a stream by its name, to the consoles that listen. False: none does.
    """

    def __init__(self, transcript: Transcript, interrupts: Interrupts, publish: Callable[[str, str], bool]) -> None:
        self.transcript = transcript
        self._capture: DescriptorCapture | None = None
        self.others_wrote: Callable[[], bool] = _nobody  # whether subprocesses or C code have, and it waits to be read
        self.instant = 0.0  # seconds: who prints again within them cannot have written to the descriptors meanwhile
        if os.name == "posix":
            self._capture = DescriptorCapture(transcript.add)
            self.others_wrote = self._capture.holds_output
        self._out = CellStream(1, self, interrupts, publish)
        self.error = CellStream(2, self, interrupts, publish)

    def restore(self) -> None:
        """Put the streams and the descriptors back in their places."""
        sys.stdout, sys.stderr = self._out, self.error
        if self._capture is not None:
            self._capture.restore()
            self.instant = self._capture.shortest_write()

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


def _nobody() -> bool:
    return False


class CellStream(io.TextIOBase):
    """`sys.stdout` or `sys.stderr` of the kernel, and of the processes that the agent's code forks from it."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self, fd: int, streams: StandardStreams, interrupts: Interrupts, publish: Callable[[str, str], bool]
    ) -> None:
        super().__init__()
        self.name = "stdout" if fd == 1 else "stderr"
        self._fd = fd
        self._streams = streams
        self._transcript = streams.transcript
        self._interrupts = interrupts
        self._publish = publish
        self._child: _LineWriter | None = None
        self.write = _quick_write(streams, self.write)  # pyright: ignore[reportAttributeAccessIssue]

    def become_child(self) -> None:
        """Write to the file descriptor from now on, which the kernel reads: its sockets and locks are not ours."""
        self._child = _LineWriter(self._fd)
        self._transcript.prints_until = self._transcript.alone_until = 0.0

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
            interrupts = self._interrupts
            is_main, before = interrupts.on_main_thread(), interrupts.mode
            try:
                if is_main:
                    interrupts.mode = HELD  # half a message on a socket would spoil the rest
                self._streams.drain()
                self._transcript.add(text)
                heard = self._publish(self.name, text)
                self._transcript.let_print(0.0 if heard else _ALONE_SECONDS)
            finally:
                if is_main:
                    interrupts.mode = before  # by no call, at whose begin an agent's own signal handler may raise
                    if before != HELD:
                        interrupts.deliver()
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._child is not None:
            self._child.flush()

    def close(self) -> None:
        return None  # a cell that closes sys.stdout must not silence the ones after it


def _quick_write(streams: StandardStreams, write: Callable[[str], int]) -> Callable[[str], int]:
    """A stream's `write` that leaves short texts to be looked at later, and all else to the method given.

    It finds what it needs in its closure, because a method would take longer to look that up than for all the rest.
    """
    transcript, mirror, waiting = streams.transcript, streams.transcript.mirror, streams.transcript.waiting
    append, keep, others_wrote = waiting.append, transcript.keep, streams.others_wrote

    def quick_write(text: str) -> int:
        now = clock()
        if (
            (now > transcript.alone_until and (now > transcript.prints_until or others_wrote()))
            or type(text) is not str
            or (size := len(text)) > LONGEST_WAITING
            or len(waiting) >= MOST_WAITING
        ):
            return write(text)
        # No lock, and interrupts are not held, which would take longer than all of this: each step is one call of C.
        append(text)
        if (copy := mirror.write) is not None:
            try:
                copy(text.encode())
            except ValueError:  # the mirror's window is full, or a lone surrogate
                keep(text)
        transcript.alone_until = clock() + streams.instant
        return size

    return quick_write


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
