"""What a person sees of a compile: on stderr, or in the notebook cell that it runs in.

Every evaluation has its progress, with the running score and the time left: a live bar on a terminal, an output that is
updated in a notebook, a few plain lines elsewhere. When nothing has come for long, a line says what is waited for.
With `verbose` the head, the agent's turns and the result are shown too. Warnings go through `logging`.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Final

from rich.console import Console

from kernel_bridge.text import printable_line
from rlmoptimizer.events import (
    CompileFinished,
    EvaluationFinished,
    EvaluationStarted,
    Event,
    ExamplesScored,
    StillWaiting,
)
from rlmoptimizer.show.terminal.figures import WHO, clock_text, percent_text
from rlmoptimizer.show.terminal.log_handlers import LogTap
from rlmoptimizer.show.terminal.notebook_cell import NotebookCell, notebook_publisher
from rlmoptimizer.show.terminal.progress import Bars, PlainLines, ProgressView, RunProgress
from rlmoptimizer.show.terminal.story import Story
from rlmoptimizer.show.terminal.stream import LastingStream

__all__ = ["Display"]

_IDS: Final = 20  # examples that one line names
_LINE_CHARS: Final = 800


class Display:
    """An observer that draws. One for each compile; `close` ends every live bar.

    Args:
        verbose: show the head, the agent's turns and the result.
        console: where to draw; None: in the notebook cell that runs, else on stderr as it is now. Blocks and bars share
            it, so neither overwrites the other.
        clock: seconds, ever growing.
        wall_clock: seconds since the epoch, for the time of day in a line.
    """

    def __init__(
        self,
        *,
        verbose: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._verbose = verbose
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.RLock()
        self._runs: dict[str, RunProgress] = {}
        self._story = Story()
        self._logs: LogTap | None = None  # where lines of others would run into what is drawn
        self._view = self._view_on(_stderr_console() if console is None else console)

    def _view_on(self, console: Console) -> ProgressView:
        if console.is_jupyter and (publish := notebook_publisher()) is not None:
            self._logs = LogTap(console.file, self._log)
            return NotebookCell(publish, self._clock)
        if console.is_interactive and not console.is_jupyter:
            self._logs = LogTap(console.file, self._log)
            return Bars(console)
        console.is_jupyter = False  # it would show HTML by IPython's means, of which there are none
        return PlainLines(console, self._clock)

    def __call__(self, event: Event) -> None:
        """Draw one event. Any thread may call it."""
        with self._lock:
            if isinstance(event, EvaluationStarted):
                self._started(event)
            elif isinstance(event, ExamplesScored):
                self._advanced(event)
            elif isinstance(event, EvaluationFinished):
                self._finished(event)
            elif isinstance(event, StillWaiting):
                self._say(_waiting_text(event, self._wall_clock()))
            if (line := self._story.line(event)) is not None:
                self._say(line)
            blocks = self._story.blocks(event)
            for block in blocks if self._verbose else ():
                self._view.show(block)
            if isinstance(event, CompileFinished) and event.verdict:
                self._view.conclude(_own_line(event.verdict))

    def close(self) -> None:
        with self._lock:
            if self._logs is not None:
                self._logs.close()
            self._view.close()
            self._runs.clear()

    def _say(self, text: str) -> None:
        self._view.say(_own_line(text))

    def _log(self, text: str) -> None:
        with self._lock:
            self._view.log(text)

    def _started(self, event: EvaluationStarted) -> None:
        what = f"baseline {event.split}" if event.baseline else event.split
        run = RunProgress(label=printable_line(f"{event.run_id} {what}"), total=event.total, started=self._clock())
        self._runs[event.run_id] = run
        if self._logs is not None:
            self._logs.look()
        self._view.started(event.run_id, run)

    def _advanced(self, event: ExamplesScored) -> None:
        run = self._runs.get(event.run_id)
        if run is not None:
            run.done, run.score = event.done, event.mean_score
            self._view.advanced(event.run_id, run)

    def _finished(self, event: EvaluationFinished) -> None:
        run = self._runs.pop(event.run_id, None)
        if run is None:
            return
        run.done, run.score = event.done, event.score
        score = f"score {percent_text(event.score)} ({event.passed} passed), {event.left} budget units left"
        note = "stopped" if event.score is None else score
        self._view.finished(event.run_id, run, note)


def _own_line(text: str) -> str:
    return printable_line(f"{WHO}: {text}", _LINE_CHARS)


def _stderr_console() -> Console:
    """A console on stderr as it is now. Colors can be forced on a file; bars that move cannot."""
    stream = LastingStream(sys.stderr)
    still = not stream.isatty() or os.environ.get("TERM", "").lower() in ("dumb", "unknown")
    return Console(file=stream.as_text_io(), force_interactive=False if still else None)


def _waiting_text(event: StillWaiting, now: float) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(now - event.seconds))
    long = f"for {clock_text(event.seconds)} (since {since})"
    if event.waits_for == "examples":
        which = f": {', '.join(event.ids[:_IDS])}{', ...' if len(event.ids) > _IDS else ''}" if event.ids else ""
        long += ", see example_timeout"
        return f"{event.name}: no example has finished {long}; {event.pending} under way{which}"
    if event.waits_for == "kernel":
        return f"the agent's interpreter has been starting {long}"
    if event.waits_for == "executor":
        return f"no worker of the executor has answered {long}"
    asked = f"; {event.pending} prompts are under way" if event.pending > 1 else ""
    return f"the {event.waits_for} LM {event.name} has not answered {long}{asked}"
