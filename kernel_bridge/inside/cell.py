"""One cell of the host, from its begin to its reply."""

from __future__ import annotations

from types import CodeType, TracebackType
from typing import Any

from kernel_bridge.inside.interrupts import HELD, OPEN
from kernel_bridge.inside.process_state import ProcessState
from kernel_bridge.inside.stubs import Submitted
from kernel_bridge.inside.tracebacks import describe_failure, is_of_cell
from kernel_bridge.inside.transcript import sendable

__all__ = ["HostCell"]


class HostCell:
    """A cell that the host sent. It begins when this is made.

    Args:
        number: of the cell in its session; interrupts and tracebacks name it.
        longest_result: characters of a last expression's text that the reply repeats apart.
    """

    def __init__(self, number: int, process: ProcessState, longest_result: int) -> None:
        self.number = number
        self.cancelled = False  # by an interrupt, while it awaited something
        self._process = process
        self._longest_result = longest_result
        self._failure: dict[str, Any] | None = None
        self._result: str | None = None
        process.restore()
        process.streams.drain()
        process.streams.transcript.begin()
        process.interrupts.begin(number)

    async def run(self, code: CodeType, names: dict[str, Any], *, awaits: bool) -> bool:
        """Run the cell's compiled code. Returns whether it failed."""
        process, interrupts = self._process, self._process.interrupts
        try:
            try:
                process.memory.keep()
                interrupts.open()
                if awaits:
                    await eval(code, names)
                else:
                    exec(code, names)
            finally:
                interrupts.mode = HELD
                process.memory.use()
        except BaseException as error:  # noqa: BLE001 - the agent's code may raise anything, SystemExit too
            interrupts.mode = HELD
            process.memory.use()
            process.end_if_forked(error)
            self.note_failure(type(error), error, error.__traceback__)
            return True
        return False

    def note_failure(self, kind: Any, error: Any, tb: TracebackType | None) -> None:
        """Remember why the cell failed."""
        self._process.restore()
        if kind is None or isinstance(error, Submitted):
            return
        compiling = isinstance(error, SyntaxError) and not is_of_cell(tb)
        if self.cancelled and _is_cancellation(error):
            kind, error = KeyboardInterrupt, KeyboardInterrupt()
        name, message, text = describe_failure(kind, error, tb, self._text_of)
        self._failure = {"name": name, "message": message, "traceback": text, "compiling": compiling}

    def _text_of(self, error: BaseException) -> str:
        # The agent's own __str__ runs: it may be broken off, as the cell itself may.
        interrupts = self._process.interrupts
        try:
            interrupts.mode = OPEN
            return str(error)
        finally:
            interrupts.mode = HELD

    def show_result(self, text: Any) -> None:
        """Add the text of the last expression's value."""
        if isinstance(text, str):
            self._process.streams.drain()
            self._result = sendable(text) if len(text) <= self._longest_result else None
            self.show(text if text.endswith("\n") else text + "\n")

    def show(self, text: str) -> None:
        """Add the text of a displayed value."""
        self._process.streams.transcript.add_result(text)

    def end(self, *, submitted: bool, taken: bool) -> dict[str, Any]:
        """The reply: what was printed, shown and submitted, and why it failed.

        Args:
            taken: whether the variables that came with the cell are in the namespace.
        """
        process = self._process
        process.restore()  # the cell may have replaced streams or closed descriptors that are drained next
        process.streams.drain()
        head, tail, omitted = process.streams.transcript.end()
        process.memory.was_used_up = self._failure is not None and self._failure["name"] == "MemoryError"
        return {
            "head": head,
            "tail": tail,
            "omitted": omitted,
            "result": self._result,
            "failure": None if submitted else self._failure,
            "submitted": submitted,
            "taken": taken,
        }


def _is_cancellation(error: Any) -> bool:
    import asyncio  # not before a cell awaits something

    return isinstance(error, asyncio.CancelledError)
