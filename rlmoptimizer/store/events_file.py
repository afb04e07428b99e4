"""The events file: what happens in an optimization, one JSON object a line, beside its run store.

For people and programs that follow a run; nothing is read from it to go on. Imports no DSPy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast

from rlmoptimizer.events import Event, ExamplesScored
from rlmoptimizer.store.file_lock import check_own

__all__ = ["EventsFile", "events_path"]

_BLOCK_BYTES: Final = 65536


def events_path(store_path: Path) -> Path:
    return store_path.with_suffix(".events.jsonl")


class EventsFile:
    """An observer that appends each event as a line `{"at": Unix time, "kind": class name, ...fields}`.

    A line is in the file when the call returns, so it outlives a kill of the process. Numbers that JSON has not (NaN,
    infinities) are null. The progress of runs on val and test is left out: its steps tell the scores of single
    examples. Not thread-safe: the emitter calls observers one at a time.
    """

    def __init__(self, path: Path, *, new: bool, clock: Callable[[], float] = time.time) -> None:
        """Open the file for its owner only. `new`: it begins empty; else half a line at its end is cut off.

        Raises OSError when it cannot be made, or something lies there that is not a plain file of this user.
        """
        self._clock = clock
        self._file = _open(path)
        try:
            self._size = 0 if new else _end_of_lines(self._file)
            os.ftruncate(self._file, self._size)
        except BaseException:
            os.close(self._file)
            raise

    def __call__(self, event: Event) -> None:
        """Raises OSError when there is no room; the file then ends with the line before."""
        if self._file < 0 or (isinstance(event, ExamplesScored) and event.split != "train"):
            return
        fields = _plain({field.name: getattr(event, field.name) for field in dataclasses.fields(event)})
        # ASCII: whoever shows the file on a terminal sees no control characters, and lone surrogates can be written.
        line = json.dumps({"at": self._clock(), "kind": type(event).__name__, **fields}, allow_nan=False) + "\n"
        rest = memoryview(line.encode("ascii"))
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise
        self._size += len(line)

    def close(self) -> None:
        """Idempotent."""
        file, self._file = self._file, -1
        if file >= 0:
            os.close(file)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
    for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"):
        flags |= getattr(os, name, 0)
    file = os.open(path, flags, 0o600)
    try:
        check_own(os.fstat(file), path)
        if hasattr(os, "fchmod"):
            os.fchmod(file, 0o600)
    except BaseException:
        os.close(file)
        raise
    return file


def _end_of_lines(file: int) -> int:
    """Where the last whole line ends."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end > 0:
        start = max(0, end - _BLOCK_BYTES)
        os.lseek(file, start, os.SEEK_SET)
        found = os.read(file, end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _plain(value: Any) -> Any:
    """As JSON holds it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in cast("Mapping[Any, Any]", value).items()}
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in cast("list[Any]", value)]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
