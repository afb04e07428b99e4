"""The capture of file descriptors 1 and 2: what subprocesses and C code write joins the transcript of the cell."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import threading
import time
from collections.abc import Callable

__all__ = ["DescriptorCapture"]

_PIPE_READ = 65536
_DRAIN_READS = 32  # a pipe holds at most 1 MiB; a process that goes on writing must not keep a cell from its end
_LONGEST_INSTANT = 1e-6  # taken for the time of a write, however slow the machine is now
_TRIALS = 20  # before the first cell
_PAUSE_SECONDS = 0.02  # of the reading thread, when there was something and it got nothing


def _identity(fd: int) -> tuple[int, int] | None:
    """What a descriptor stands for; None: nothing."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


class DescriptorCapture:
    """Makes descriptors 1 and 2 a pipe, and reads that.

    A thread reads, because a child that fills the pipe would block otherwise. `drain` takes the rest when a cell ends,
    so that its output is never found in the next one's.

    Args:
        emit: gets the text.
    """

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._lock = threading.RLock()  # a signal handler of the agent's may print in the middle of a print
        self._decode = codecs.getincrementaldecoder("utf-8")("replace")
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._pipe = _identity(self._write_end)
        self._taking = False
        self._shortest_write = _LONGEST_INSTANT
        for _ in range(_TRIALS):
            self.shortest_write()
        poller = select.poll()
        poller.register(self._read_end, select.POLLIN)
        self._poll = poller.poll
        self.restore()
        threading.Thread(target=self._run, name="descriptor capture", daemon=True).start()

    def restore(self) -> None:
        """Put the descriptors back, if the agent's code closed them or put something else there."""
        with contextlib.suppress(OSError):
            if _identity(0) is None:
                os.open(os.devnull, os.O_RDONLY)  # becomes 0, the lowest that is free
            for fd in (1, 2):
                if _identity(fd) != self._pipe:
                    os.dup2(self._write_end, fd, inheritable=True)

    def holds_output(self) -> bool:
        """Whether something may have been written that nobody has taken yet. Quicker than `drain`."""
        try:
            # In this order: what the pipe does not hold any more, a thread is taking or has taken.
            return self._poll(0) != [] or self._taking
        except RuntimeError:  # another thread is asking, or this is a signal handler in the middle of it
            return True

    def shortest_write(self) -> float:
        """The seconds that writing to the descriptors takes at least: the shortest time yet. Each call measures one."""
        clock, write, end = time.monotonic, os.write, self._write_end  # looked up before the time runs
        with contextlib.suppress(OSError):  # the agent's code closed it
            started = clock()
            write(end, b"")
            self._shortest_write = min(self._shortest_write, clock() - started)
        return self._shortest_write

    def drain(self) -> None:
        """Take everything that was written so far."""
        with self._lock:
            for _ in range(_DRAIN_READS):
                if not self._take():
                    break

    def _take(self) -> bool:
        """Take what waits. False: nothing waits, or it cannot be read now."""
        try:
            self._taking = True
            data = os.read(self._read_end, _PIPE_READ)
            if data:
                self._emit(self._decode.decode(data))
        except (OSError, MemoryError):  # the agent's code took all memory; its output is the lesser loss
            return False
        finally:
            self._taking = False
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
            if not taken:  # no memory is left, the agent's code closed the pipe, or another thread was first
                time.sleep(_PAUSE_SECONDS)
