"""The recording of a stored run: what its agent was given turn by turn, and what its tools answered. Reads only."""

from __future__ import annotations

import inspect
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from kernel_bridge.wire import PageSource
from rlmoptimizer.errors import StoreCorrupt
from rlmoptimizer.outcome.example_rows import PAGES_OF_RUNS, ExampleRows
from rlmoptimizer.records import RunRecord
from rlmoptimizer.show.notebook.turn_record import AgentStart, agent_starts
from rlmoptimizer.store.calls import MadeCall, request_digest
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["NotInTheRecording", "RecordedError", "Recording"]

_MOST_LISTED: Final = 8  # calls of a turn in a message
_SUBMIT: Final = "SUBMIT"


class NotInTheRecording(Exception):
    """A tool was asked for something that the agent did not ask for there, so no answer is known."""

    def _render_traceback_(self) -> list[str]:
        """What IPython shows of it."""
        return [f"NotInTheRecording: {self}"]


class RecordedError(Exception):
    """What a tool raised in the stored run. Each is of a class of its own with the name of the one that was raised."""


class Recording:
    """Answers calls as the stored run did. Thread-safe.

    Within a turn, calls with the same arguments get their answers in the order in which these were given. A thread that
    outlives the code that began it may ask in another turn than it did: where the recording has such calls, what a turn
    does not have is looked for in the nearest other turn.
    """

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._rows = ExampleRows(store)
        self.page_sources: Mapping[str, PageSource] = {PAGES_OF_RUNS: self._rows.read_page}  # of who asks `answer`
        self._lock = threading.RLock()  # of all below
        self._starts = agent_starts(store)
        self._made = store.calls()
        self._has_strays = any(made.call.stray for made in self._made)
        self._turn = 0  # whose code runs, or ran last
        self._waiting: dict[tuple[str, int], deque[MadeCall]] = {}  # by request and turn: not yet asked for again
        self._misses: list[str] = []
        for turn in {made.call.turn for made in self._made}:
            self._refill(turn)

    def _refill(self, turn: int) -> None:
        """Nothing of a turn has been asked for again."""
        for key in [key for key in self._waiting if key[1] == turn]:
            del self._waiting[key]
        for made in self._made:
            if made.call.turn == turn:
                self._waiting.setdefault((made.call.request, turn), deque()).append(made)

    # what the agent was given

    def start_of(self, turn: int) -> AgentStart | None:
        """What the agent that did a turn began with; None: the store does not say."""
        before = [start for start in self._starts if start.turn <= turn]
        return before[-1] if before else None

    def variables(self, turn: int) -> dict[str, Any]:
        """The variables that the agent was given, by name, as of a turn. `{}` where the store does not say."""
        start = self.start_of(turn)
        return {} if start is None else start.given(self._store, turn)

    def tools(self, *, newest: bool = False) -> dict[str, Callable[..., Any]]:
        """The tools that the agent had, by name. `{}` where the store does not say.

        `newest`: not for the agent's code: every call gets the newest answer to it, whatever the turn.
        """
        described: Mapping[str, Any] = self._starts[-1].tools if self._starts else {}
        ask = self.newest if newest else self.answer
        try:
            return {name: _tool(name, description, ask) for name, description in described.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            reason = f"the tools are not described as they should be: {error}"
            raise StoreCorrupt(str(self._store.path), reason) from error

    # what it asked

    def begin(self, turn: int) -> None:
        """The code of a turn is about to run, perhaps once more."""
        with self._lock:
            self._turn, self._misses = turn, []
            self._refill(turn)

    @property
    def misses(self) -> list[str]:
        """What was asked for since the beginning of the turn and is not in the recording, as messages."""
        with self._lock:
            return list(self._misses)

    def answer(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """What the call got, of those in the recording that were not asked for again.

        Raises `RecordedError` for what it raised, and `NotInTheRecording`.
        """
        with self._lock:
            made = self._next(_request(tool, arguments))
            if made is None:
                raise self._missed(self._why_not(tool, self._turn))
        return self._reply(made, self._rows.paged)

    def newest(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """What the call got when it was made last, all of it. Raises as `answer` does."""
        request = _request(tool, arguments)
        made = next((made for made in reversed(self._made) if made.call.request == request), None)
        if made is None:
            raise NotInTheRecording(self._why_not(tool, None))
        return self._reply(made, self._rows.whole)

    def submit(self, fields: dict[str, Any]) -> None:
        """Accept a submission that was accepted, and refuse one that was refused. Raises as `answer` does."""
        if any(made.call.tool == _SUBMIT for made in self._made):
            self.answer(_SUBMIT, fields)
        elif self._store.submission() != fields:  # of an interpreter that did not ask while its code ran
            raise self._missed(self._why_not(_SUBMIT, self._turn))

    def _next(self, request: str) -> MadeCall | None:
        turns = [self._turn]
        if self._has_strays:
            others = {made.call.turn for made in self._made if made.call.request == request}
            turns += sorted(others, key=lambda turn: (abs(turn - self._turn), turn < self._turn))
        for turn in turns:
            if waiting := self._waiting.get((request, turn)):
                return waiting.popleft()
        return None

    def _reply(self, made: MadeCall, rows: Callable[[RunRecord, tuple[str, ...]], Any]) -> Any:
        reply = self._store.call_reply(made.number)
        if reply.left_out:
            size = f"{reply.left_out:,} bytes"
            raise self._missed(f"the answer to {made.call.shown} had {size}, and was too long to be kept")
        if reply.error is not None:
            raise _recorded_error(*reply.error)
        if reply.examples is None:
            return reply.answer
        run_id, ids = reply.examples
        return {**cast("dict[str, Any]", reply.answer), "examples": rows(self._store.run(run_id), ids)}

    def _missed(self, text: str) -> NotInTheRecording:
        with self._lock:
            self._misses.append(text)
        return NotInTheRecording(text)

    def _why_not(self, tool: str, turn: int | None) -> str:
        if not self._store.keeps_calls():
            return f"{tool}() cannot be answered: the store was made by a version that did not keep answers of tools"
        where = "" if turn is None else f" in turn {turn}"
        calls = [made.call.shown for made in self._made if turn in (None, made.call.turn)]
        more = f" and {len(calls) - _MOST_LISTED} more" if len(calls) > _MOST_LISTED else ""
        made = f"it made {'; '.join(calls[:_MOST_LISTED])}{more}" if calls else "it made none"
        return f"the agent did not make this call of {tool}(){where}, or not so often, so no answer is known; {made}"


def _request(tool: str, arguments: Mapping[str, Any]) -> str:
    try:
        return request_digest(tool, arguments)
    except (TypeError, ValueError):
        return ""  # nothing like it can have been asked


def _tool(
    name: str, description: Mapping[str, Any], ask: Callable[[str, Mapping[str, Any]], Any]
) -> Callable[..., Any]:
    signature = _signature(description["parameters"])

    def tool(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return ask(name, bound.arguments)

    tool.__name__ = tool.__qualname__ = name
    tool.__doc__ = str(description.get("doc") or "")
    tool.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return tool


def _signature(parameters: Any) -> inspect.Signature:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD

    def made() -> Iterator[inspect.Parameter]:
        for name, has_default, default in parameters:
            yield inspect.Parameter(name, kind, default=default if has_default else inspect.Parameter.empty)

    return inspect.Signature(list(made()))


def _recorded_error(name: str, text: str) -> RecordedError:
    # A new class that is only called so: the name is not looked up anywhere.
    kind = type(name if name.isidentifier() else "RecordedError", (RecordedError,), {"__module__": "__main__"})
    return kind(text)
