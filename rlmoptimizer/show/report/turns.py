"""The agent's turns as the page shows them, with what happened around them: deaths of the kernel, notes, pauses."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import TypedDict

from kernel_bridge.text import cut_middle
from rlmoptimizer.records import EventRecord, IterationRecord, RunRecord

__all__ = ["DeathEntry", "NoteEntry", "PauseEntry", "TurnEntry", "Turns", "deaths", "notes", "pauses"]

_MOST_CHARS = 100_000  # of one text; the store has all of it, and so has the notebook


class NoteEntry(TypedDict):
    before_turn: int
    text: str
    at: float


class PauseEntry(TypedDict):
    before_turn: int
    at: float
    seconds: float | None  # None: it goes on, or its process was gone


class DeathEntry(TypedDict):
    turn: int
    reason: str
    at: float


class TurnEntry(TypedDict):
    number: int
    reasoning: str
    code: str
    output: str | None  # None: it was begun and has not ended
    seconds: float | None
    at: float
    runs: list[str]
    prompts_set: list[str]  # steps
    deaths: list[DeathEntry]
    notes: list[NoteEntry]  # that the agent reads from this turn on


class Turns:
    """The turns, the one under way last. A text of more than 100,000 characters loses its middle."""

    def __init__(self, ended: Sequence[IterationRecord], under_way: IterationRecord | None) -> None:
        self._records = [*ended, *([] if under_way is None else [under_way])]
        self._ends = [record.at for record in ended]

    def at(self, time: float) -> int:
        """The turn in which something came up; of what came up after the last one, that one. 0: there was none."""
        return min(bisect_left(self._ends, time) + 1, len(self._records))

    def entries(
        self,
        runs: Iterable[RunRecord],
        events: Sequence[EventRecord],
        died: Sequence[DeathEntry],
        said: Sequence[NoteEntry],
    ) -> list[TurnEntry]:
        made: dict[int, list[str]] = {}
        for run in runs:
            made.setdefault(run.turn, []).append(run.run_id)
        updated: dict[int, list[str]] = {}
        for event in events:
            if event.kind == "PromptUpdated":
                steps = updated.setdefault(self.at(event.at), [])
                if event.data["step"] not in steps:
                    steps.append(event.data["step"])
        return [
            {
                "number": record.number,
                "reasoning": cut_middle(record.reasoning, _MOST_CHARS),
                "code": cut_middle(record.code, _MOST_CHARS),
                "output": None if record.output is None else cut_middle(record.output, _MOST_CHARS),
                "seconds": record.seconds,
                "at": record.at,
                "runs": made.get(record.number, []),
                "prompts_set": updated.get(record.number, []),
                "deaths": [death for death in died if death["turn"] == record.number],
                "notes": [note for note in said if note["before_turn"] == record.number],
            }
            for record in self._records
        ]


def notes(events: Iterable[EventRecord]) -> list[NoteEntry]:
    return [
        {"before_turn": event.data["before_turn"], "text": event.data["text"], "at": event.at}
        for event in events
        if event.kind == "NoteGiven"
    ]


def deaths(events: Iterable[EventRecord]) -> list[DeathEntry]:
    """Of the agent's kernel."""
    return [
        {"turn": event.data["turn"], "reason": event.data["reason"], "at": event.at}
        for event in events
        if event.kind == "KernelDied"
    ]


def pauses(events: Iterable[EventRecord]) -> list[PauseEntry]:
    found: list[PauseEntry] = []
    for event in events:
        if event.kind == "WorkPaused":
            found.append({"before_turn": event.data["before_turn"], "at": event.at, "seconds": None})
        elif event.kind == "WorkUnpaused" and found:
            found[-1]["seconds"] = event.data["seconds"]
    return found
