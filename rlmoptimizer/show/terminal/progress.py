"""Three ways to show evaluations under way: bars, one rewritten line, a few plain lines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

__all__ = ["Bars", "PlainLines", "ProgressView", "RewrittenLine", "RunProgress", "clock_text", "percent_text"]

_PLAIN_LINE_SECONDS = 15.0  # a plain line at least this often while examples come in
_PLAIN_LINE_SHARE = 0.25  # and after each such share of the examples
_REWRITE_SECONDS = 0.2  # a notebook's line is rewritten no more often than this
_PLAIN_EMIT: Any = getattr(logging.StreamHandler, "emit")  # noqa: B009 # its type is generic, and unknown without


def percent_text(score: float | None) -> str:
    return "-" if score is None else f"{100 * score:.1f}%"


def clock_text(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"


@dataclass(slots=True)
class RunProgress:
    """One evaluation under way, as the display follows it."""

    label: str
    total: int
    started: float  # of the display's clock
    done: int = 0
    score: float | None = None

    def seconds_left(self, now: float) -> float | None:
        return None if self.done == 0 else (now - self.started) / self.done * (self.total - self.done)


class ProgressView(Protocol):
    """One way to show evaluations under way. Called under the display's lock."""

    def started(self, run_id: str, run: RunProgress) -> None: ...
    def advanced(self, run_id: str, run: RunProgress) -> None: ...
    def finished(self, run_id: str, run: RunProgress, note: str) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


class _AboveBars(logging.Filter):
    """Prints above the live bars what a log handler would write into them."""

    def __init__(self, handler: logging.Handler, console: Console) -> None:
        super().__init__()
        self._handler = handler
        self._console = console

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            text = Text.from_ansi(self._handler.format(record))
            self._console.print(text, soft_wrap=True, highlight=False)
        except Exception:  # noqa: BLE001 # of a formatter: the handler reports it
            return True
        return False

    @classmethod
    def put_before(cls, console: Console) -> list[tuple[logging.Handler, _AboveBars]]:
        """Put one before each plain handler that writes to this console. The caller takes them off again."""
        found: list[tuple[logging.Handler, _AboveBars]] = []
        for handler in filter(None, [logging.lastResort, *logging.getLogger().handlers]):
            # A class with an `emit` of its own may do more than write.
            if type(handler).emit is _PLAIN_EMIT and getattr(handler, "stream", None) is console.file:
                above = cls(handler, console)
                handler.addFilter(above)
                found.append((handler, above))
        return found


class Bars:
    """Live bars on a terminal, one for each evaluation under way; finished ones stay as they ended."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._above: list[tuple[logging.Handler, _AboveBars]] = []
        self._tasks: dict[str, TaskID] = {}

    def started(self, run_id: str, run: RunProgress) -> None:
        if self._live is None:
            # stdout and stderr stay the program's own: rich would send both to this console.
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(compact=True, elapsed_when_finished=True),
                console=self._console,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
            self._above = _AboveBars.put_before(self._console)
        self._tasks[run_id] = self._live.add_task(run.label, total=run.total, note="score -")

    def advanced(self, run_id: str, run: RunProgress) -> None:
        if self._live is not None:
            self._live.update(self._tasks[run_id], completed=run.done, note=f"score {percent_text(run.score)}")

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        if self._live is None:
            return
        self._live.update(self._tasks.pop(run_id), completed=run.done, note=note)
        if not self._tasks:
            self.close()

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)  # above the bars, if there are any

    def close(self) -> None:
        live, self._live = self._live, None
        self._tasks.clear()
        while self._above:
            handler, above = self._above.pop()
            handler.removeFilter(above)
        if live is not None:
            # rich does not wait for its thread to end, and a compile leaves no thread behind.
            refresher: threading.Thread | None = getattr(live.live, "_refresh_thread", None)
            live.stop()
            if refresher is not None:
                refresher.join(1.0)


class RewrittenLine:
    """One line for all evaluations, rewritten in place: what a notebook can show without widgets."""

    def __init__(self, stream: IO[str], clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._runs: dict[str, RunProgress] = {}
        self._written = float("-inf")
        self._width = 0

    def started(self, run_id: str, run: RunProgress) -> None:
        self._runs[run_id] = run
        self._rewrite()

    def advanced(self, run_id: str, run: RunProgress) -> None:
        if self._clock() - self._written >= _REWRITE_SECONDS:
            self._rewrite()

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        self._runs.pop(run_id, None)
        self._put(f"{run.label} {run.done}/{run.total} {note}", end="\n")
        if self._runs:
            self._rewrite()

    def say(self, line: str) -> None:
        self._put(line, end="\n")
        if self._runs:
            self._rewrite()

    def close(self) -> None:
        if self._width:
            self._put("", end="\r")
        self._runs.clear()

    def _rewrite(self) -> None:
        now = self._clock()
        self._written = now
        self._put(" | ".join(_progress_line(run, now) for run in self._runs.values()), end="")

    def _put(self, line: str, end: str) -> None:
        self._stream.write("\r" + line.ljust(self._width) + end)
        self._stream.flush()
        self._width = 0 if end else len(line)


class PlainLines:
    """A few lines for each evaluation: for logs and pipes."""

    def __init__(self, stream: IO[str], clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._last: dict[str, tuple[int, float]] = {}  # run -> examples done and time at its last line

    def started(self, run_id: str, run: RunProgress) -> None:
        self._last[run_id] = (0, self._clock())

    def advanced(self, run_id: str, run: RunProgress) -> None:
        done, at = self._last[run_id]
        now = self._clock()
        due = run.done - done >= max(1.0, _PLAIN_LINE_SHARE * run.total) and now - at >= 1.0
        if run.done < run.total and (due or now - at >= _PLAIN_LINE_SECONDS):
            self._last[run_id] = (run.done, now)
            self.say(_progress_line(run, now))

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        self._last.pop(run_id, None)
        self.say(f"{run.label} {run.done}/{run.total} {note}")

    def say(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()

    def close(self) -> None:
        self._last.clear()


def _progress_line(run: RunProgress, now: float) -> str:
    left = run.seconds_left(now)
    eta = "" if left is None else f" eta {clock_text(left)}"
    return f"{run.label} {run.done}/{run.total} score {percent_text(run.score)}{eta}"
