"""Tracebacks for the agent: only the frames of its own cells, no colours. Knows nothing of the kernel."""

from __future__ import annotations

import linecache
import traceback
from types import TracebackType

CELL_PREFIX = "<cell "
_LONGEST_LINE = 20_000  # characters; an exception's text can be of any length


def name_cell(code: str, number: int) -> str:
    """The file name of a cell in tracebacks, with its source made known to them."""
    name = f"{CELL_PREFIX}{number}>"
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    return name


def format_failure(kind: type[BaseException], error: BaseException, tb: TracebackType | None) -> str:
    """A traceback as Python prints it, cut to the frames of cells, causes and contexts included."""
    report = traceback.TracebackException(kind, error, tb, compact=True)
    _keep_cells(report, set())
    lines = [line if len(line) <= _LONGEST_LINE else line[:_LONGEST_LINE] + " [...]\n" for line in report.format()]
    return "".join(lines).rstrip("\n")


def _keep_cells(report: traceback.TracebackException, seen: set[int]) -> None:
    if id(report) in seen:
        return
    seen.add(id(report))
    kept = [frame for frame in report.stack if frame.filename.startswith(CELL_PREFIX)]
    report.stack = traceback.StackSummary.from_list(kept)
    for other in (report.__cause__, report.__context__):
        if other is not None:
            _keep_cells(other, seen)
    for other in getattr(report, "exceptions", None) or ():
        _keep_cells(other, seen)
