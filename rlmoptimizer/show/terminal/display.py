"""What a person sees of a compile, on stderr.

Every evaluation has its progress, with the running score and the time left: a live bar on a terminal, one line that is
rewritten in a notebook, a few plain lines elsewhere. When nothing has come for long, a line says what is waited for.
With `verbose` the agent's turns are shown as panels. Warnings go through `logging`.
"""

from __future__ import annotations

import io
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.text import Text

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.events import (
    AgentSubmitted,
    CompileFinished,
    CompileResumed,
    CompileStarted,
    EvaluationFinished,
    EvaluationStarted,
    Event,
    ExamplesScored,
    FellBack,
    KernelStarted,
    PromptUpdated,
    StillWaiting,
    SubmissionRefused,
    TurnFinished,
)
from rlmoptimizer.show.terminal.progress import (
    Bars,
    PlainLines,
    ProgressView,
    RewrittenLine,
    RunProgress,
    clock_text,
    percent_text,
)
from rlmoptimizer.text import usd_text

__all__ = ["Display"]

_IDS = 20  # examples that one line names
_VERDICT_CHARS = 800
_PANEL_CHARS = 4000  # of one output or prompt; head and tail are kept


class Display:
    """An observer that draws on stderr. One for each compile; `close` ends every live bar.

    Args:
        verbose: show the agent's turns as panels.
        console: where to draw; None: stderr as it is now. Panels and bars share it, so neither overwrites the other.
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
        stream: TextIO = sys.stderr or io.StringIO()  # pyright: ignore[reportUnnecessaryComparison] # none in pythonw
        self._console = Console(file=stream) if console is None else console
        self._verbose = verbose
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.RLock()
        self._runs: dict[str, RunProgress] = {}
        self._progress: ProgressView
        if self._console.is_jupyter:
            self._progress = RewrittenLine(sys.stderr, clock)
        elif self._console.is_terminal and not self._console.is_dumb_terminal:
            self._progress = Bars(self._console)
        else:
            self._progress = PlainLines(self._console.file, clock)

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
                self._progress.say(_waiting_line(event, self._wall_clock()))
            elif isinstance(event, CompileFinished):
                self._compiled(event)
            elif self._verbose and (panel := _panel_of(event)) is not None:
                self._console.print(panel)

    def close(self) -> None:
        with self._lock:
            self._progress.close()
            self._runs.clear()

    def _compiled(self, event: CompileFinished) -> None:
        if self._verbose:
            text = (
                f"score {percent_text(event.baseline_score)} -> {percent_text(event.best_score)}, "
                f"{event.spent} units spent, {event.turns} turns{_cost_text(event.usage)}"
            )
            self._console.print(_panel("Done", Text(text), "cyan"))
        if event.verdict:
            self._progress.say(printable_line(f"RLMDocstringOptimizer: {event.verdict}", _VERDICT_CHARS))

    def _started(self, event: EvaluationStarted) -> None:
        what = f"baseline {event.split}" if event.baseline else event.split
        run = RunProgress(label=printable_line(f"{event.run_id} {what}"), total=event.total, started=self._clock())
        self._runs[event.run_id] = run
        self._progress.started(event.run_id, run)

    def _advanced(self, event: ExamplesScored) -> None:
        run = self._runs.get(event.run_id)
        if run is not None:
            run.done, run.score = event.done, event.mean_score
            self._progress.advanced(event.run_id, run)

    def _finished(self, event: EvaluationFinished) -> None:
        run = self._runs.pop(event.run_id, None)
        if run is None:
            return
        run.done, run.score = event.done, event.score
        score = f"score {percent_text(event.score)} ({event.passed} passed), {event.left} budget units left"
        note = "stopped" if event.score is None else score
        self._progress.finished(event.run_id, run, note)


def _waiting_line(event: StillWaiting, now: float) -> str:
    since = time.strftime("%H:%M:%S", time.localtime(now - event.seconds))
    long = f"for {clock_text(event.seconds)} (since {since})"
    if event.waits_for == "examples":
        which = f": {', '.join(event.ids[:_IDS])}{', ...' if len(event.ids) > _IDS else ''}" if event.ids else ""
        long += ", see example_timeout"
        text = f"{event.name}: no example has finished {long}; {event.pending} under way{which}"
    elif event.waits_for == "kernel":
        text = f"the agent's interpreter has been starting {long}"
    else:
        asked = f"; {event.pending} prompts are under way" if event.pending > 1 else ""
        text = f"the {event.waits_for} LM {event.name} has not answered {long}{asked}"
    return printable_line(text)


def _panel_of(event: Event) -> RenderableType | None:
    """The panel or line for an event of the trajectory, or None. Foreign text goes in as `Text`, never as markup."""
    if isinstance(event, CompileStarted):
        text = (
            f"steps: {', '.join(event.steps)}\n"
            f"train {event.train_count} examples, val {event.val_count}, budget {event.budget} units"
        )
        return _panel("Optimizing", Text(printable(text)), "cyan")
    if isinstance(event, KernelStarted):
        return Text(printable_line(f"kernel: {event.summary}"))
    if isinstance(event, CompileResumed):
        text = f"so far: turns {event.turns}, runs {event.runs}; {event.left} budget units left"
        return _panel("Going on", Text(text), "cyan")
    if isinstance(event, TurnFinished):
        return _turn_panel(event)
    if isinstance(event, PromptUpdated):
        return _panel(f"New prompt for {event.step}", Text(printable(event.after, _PANEL_CHARS)), "green")
    if isinstance(event, AgentSubmitted):
        text = "\n\n".join(f"{step}:\n{prompt}" for step, prompt in event.prompts.items())
        return _panel("Submitted", Text(printable(text, _PANEL_CHARS)), "green")
    if isinstance(event, SubmissionRefused):
        return _panel("Submission refused", Text(printable(event.reason, _PANEL_CHARS)), "yellow")
    if isinstance(event, FellBack):
        text = f"{event.reason}\nTaken: run {event.run_id}"
        return _panel("The submission is not given back", Text(printable(text, _PANEL_CHARS)), "yellow")
    return None


def _cost_text(usage: Mapping[str, Mapping[str, Any]]) -> str:
    parts: list[str] = []
    for role, used in usage.items():
        cost = "unknown" if used["cost_usd"] is None else usd_text(used["cost_usd"])
        parts.append(f"{role} {cost} for {used['calls']} call{'' if used['calls'] == 1 else 's'}")
    return "\ncost: " + ", ".join(parts) if parts else ""


def _turn_panel(event: TurnFinished) -> RenderableType:
    code = Syntax(printable(event.code, _PANEL_CHARS), "python", word_wrap=True, background_color="default")
    parts: list[RenderableType] = [Text(printable(event.reasoning, _PANEL_CHARS)), _panel("code", code, "blue")]
    if event.output.strip():
        parts.append(_panel("output", Text(printable(event.output, _PANEL_CHARS)), "bright_black"))
    title = f"Turn {event.number}/{event.limit}, {clock_text(event.seconds)}, {event.left} budget units left"
    return _panel(title, Group(*parts), "magenta")


def _panel(title: str, body: RenderableType, style: str) -> Panel:
    return Panel(body, title=Text(printable_line(title)), title_align="left", border_style=style)
