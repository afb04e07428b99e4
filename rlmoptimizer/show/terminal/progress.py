"""Two ways to show evaluations under way where there is no notebook: live bars, and a few plain lines."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from rlmoptimizer.show.terminal.blocks import Block
from rlmoptimizer.show.terminal.figures import clock_text, percent_text
from rlmoptimizer.show.terminal.rich_blocks import rich_block

__all__ = ["Bars", "PlainLines", "ProgressView", "RunProgress", "progress_line"]

_PLAIN_LINE_SECONDS: Final = 15.0  # a plain line at least this often while examples come in
_PLAIN_LINE_SHARE: Final = 0.25  # and after each such share of the examples
_BESIDE_BAR: Final = 48  # columns that the rest of a bar's line takes
_BAR_WIDTHS: Final = (5, 32)


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
    """One way to show evaluations under way, lines and blocks. Called under a lock.

    `log` shows what a log handler would have written, `conclude` says the last line.
    """

    def started(self, run_id: str, run: RunProgress) -> None: ...
    def advanced(self, run_id: str, run: RunProgress) -> None: ...
    def finished(self, run_id: str, run: RunProgress, note: str) -> None: ...
    def say(self, line: str) -> None: ...
    def log(self, text: str) -> None: ...
    def conclude(self, line: str) -> None: ...
    def show(self, block: Block) -> None: ...
    def close(self) -> None: ...


class Bars:
    """Live bars on a terminal, one for each evaluation under way; in the place of one that has ended stands a line."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

    def started(self, run_id: str, run: RunProgress) -> None:
        if self._live is None:
            least, most = _BAR_WIDTHS
            # stdout and stderr stay the program's own: rich would send both to this console.
            self._live = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=min(max(self._console.width - _BESIDE_BAR, least), most)),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}", markup=False),
                TimeRemainingColumn(compact=True),
                console=self._console,
                transient=True,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._live.start()
        self._tasks[run_id] = self._live.add_task(run.label, total=run.total, note="score -")

    def advanced(self, run_id: str, run: RunProgress) -> None:
        if self._live is not None and run_id in self._tasks:
            self._live.update(self._tasks[run_id], completed=run.done, note=f"score {percent_text(run.score)}")

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        task = self._tasks.pop(run_id, None)
        if self._live is not None and task is not None:
            self._live.remove_task(task)
            if not self._tasks:
                self.close()
        self.say(f"{run.label} {run.done}/{run.total} {note}")

    def say(self, line: str) -> None:
        self._console.print(Text(line))  # above the bars, if there are any

    def log(self, text: str) -> None:
        self._console.print(Text.from_ansi(text), highlight=False)

    def conclude(self, line: str) -> None:
        self.say(line)

    def show(self, block: Block) -> None:
        self._console.print(rich_block(block))

    def close(self) -> None:
        live, self._live = self._live, None
        self._tasks.clear()
        if live is not None:
            # rich does not wait for its thread to end, and a compile leaves no thread behind.
            refresher: threading.Thread | None = getattr(live.live, "_refresh_thread", None)
            live.stop()
            if refresher is not None:
                refresher.join(1.0)


class PlainLines:
    """A few lines for each evaluation: for logs and pipes."""

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
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
            self.say(progress_line(run, now))

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        self._last.pop(run_id, None)
        self.say(f"{run.label} {run.done}/{run.total} {note}")

    def say(self, line: str) -> None:
        self._console.file.write(line + "\n")
        self._console.file.flush()

    def log(self, text: str) -> None:
        self.say(text)

    def conclude(self, line: str) -> None:
        self.say(line)

    def show(self, block: Block) -> None:
        self._console.print(rich_block(block))
        self._console.file.flush()

    def close(self) -> None:
        self._last.clear()


def progress_line(run: RunProgress, now: float) -> str:
    left = run.seconds_left(now)
    eta = "" if left is None else f" eta {clock_text(left)}"
    return f"{run.label} {run.done}/{run.total} score {percent_text(run.score)}{eta}"
