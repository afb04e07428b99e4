"""The outputs of a notebook cell that show the evaluations of a compile, updated in place."""

from __future__ import annotations

import contextvars
import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from rich.text import Text

from rlmoptimizer.show.terminal.blocks import Block, Words
from rlmoptimizer.show.terminal.figures import WHO
from rlmoptimizer.show.terminal.html_blocks import escaped, escaped_text, html_block, html_meter
from rlmoptimizer.show.terminal.progress import RunProgress, progress_line
from rlmoptimizer.show.terminal.rich_blocks import plain_block
from rlmoptimizer.text import PLAIN_HTML, count_text

__all__ = ["NotebookCell", "Publisher", "notebook_publisher"]

_UPDATE_SECONDS: Final = 0.25  # updates come no more often than this while examples are scored
_SHOWN: Final = 4  # finished evaluations that are seen at once; the others are folded
_MOST_ENDED: Final = 200  # that are listed at all
_MOST_LINES: Final = 50  # of what was said
_names = itertools.count(1)


class Publisher(Protocol):
    """Shows a bundle of one content in several formats; with `update`, in the place of that of the same name."""

    def __call__(self, bundle: Mapping[str, str], name: str, *, update: bool) -> None: ...


def notebook_publisher() -> Publisher | None:
    """How this process shows something in the cell that runs; None: it runs no notebook cell that could be shown in.

    Jupyter finds the cell by a context variable, which a thread of ours would not have.
    """
    try:
        from IPython import display
        from IPython.core.interactiveshell import InteractiveShell
    except ImportError:
        return None
    if not InteractiveShell.initialized():
        return None
    cell = contextvars.copy_context()
    show: Any = getattr(display, "publish_display_data")  # noqa: B009 # its type is partly unknown

    def publish(bundle: Mapping[str, str], name: str, *, update: bool) -> None:
        cell.copy().run(show, dict(bundle), transient={"display_id": name}, update=update)

    return publish


class NotebookCell:
    """A `ProgressView`. What evaluations come to and what is said goes into one output; blocks have their own.

    What comes after a block stands below it, in a new output.
    """

    def __init__(self, publish: Publisher, clock: Callable[[], float]) -> None:
        self._publish = publish
        self._clock = clock
        self._name = f"rlmoptimizer-{os.getpid()}-{next(_names)}"
        self._blocks = 0  # that are shown
        self._outputs = 1  # of evaluations and lines
        self._is_there = False  # the newest of them
        self._updated = float("-inf")
        self._runs: dict[str, RunProgress] = {}
        self._ended: deque[str] = deque(maxlen=_MOST_ENDED)
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)

    def started(self, run_id: str, run: RunProgress) -> None:
        self._runs[run_id] = run
        self._update()

    def advanced(self, run_id: str, run: RunProgress) -> None:
        if self._clock() - self._updated >= _UPDATE_SECONDS:
            self._update()

    def finished(self, run_id: str, run: RunProgress, note: str) -> None:
        self._runs.pop(run_id, None)
        self._ended.append(f"{run.label} {run.done}/{run.total} {note}")
        self._update()

    def say(self, line: str) -> None:
        self._lines.append(line)
        self._update()

    def log(self, text: str) -> None:
        self.say(Text.from_ansi(text).plain)

    def conclude(self, line: str) -> None:
        if self._blocks:
            self.show(Block("", (Words(line),)))  # where the reader is
        else:
            self.say(line)

    def show(self, block: Block) -> None:
        self._end_output()
        self._blocks += 1
        bundle = {"text/html": html_block(block), "text/plain": plain_block(block)}
        self._publish(bundle, f"{self._name}-{self._blocks}", update=False)

    def close(self) -> None:
        if self._runs:
            self._runs.clear()
            self._update()

    def _end_output(self) -> None:
        """What is under way moves to the next one."""
        if not self._is_there:
            return
        if self._runs:
            under_way, self._runs = self._runs, {}
            self._update()
            self._runs = under_way
        self._ended.clear()
        self._lines.clear()
        self._outputs += 1
        self._is_there = False
        self._updated = float("-inf")

    def _update(self) -> None:
        self._updated = self._clock()
        bundle = {"text/html": self._html(), "text/plain": "\n".join(self._plain())}
        self._publish(bundle, f"{self._name}-lines-{self._outputs}", update=self._is_there)
        self._is_there = True

    def _plain(self) -> list[str]:
        running = [progress_line(run, self._updated) for run in self._runs.values()]
        return [*list(self._ended)[-_SHOWN:], *running, *self._lines]

    def _html(self) -> str:
        ended = [f"<div>{escaped(line)}</div>" for line in self._ended]
        folded, shown = ended[:-_SHOWN], ended[-_SHOWN:]
        parts = [] if self._blocks else [f"<b>{WHO}</b>"]
        if folded:
            parts.append(
                f"<details><summary>{count_text(len(folded), 'evaluation')} before</summary>{''.join(folded)}</details>"
            )
        parts += shown
        for run in self._runs.values():
            bar = html_meter(run.done / max(run.total, 1))
            parts.append(f"<div>{bar} {escaped(progress_line(run, self._updated))}</div>")
        parts += (f'<div style="white-space:pre-wrap">{escaped_text(line)}</div>' for line in self._lines)
        return f'<div class="{PLAIN_HTML}" style="font-variant-numeric:tabular-nums">{"".join(parts)}</div>'
