"""Replays a stored run in a notebook: its tools answer from the run store, and its code runs in a confined kernel.

The agent's code is untrusted. It never runs in the notebook's own process: `%%turn` hands it to a kernel of its own,
which has neither the network nor the files of the person who looks at it. Imports no DSPy, and asks no LM.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from kernel_bridge import Cell, CellHost, CellOutcome, ConfinementUnavailable, KernelSession
from kernel_bridge.agent_text.outcomes import death_text, failure_text, output_text
from kernel_bridge.text import printable
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.show.notebook.recording import NotInTheRecording, RecordedError, Recording
from rlmoptimizer.show.notebook.turn_record import AgentStart, TurnRecord, turn_records
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["NotInTheRecording", "RecordedError", "Replay", "connect"]

_NEEDED: Final = frozenset({"no_network", "filesystem_allowlist"})  # without these, foreign code is not run unasked
_DIE: Final = "import os; os._exit(1)"
_MOST_DEATHS: Final = 1_000_000  # in a row: as many as there are turns
_NO_DSPY: Final = """
def _no_dspy():
    import sys
    class Finder:
        @staticmethod
        def find_spec(name, path=None, target=None):
            if name.partition(".")[0] == "dspy":
                raise ModuleNotFoundError("there is no dspy in a replay: sub-agents are not replayed", name=name)
    sys.meta_path.insert(0, Finder)
_no_dspy()
del _no_dspy
"""


class CellFailed(Exception):
    """The code of a cell failed in the replay's kernel.

    Each is of a class of its own with the name of the exception that the code raised.

    Attributes:
        printed: what the code had printed; "" for nothing.
        traceback: from there.
    """

    def __init__(self, message: str, printed: str, traceback: str) -> None:
        super().__init__(message)
        self.printed = printed
        self.traceback = traceback

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it: nothing of the replay's own frames."""
        return self.traceback.split("\n")


class Replay:
    """A stored run that is replayed. Made by `connect`; `close` ends its kernel.

    Attributes:
        tools: the agent's tools by name, for cells of one's own: each call gets the newest answer to it that is in the
            store, and raises `NotInTheRecording` where there is none.
        variables: what the agent was given, by name, as of its last turn.
        turns: the agent's turns, oldest first.
    """

    def __init__(self, store: StoreReader, session: KernelSession) -> None:
        self._store = store
        self._session = session
        self._recording = Recording(store)
        self._agent_tools = self._recording.tools()
        self.tools: dict[str, Callable[..., Any]] = self._recording.tools(newest=True)
        self.turns: tuple[TurnRecord, ...] = tuple(turn_records(store))
        self._last = self.turns[-1].number if self.turns else 1
        self.variables: dict[str, Any] = self._recording.variables(self._last)
        self._begun: AgentStart | None = None  # the one whose turns are run
        self._is_set_up = False

    @property
    def path(self) -> Path:
        """The store's file."""
        return self._store.path

    def turn(self, number: int | None, code: str) -> str:
        """Run code as that of a turn, and give its output; "" for none. None: as code of one's own, after all turns.

        Of a turn that ended with its kernel or its process the code is not run. The replay's kernel is ended instead,
        so that the variables after it are those that the agent had.
        Raises:
            CellFailed: the code failed, as the agent's may have.
            NotInTheRecording: it asked a tool for something that is not in the recording, whatever it made of that.
            InvalidSetup: there is no such turn.
        """
        if number is None:
            return self._shown(self._run(code, self.tools, self._last))
        known = {turn.number: turn for turn in self.turns}
        if number not in known:
            raise InvalidSetup(f"there is no turn {number} in {self.path}; it has {len(known)}")
        ended = known[number].ended
        if ended == "not_run":
            return f"[Turn {number}: this code was not run in the stored run either.]"
        if ended in ("died", "cut"):
            self._run(_DIE, {}, number)
            what = "kernel" if ended == "died" else "process"
            return f"[Turn {number}: the {what} ended in this cell. Its code is not run again; a new kernel goes on.]"
        self._recording.begin(number)
        outcome = self._run(code, self._agent_tools, number)
        if misses := self._recording.misses:
            raise NotInTheRecording("; ".join(misses))
        return self._shown(outcome)

    def close(self) -> None:
        """End the kernel. Idempotent."""
        self._session.close("the replay was closed")
        self._store.close()

    def _run(self, code: str, tools: dict[str, Callable[..., Any]], turn: int) -> CellOutcome:
        start = self._recording.start_of(turn)
        if not self._is_set_up:
            self._session.run(Cell(_NO_DSPY, setup=True), CellHost())
        elif start is not self._begun:
            # A process that resumed had set-up code of its own; so the cells have the same numbers in tracebacks.
            self._session.run(Cell("pass"), CellHost())
        self._is_set_up, self._begun = True, start
        fields = None if start is None else start.output_fields
        cell = Cell(code, self._recording.variables(turn), fields)
        sources = self._recording.page_sources
        return self._session.run(cell, CellHost(tools, self._recording.submit, page_sources=sources))

    def _shown(self, outcome: CellOutcome) -> str:
        if outcome.submitted is not None:
            return f"FINAL: {dict(outcome.submitted)}"
        printed = outcome.text.rstrip("\n")
        if outcome.death is not None:
            raise _failed("KernelDied", outcome.death.reason, printed, death_text(outcome, outcome.death))
        if outcome.failure is not None:
            failure = outcome.failure
            text = (failure.traceback or failure.message) if failure.compiling else failure_text(outcome, failure)
            raise _failed(failure.name, failure.message, "" if failure.compiling else printed, text)
        return output_text(outcome) or ""

    def __repr__(self) -> str:
        report = self._session.report
        confined = "not started" if report is None else report.line()
        lines = [
            f"Replay of {self.path}, read only: {len(self.turns)} turns. No LM is asked, nothing is paid.",
            f"The agent's code runs in a kernel of its own ({confined}).",
        ]
        start = self._recording.start_of(self._last)
        if start is None:
            lines.append("The store does not say what the agent was given, nor what its tools answered.")
        elif start.left_out:
            lines.append(f"Too long to be kept, so not there: {', '.join(start.left_out)}.")
        return printable("\n".join(lines), None)


def connect(path: str | os.PathLike[str], *, confinement: Any = _NEEDED, magic: bool = True) -> Replay:
    """Replay the run in the store at `path`, which is only read.

    In IPython it makes the cell magic `%%turn N`, which runs the cell's code as that of the agent's turn `N`, in the
    replay's kernel; `%%turn` alone runs code of one's own there.

    Args:
        confinement: of the kernel, as `KernelSession` takes it. By default nothing runs where the network and the files
            of this machine cannot be kept from it; "auto" takes what the machine gives, "off" nothing.
        magic: make the magic.

    Raises:
        InvalidSetup: there is no store, or the machine does not give the confinement.
        StoreCorrupt: it cannot be read.
    """
    store = StoreReader.open(Path(path))
    with contextlib.ExitStack() as stack:
        stack.callback(store.close)
        session = KernelSession(confinement=confinement, restarts=_MOST_DEATHS)
        stack.callback(session.close)
        try:
            session.start()
        except ConfinementUnavailable as unavailable:
            raise InvalidSetup(
                f"the agent's code is not run here: {unavailable}. If you trust it, or nothing here is worth keeping "
                'from it, pass connect(..., confinement="auto"), which takes what the machine gives'
            ) from unavailable
        replay = Replay(store, session)
        atexit.register(replay.close)
        if magic:
            _make_magic(replay)
        stack.pop_all()
    return replay


def _failed(name: str, message: str, printed: str, text: str) -> CellFailed:
    """`text`: what was printed and the traceback together, as an agent gets them."""
    kind = type(name if name.isidentifier() else "CellFailed", (CellFailed,), {"__module__": "__main__"})
    # The class is new and only called so: the name is not looked up anywhere.
    traceback = text[len(printed) + 1 :] if printed else text
    return kind(printable(message, None), printable(printed, None), printable(traceback, None))


def _make_magic(replay: Replay) -> None:
    """`%%turn` of the IPython that this runs in, if there is one. A later replay's takes its place."""
    try:
        from IPython.core.getipython import get_ipython
    except ImportError:
        return
    shell: Any = get_ipython()
    if shell is None:
        return

    def turn(line: str, cell: str) -> None:
        """Run the cell in the replay's kernel: `%%turn 3` as the agent's third turn, `%%turn` as code of one's own."""
        text = line.strip()
        if text and not (text.isascii() and text.isdigit()):
            raise InvalidSetup(f"%%turn takes the number of a turn, or nothing; got {text!r}")
        try:
            output = replay.turn(int(text) if text else None, cell)
        except CellFailed as failed:
            if failed.printed:
                print(failed.printed)
            raise
        if output:
            print(printable(output, None))

    shell.register_magic_function(turn, magic_kind="cell", magic_name="turn")
