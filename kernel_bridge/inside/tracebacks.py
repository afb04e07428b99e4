"""Tracebacks for the agent: only the frames of its own cells, without colours, bounded."""

from __future__ import annotations

import linecache
import traceback
from collections import deque
from collections.abc import Callable
from types import TracebackType

from kernel_bridge.inside.bounded_call import call_within
from kernel_bridge.inside.transcript import sendable

__all__ = ["CELL_PREFIX", "clip", "describe_failure", "in_brief", "is_of_cell", "name_cell"]

CELL_PREFIX = "<cell "
_LONGEST_NAME = 200  # characters
_LONGEST_MESSAGE = 100_000
_LONGEST_BRIEF = 300
_LONGEST_TRACEBACK = 100_000
_MOST_FRAMES = 2_000  # of one exception; the first and the last are kept
_MOST_CAUSES = 50


def name_cell(code: str, number: int) -> str:
    """The file name of a cell in tracebacks, with its source made known to them."""
    name = f"{CELL_PREFIX}{number}>"
    if type(linecache.cache) is not dict:
        linecache.cache = {}  # the agent's code put something else there
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    return name


def describe_failure(
    kind: type[BaseException],
    error: BaseException,
    tb: TracebackType | None,
    text_of: Callable[[BaseException], str] = str,
) -> tuple[str, str, str]:
    """An exception's class name, its message, and a traceback as Python prints it, causes and contexts included.

    Whatever the agent's exception does when it is asked for its text, this returns.
    """
    name = _name_of(kind)
    try:
        message = clip(sendable(str.__str__(text_of(error))), _LONGEST_MESSAGE)
    except BaseException:  # noqa: BLE001 - the agent's own __str__, and an interrupt if that never ends
        message = "<exception str() failed>"
        kind = type(name, (Exception,), {"__module__": "__main__"})
        error = kind(message)
    try:
        text = clip(sendable(_format(kind, error, tb)), _LONGEST_TRACEBACK)
    except BaseException as broken:  # noqa: BLE001 - a cause's __str__, or a chain that is too long or too deep
        text = f"{name}: {message}\n(its traceback cannot be made: {type(broken).__name__})"
    return name, message, text


def in_brief(error: BaseException, seconds: float) -> str:
    """An exception's class name and message on one line of at most 300 characters, whatever its `__str__` does.

    Args:
        seconds: that its `__str__` may take.
    """
    try:
        message = call_within(seconds, lambda: str.__str__(str(error)))
    except BaseException:  # noqa: BLE001 - the agent's own __str__
        message = "<exception str() failed>"
    return sendable(f"{_name_of(type(error))}: {message[:_LONGEST_BRIEF]}")[:_LONGEST_BRIEF]


def _name_of(kind: type[BaseException]) -> str:
    return sendable(str(type.__dict__["__name__"].__get__(kind)))[:_LONGEST_NAME]


def _format(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> str:
    tb, left_out = _only_cells(tb)
    report = traceback.TracebackException(kind, error, tb, limit=-_MOST_FRAMES, compact=True)
    _keep_cells(report)
    text = "".join(report.format()).rstrip("\n")
    return f"({left_out} frames in the middle are left out below)\n{text}" if left_out else text


def _only_cells(tb: TracebackType | None) -> tuple[TracebackType | None, int]:
    """The same traceback without the frames that are not of cells, and how many of those that are were left out.

    A recursion can be millions of frames deep, so they are left out before anything is made of them.
    """
    half = _MOST_FRAMES // 2
    first: list[TracebackType] = []
    last: deque[TracebackType] = deque(maxlen=half)
    count = 0
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith(CELL_PREFIX):
            count += 1
            (first if count <= half else last).append(tb)
        tb = tb.tb_next
    made: TracebackType | None = None
    for kept in reversed([*first, *last]):
        made = TracebackType(made, kept.tb_frame, kept.tb_lasti, kept.tb_lineno)
    return made, count - len(first) - len(last)


def _keep_cells(report: traceback.TracebackException) -> None:
    waiting = [(report, 0)]
    seen: set[int] = set()
    while waiting:
        current, depth = waiting.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        kept = [frame for frame in current.stack if frame.filename.startswith(CELL_PREFIX)]
        current.stack = traceback.StackSummary.from_list(kept)
        if depth >= _MOST_CAUSES:
            current.__cause__ = current.__context__ = None
        for other in (current.__cause__, current.__context__, *(getattr(current, "exceptions", None) or ())):
            if other is not None:
                waiting.append((other, depth + 1))


def is_of_cell(tb: TracebackType | None) -> bool:
    """Whether a frame of a cell ran."""
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith(CELL_PREFIX):
            return True
        tb = tb.tb_next
    return False


def clip(text: str, limit: int) -> str:
    """A text within a limit, its middle left out if it must be."""
    if len(text) <= limit:
        return text
    head, tail = limit // 4, limit - limit // 4
    return f"{text[:head]}\n... [{len(text) - head - tail:,} characters left out] ...\n{text[-tail:]}"
