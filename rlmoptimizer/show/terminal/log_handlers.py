"""What log handlers would write to the place that a view draws on, handed to the view instead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import IO, Any

from rlmoptimizer.show.terminal.stream import writes_to

__all__ = ["LogTap"]

_PLAIN_EMIT: Any = getattr(logging.StreamHandler, "emit")  # noqa: B009 # its type is generic, and unknown without


class LogTap:
    """Takes the lines of every plain handler that writes to `file`, until it is closed.

    `show` gets each of them, on the thread that logs.
    """

    def __init__(self, file: IO[str], show: Callable[[str], None]) -> None:
        self._file = file
        self._show = show
        self._taps: dict[logging.Handler, _Tap] = {}
        self.look()

    def look(self) -> None:
        """Take the lines of handlers that were added meanwhile, too."""
        for handler in filter(None, [logging.lastResort, *logging.getLogger().handlers]):
            # A class with an `emit` of its own may do more than write.
            is_plain = type(handler).emit is _PLAIN_EMIT and writes_to(getattr(handler, "stream", None), self._file)
            if is_plain and handler not in self._taps:
                self._taps[handler] = _Tap(handler, self._show)
                handler.addFilter(self._taps[handler])

    def close(self) -> None:
        while self._taps:
            handler, tap = self._taps.popitem()
            handler.removeFilter(tap)


class _Tap(logging.Filter):
    def __init__(self, handler: logging.Handler, show: Callable[[str], None]) -> None:
        super().__init__()
        self._handler = handler
        self._show = show

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            self._show(self._handler.format(record))
        except Exception:  # noqa: BLE001 # of a formatter: the handler reports it
            return True
        return False
