"""The recording of a compile: what the agent's code was given and asked of its tools, and what it got.

A stored run is replayed from it, without an LM. Everything goes into the run store, before the code gets its answer.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

from kernel_bridge import PagedList
from kernel_bridge.live.signatures import call_signature
from kernel_bridge.text import error_text, shorten
from rlmoptimizer.agent.call_gate import CallGate, OptimizationStopped
from rlmoptimizer.store.calls import AGENT_BEGAN, CELL_ENDED, CellEnd, ToolCall, ToolReply, request_digest
from rlmoptimizer.store.json_text import encode
from rlmoptimizer.store.run_store import RunStore

__all__ = ["CallRecording"]

# A loop of calls that cost nothing must not fill the disk.
_MOST_CALLS: Final = 50_000
_MOST_BYTES: Final = 256_000_000  # of all that calls got
_MOST_ANSWER: Final = 16_000_000  # bytes of one answer
_MOST_VARIABLE: Final = 32_000_000  # bytes of one variable that the agent was given
_SHOWN_CHARS: Final = 200
_SHOWN_VALUE_CHARS: Final = 60
_ERROR_CHARS: Final = 100_000  # as much as a kernel is told of an error


class CallRecording:
    """Records into the store. Thread-safe.

    Args:
        turn: the number of the agent's present turn.
        gate: is told of a store that cannot be written to; the agent is stopped then.
    """

    def __init__(self, store: RunStore, turn: Callable[[], int], gate: CallGate) -> None:
        self._store = store
        self._turn = turn
        self._gate = gate
        self._lock = threading.Lock()  # of the next two
        self._count, self._bytes = store.calls_size()
        self._running: int | None = None  # the turn whose code runs

    def agent_began(
        self, variables: Mapping[str, Any], tools: Mapping[str, Callable[..., Any]], output_fields: list[dict[str, Any]]
    ) -> None:
        """Keep what an agent is given, before its first turn in this process. Raises `StoreCorrupt`.

        The turns before it are in the store: `previous_trajectory` is not kept a second time.
        """
        kept: dict[str, Any] = {}
        left_out: dict[str, int] = {}
        for name, value in variables.items():
            if name == "previous_trajectory":
                continue
            size = len(encode(value).encode("utf-8", "surrogatepass"))
            if size > _MOST_VARIABLE:
                left_out[name] = size
            else:
                kept[name] = value
        self._store.record_event(
            AGENT_BEGAN,
            {
                "turn": self._turn() + 1,
                "variables": kept,
                "left_out": left_out,
                "tools": {name: _described(tool) for name, tool in tools.items()},
                "output_fields": output_fields,
            },
        )

    @contextmanager
    def cell(self) -> Generator[None]:
        """Around the code of the present turn."""
        self._running = self._turn()
        try:
            yield
        finally:
            self._running = None

    def cell_ended(self, ended: CellEnd) -> None:
        """Keep how the code of the present turn ended. Raises `StoreCorrupt`."""
        self._store.record_event(CELL_ENDED, {"turn": self._turn(), "ended": ended})

    def recorded(self, name: str, tool: Callable[..., Any]) -> Callable[..., Any]:
        """`tool`, each call of which is kept with what it got, also when it is refused."""
        signature = call_signature(tool)

        @functools.wraps(tool)
        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with self._asked(name, bound.arguments) as keep:
                answer = tool(*args, **kwargs)
                keep(answer)
            return answer

        return call

    def judging(self, judge: Callable[[dict[str, Any]], None]) -> Callable[[dict[str, Any]], None]:
        """`judge` of submissions, each of which is kept, also when it is refused."""

        def judged(fields: dict[str, Any]) -> None:
            with self._asked("SUBMIT", fields) as keep:
                judge(fields)
                keep(None)

        return judged

    @contextmanager
    def _asked(self, tool: str, arguments: Mapping[str, Any]) -> Generator[Callable[[Any], None]]:
        """Around a call: gives what is to be called with its answer. An `Exception` of the block is kept."""
        turn, in_cell = self._turn(), self._running
        shown = _written(tool, arguments)
        try:
            request = request_digest(tool, arguments)
        except (TypeError, ValueError):  # an interpreter of the user's may hand in anything
            request = ""

        def keep(reply: ToolReply) -> None:
            stray = in_cell != turn or self._running != turn
            self._keep(ToolCall(turn, tool, shown, request, stray), reply)

        try:
            yield lambda answer: keep(self._reply(answer))
        except OptimizationStopped:  # by its host, which says nothing of what was asked
            raise
        except Exception as error:
            keep(ToolReply(error=(type(error).__name__, error_text(error, _ERROR_CHARS))))
            raise

    def _reply(self, answer: Any) -> ToolReply:
        """With the rows of a run named, where all that they show has come to its end."""
        if not isinstance(answer, dict):
            return ToolReply(answer)
        fields = cast("dict[str, Any]", answer)
        run_id, rows = fields.get("run_id"), fields.get("examples")
        if isinstance(rows, PagedList):
            # Rows without a verdict may change here as they may for the agent, who reads them when it touches them.
            run_id, ids = rows.key
            planned = self._store.planned_ids(run_id)
            return ToolReply({**fields, "examples": []}, examples=(run_id, planned if ids is None else tuple(ids)))
        if not rows or not isinstance(run_id, str) or not isinstance(rows, list):
            return ToolReply(fields)
        ids = tuple(row["example_id"] for row in cast("list[dict[str, Any]]", rows))
        if not self._store.complete_ids(run_id).issuperset(ids):
            return ToolReply(fields)
        return ToolReply({**fields, "examples": []}, examples=(run_id, ids))

    def _keep(self, call: ToolCall, reply: ToolReply) -> None:
        if not call.request:
            return
        try:
            size = _size(reply)
            with self._lock:
                if self._count >= _MOST_CALLS:
                    return
                self._count += 1
                if size > _MOST_ANSWER or self._bytes + size > _MOST_BYTES:
                    reply, size = ToolReply(left_out=size), 0
                self._bytes += size
            self._store.record_call(call, reply)
        except Exception as error:  # noqa: BLE001 - of the store: for the caller of compile(), not for the agent
            self._gate.fail(error)
            raise OptimizationStopped from None


def _size(reply: ToolReply) -> int:
    """Bytes of what is stored of it; those of what is not plain are not known, and it is not kept."""
    try:
        parts = [encode(part) for part in (reply.answer, reply.examples, reply.error) if part is not None]
    except (TypeError, ValueError):
        return _MOST_BYTES + 1
    return sum(len(part.encode("utf-8", "surrogatepass")) for part in parts)


def _written(tool: str, arguments: Mapping[str, Any]) -> str:
    """A call as one would write it; long values are shortened."""
    values: list[str] = []
    for name, value in arguments.items():
        shown = value[:_SHOWN_CHARS] if isinstance(value, str) else value
        with contextlib.suppress(TypeError, ValueError, RecursionError):
            values.append(f"{name}={shorten(encode(shown), _SHOWN_VALUE_CHARS)}")
    return shorten(f"{tool}({', '.join(values)})", _SHOWN_CHARS)


def _described(tool: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults of a tool's parameters, and its docstring."""
    parameters = [
        [parameter.name, parameter.default is not parameter.empty, _plain_default(parameter)]
        for parameter in call_signature(tool).parameters.values()
    ]
    return {"parameters": parameters, "doc": inspect.getdoc(tool) or ""}


def _plain_default(parameter: inspect.Parameter) -> Any:
    default = parameter.default
    return default if default is None or type(default) in (bool, int, float, str) else None
