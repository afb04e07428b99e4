"""The agent's turns as the store has them, for a notebook: how each ended, and what an agent began with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from rlmoptimizer.errors import StoreCorrupt
from rlmoptimizer.outcome.turn_rows import TurnRows
from rlmoptimizer.records import IterationRecord
from rlmoptimizer.store.calls import AGENT_BEGAN, CELL_ENDED, CellEnd
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["ERROR_MARK", "AgentStart", "TurnEnd", "TurnRecord", "agent_starts", "turn_records"]

ERROR_MARK: Final = "[Error] "  # before the text of an error, as DSPy tells it to an agent

# "cut": the process ended before the code did. "not_run": there was no code, or it was not run.
TurnEnd: TypeAlias = CellEnd | Literal["cut", "not_run"]
_KNOWN: Final[Mapping[str, CellEnd]] = {"ok": "ok", "error": "error", "submitted": "submitted", "died": "died"}
_FINAL: Final = "FINAL: "  # before what was submitted
_DIED: Final = ("The kernel died while this cell ran:", "The REPL has ended and cannot be used any more:")
_CUT: Final = "[Cut] "  # the output that a process gives to a turn that it found unfinished
_NOT_RUN: Final = ("This was not run:", "Your answer could not be read, nothing was run.")


@dataclass(frozen=True, slots=True)
class AgentStart:
    """What an agent was given when a process began or resumed its work."""

    turn: int  # its first
    variables: Mapping[str, Any]  # by name; without `previous_trajectory`, and those in `left_out`
    left_out: Mapping[str, int]  # name -> bytes of variables that were too long to be kept
    tools: Mapping[str, Any]  # name -> {"parameters": [[name, has a default, default]], "doc"}
    output_fields: list[dict[str, Any]]  # what SUBMIT took

    def given(self, store: StoreReader, turn: int) -> dict[str, Any]:
        """The variables as of a turn, with the turns before it. Without those that were too long to be kept."""
        return {**self.variables, "previous_trajectory": TurnRows(store).readable(turn, self.turn - 1)}


@dataclass(frozen=True, slots=True)
class TurnRecord:
    """One turn of the agent."""

    number: int  # 1-based
    reasoning: str
    code: str
    output: str | None  # as the agent got it; None: the turn had not ended
    seconds: float | None  # the root LM's thinking included; None: not known
    ended: TurnEnd


def agent_starts(store: StoreReader) -> list[AgentStart]:
    """Oldest first; `[]` for a store that does not say. Raises `StoreCorrupt`."""
    names = ("turn", "variables", "left_out", "tools", "output_fields")
    try:
        return [AgentStart(*(event.data[name] for name in names)) for event in store.events(AGENT_BEGAN)]
    except KeyError as error:
        raise StoreCorrupt(str(store.path), f"what the agent began with lacks {error}") from error


def turn_records(store: StoreReader) -> list[TurnRecord]:
    """Every turn that was begun, oldest first. Raises `StoreCorrupt`."""
    ends = {event.data.get("turn"): event.data.get("ended") for event in store.events(CELL_ENDED)}
    unfinished = store.unfinished_iteration()
    turns = [*store.iterations(), *([] if unfinished is None else [unfinished])]
    told = bool(ends)
    return [
        TurnRecord(
            turn.number,
            turn.reasoning,
            turn.code,
            turn.output,
            turn.seconds,
            _end(turn, ends.get(turn.number), told=told),
        )
        for turn in turns
    ]


def _end(turn: IterationRecord, ended: str | None, *, told: bool) -> TurnEnd:
    if turn.output is None or turn.output.startswith(_CUT):
        return "cut"
    if told:
        return _KNOWN.get(ended or "", "not_run")
    if turn.output.startswith(_FINAL):
        return "submitted"
    if not turn.output.startswith(ERROR_MARK):
        return "ok"
    text = turn.output[len(ERROR_MARK) :]
    if text.startswith(_NOT_RUN):
        return "not_run"
    return "died" if any(one in text for one in _DIED) else "error"
