"""What a cell prints: one bounded transcript for the host, and a live stream for consoles. No sockets of its own.

Text goes three ways. Into memory, as a terminal would show it, head and tail kept and the middle counted, for the reply
of the cell. Into a file, at once and as it came, so that what was printed before a crash is still there for the host to
read. And, only while a console listens, to iopub.
"""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.screen import Screen

_PIPE_READ = 65536
_DRAIN_READS = 32  # a pipe holds at most 1 MiB; a process that goes on writing must not keep a cell from its end
_LONGEST_LINE = 4096  # characters of a line that a forked process has begun and not ended, before they are written
_PAUSE_SECONDS = 0.02  # of the reading thread, when there was something and it got nothing
_NOTHING = bytes(4)  # an int of C: no byte waits


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


class CellStream(io.TextIOBase):
    """sys.stdout or sys.stderr of the kernel, and of the processes that the agent's code forks from it.

    Args:
        catch_up: takes what others have written to the descriptors so far, so that it keeps its place in the text.
    """

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(
        self,
        name: str,
        fd: int,
        transcript: Transcript,
        publish: Callable[[str, str], None],
        catch_up: Callable[[], None],
        interrupts: Interrupts,
    ) -> None:
        super().__init__()
        self.name = name
        self._fd = fd
        self._transcript = transcript
        self._publish = publish
        self._catch_up = catch_up
        self._interrupts = interrupts
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
                self._catch_up()
                self._transcript.add(text)
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


def _identity(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None: nothing."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class DescriptorCapture:
    """File descriptors 1 and 2: what subprocesses and C code write joins the transcript.

    A thread reads, because a child that fills the pipe would block otherwise; `drain` takes what is left when a
    cell ends, so that its own output is never found in the next one's.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        import fcntl
        import termios

        self._emit = emit
        self._ioctl, self._how_much = fcntl.ioctl, termios.FIONREAD
        self._lock = threading.Lock()
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._pipe = _identity(self._write_end)
        self.mend()
        threading.Thread(target=self._run, name="descriptor capture", daemon=True).start()

    def mend(self) -> None:
        """Put the descriptors back where they belong, whatever the agent's code did to them."""
        with contextlib.suppress(OSError):
            if _identity(0) is None:
                os.open(os.devnull, os.O_RDONLY)  # becomes 0, the lowest that is free
            for fd in (1, 2):
                if _identity(fd) != self._pipe:
                    os.dup2(self._write_end, fd, inheritable=True)

    def drain(self) -> None:
        """Take everything that was written so far."""
        with self._lock:
            if self._waits():  # which is asked before each print, so it is worth being quick when nothing does
                for _ in range(_DRAIN_READS):
                    if not self._take():
                        break

    def _waits(self) -> bool:
        return self._ioctl(self._read_end, self._how_much, _NOTHING) != _NOTHING

    def _take(self) -> bool:
        """Take what waits. False: nothing does, or it cannot be had now."""
        try:
            data = os.read(self._read_end, _PIPE_READ)
            if data:
                self._emit(self._decode.decode(data))
        except (OSError, MemoryError):  # the agent's code took all memory; its output is the lesser loss
            return False
        return bool(data)

    def _run(self) -> None:
        poller = select.poll()
        poller.register(self._read_end, select.POLLIN)
        while True:
            taken = False
            with contextlib.suppress(MemoryError):
                poller.poll()
                with self._lock:
                    taken = self._take()
            if not taken:  # there is no memory, the agent's code closed the pipe, or another thread was first
                time.sleep(_PAUSE_SECONDS)
