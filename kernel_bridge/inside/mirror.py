"""The mirror: the first bytes of a text in a file, as soon as they are there, at the price of copying them in memory.

The file is mapped, window by window. What has been copied into a mapped file outlives this process, however it ends.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable

from kernel_bridge.inside import UNWRITTEN

__all__ = ["Mirror"]

_WINDOW_BYTES = max(16384, mmap.ALLOCATIONGRANULARITY)  # mapped at a time
_BLANK = memoryview(UNWRITTEN * _WINDOW_BYTES)


class Mirror:
    """Holds at most `limit` bytes. After them the file has `UNWRITTEN` or its end.

    Where there is no such file, or no room on its disk, nothing is kept and nothing fails.

    Attributes:
        write: appends bytes, all or none. A call of C: no thread and no signal handler sees half of it. None: there is
            no room left. Raises: ValueError when they do not fit in the window; then `spill` takes them.
    """

    write: Callable[[bytes], object] | None = None

    def __init__(self, path: str, limit: int) -> None:
        self._path = path
        self._limit = limit
        self._window: mmap.mmap | None = None
        self._start = 0  # of the window in the file
        self._map(0)
        self._first = self._window

    def clear(self) -> None:
        """Begin again. One thread at a time, as for `spill`."""
        window = self._first
        if window is None:
            return
        used = window.tell()
        if self._start:
            with contextlib.suppress(OSError):
                os.truncate(self._path, len(window))
        window[:used] = _BLANK[:used]
        window.seek(0)
        self._window, self._start, self.write = window, 0, window.write

    def spill(self, data: bytes) -> None:
        """Append bytes that go beyond the window. What goes beyond the limit is left out."""
        while data and (window := self._window) is not None:
            room = len(window) - window.tell()
            window.write(data[:room])
            data = data[room:]
            if data:
                self._map(self._start + len(window))

    def _map(self, start: int) -> None:
        """Map the next window. Its bytes are written first: touching a hole ends the process when the disk is full."""
        window = None
        size = min(_WINDOW_BYTES, self._limit - start)
        # By name each time: code that closes all descriptors would have another file under a number of ours.
        with contextlib.suppress(OSError, ValueError), open(self._path, "r+b", buffering=0) as file:
            file.seek(start)
            if size > 0 and file.write(_BLANK[:size]) == size:
                window = mmap.mmap(file.fileno(), size, offset=start)
        self._window, self._start = window, start
        self.write = None if window is None else window.write
