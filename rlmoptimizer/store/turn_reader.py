"""Reading the agent's work: prompts that were set, turns, events, and the calls of tools."""

from __future__ import annotations

import itertools
from typing import Any, cast

from rlmoptimizer.records import CandidateRecord, EventRecord, IterationRecord
from rlmoptimizer.store.calls import MadeCall, ToolReply, made_call, tool_reply
from rlmoptimizer.store.json_text import decode
from rlmoptimizer.store.queries import StoreQueries
from rlmoptimizer.store.rows import as_column, event_record, from_column, iteration_record

__all__ = ["CallReader", "TurnReader"]


class TurnReader(StoreQueries):
    """Reads prompts, turns and events."""

    def prompts(self) -> dict[str, str] | None:
        """The prompt map set last; None: none was ever set."""
        every = "SELECT candidates.prompts FROM prompts JOIN candidates ON id = candidate"
        last = f"{every} ORDER BY prompts.number DESC LIMIT 1"
        maps: list[dict[str, str]] = self._read(lambda row: decode(from_column(row[0])), self._query(last))
        return maps[0] if maps else None

    def prompts_set(self) -> tuple[int, int]:
        """How often prompts were set, and how many bytes all the different maps of them have."""
        sizes = "SELECT LENGTH(CAST(prompts AS BLOB)) FROM candidates WHERE id IN (SELECT candidate FROM prompts)"
        (count,) = self._query("SELECT COUNT(*) FROM prompts")[0]
        return count, sum(row[0] for row in self._query(sizes))

    def candidates(self) -> list[CandidateRecord]:
        """Every prompt map that was evaluated or set, once, oldest first."""

        def record(row: tuple[Any, ...]) -> CandidateRecord:
            return CandidateRecord(row[0], row[1], decode(from_column(row[2])), row[3])

        return self._read(record, self._query("SELECT id, parent, prompts, at FROM candidates ORDER BY rowid"))

    def iterations(self) -> list[IterationRecord]:
        """All turns that have ended, oldest first."""
        return self._iterations("WHERE output IS NOT NULL ORDER BY number")

    def iteration_page(self, start: int, stop: int, most_bytes: int) -> list[IterationRecord]:
        """The turns that have ended, from `start` (0: the first) to before `stop`, with so many bytes of text at most.

        The first of them is given however long it is.
        """
        chars = "LENGTH(CAST(reasoning AS BLOB)) + LENGTH(CAST(code AS BLOB)) + LENGTH(CAST(output AS BLOB))"
        window = "WHERE output IS NOT NULL ORDER BY number LIMIT ? OFFSET ?"
        sizes = [row[0] for row in self._query(f"SELECT {chars} FROM iterations {window}", stop - start, start)]
        fitting = sum(size <= most_bytes for size in itertools.accumulate(sizes))
        return self._iterations(window, max(fitting, 1), start)

    def unfinished_iteration(self) -> IterationRecord | None:
        """The turn that was begun and has not ended, if there is one."""
        found = self._iterations("WHERE output IS NULL")
        return found[0] if found else None

    def events(self, kind: str | None = None, *, after: int = 0) -> list[EventRecord]:
        """All events, or those of one kind, oldest first; only those after the one with this number."""
        which, values = ("", ()) if kind is None else (" AND kind = ?", (as_column(kind),))
        rows = self._query(
            f"SELECT number, kind, data, at FROM events WHERE number > ?{which} ORDER BY number", after, *values
        )
        return self._read(event_record, rows)

    def _iterations(self, clause: str, *values: int) -> list[IterationRecord]:
        rows = self._query(f"SELECT number, reasoning, code, output, seconds, at FROM iterations {clause}", *values)
        return self._read(iteration_record, rows)


class CallReader(StoreQueries):
    """Reads the calls of tools."""

    def keeps_calls(self) -> bool:
        """Whether the store is of a version that keeps the calls of tools."""
        return self._query("PRAGMA user_version")[0][0] >= 4

    def calls(self) -> list[MadeCall]:
        """All calls that the agent's code made of its tools, in the order of their answers, without these."""
        if not self.keeps_calls():
            return []
        rows = self._query("SELECT number, turn, tool, shown, request, stray FROM calls ORDER BY number")
        return self._read(made_call, rows)

    def call_reply(self, number: int) -> ToolReply:
        """What the call of this number got. Raises KeyError when there is none."""
        rows = self._query("SELECT answer, examples, error, left_out FROM calls WHERE number = ?", number)
        if not rows:
            raise KeyError(number)
        return self._read(tool_reply, rows)[0]

    def calls_size(self) -> tuple[int, int]:
        """How many calls are kept, and how many bytes what they got has together."""
        size = "LENGTH(CAST(COALESCE(answer, '') AS BLOB)) + LENGTH(CAST(COALESCE(examples, '') AS BLOB))"
        size += " + LENGTH(CAST(COALESCE(error, '') AS BLOB))"
        return cast("tuple[int, int]", self._query(f"SELECT COUNT(*), COALESCE(SUM({size}), 0) FROM calls")[0])
