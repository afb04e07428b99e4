"""Which part of a long REPL history the root LM gets: the newest turns whole, of older ones less.

What is left out stays left out, and it is left out in large steps. So the requests of many turns in a row begin alike,
which is what an LM's prompt cache needs.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from dspy.primitives.repl_types import REPLEntry, REPLHistory

__all__ = ["TURNS_VARIABLE", "Cut", "HistoryTrim", "TrimmedHistory"]

TURNS_VARIABLE: Final = "previous_trajectory"  # of the REPL: the agent's turns that its history does not tell whole
_FULL: Final = 0.75  # of the limit, to which a history that has grown above it is trimmed
_OLD_CODE: Final = 0.25  # of the limit, that the reasoning and the code of turns without their output may take
_FRAME_CHARS: Final = 100  # of headings and fences around a turn, or of a line in the place of an output


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left out of a history: the first `turns` turns, and the output of the first `outputs`."""

    turns: int = 0
    outputs: int = 0


class HistoryTrim:
    """Decides what is left out of one growing history. Used by one thread at a time.

    Args:
        most_chars: of reasoning, code and outputs together; None: nothing is ever left out.
        max_output_chars: that are shown of one turn's output.
    """

    def __init__(self, most_chars: int | None, max_output_chars: int) -> None:
        self._most = most_chars
        self._max_output = max_output_chars
        self._seen: list[REPLEntry] = []  # the history up to the last call
        self._shown_chars = 0  # of it, beside the cut
        self._code_chars = 0  # of that, of the turns whose output is left out
        self.cut = Cut()

    def look(self, entries: Sequence[REPLEntry]) -> Cut:
        """What to leave out now. A history that does not go on from the last one begins anew."""
        if self._most is None:
            return self.cut
        known = len(self._seen)
        if known > len(entries) or any(a is not b for a, b in zip(self._seen, entries, strict=False)):
            self._seen, self._shown_chars, self._code_chars, self.cut = [], 0, 0, Cut()
            known = 0
        for entry in entries[known:]:
            self._seen.append(entry)
            self._shown_chars += self._code(entry) + self._output(entry)
            if self._shown_chars > self._most:
                self._trim()
        return self.cut

    def _trim(self) -> None:
        """Leave out outputs, the oldest first, and of the oldest turns all. The last turn stays."""
        assert self._most is not None
        turns, outputs, last = self.cut.turns, self.cut.outputs, len(self._seen) - 1
        while self._shown_chars > _FULL * self._most and outputs < last:
            self._shown_chars -= self._output(self._seen[outputs]) - _FRAME_CHARS
            self._code_chars += self._code(self._seen[outputs]) + _FRAME_CHARS
            outputs += 1
            while self._code_chars > _OLD_CODE * self._most:
                chars = self._code(self._seen[turns]) + _FRAME_CHARS
                self._code_chars -= chars
                self._shown_chars -= chars
                turns += 1
        self.cut = Cut(turns, outputs)

    def _code(self, entry: REPLEntry) -> int:
        return len(entry.reasoning) + len(entry.code) + _FRAME_CHARS

    def _output(self, entry: REPLEntry) -> int:
        return min(len(entry.output), self._max_output) + _FRAME_CHARS


class TrimmedHistory(REPLHistory):
    """A history that shows itself without what was left out, and says where that can be read.

    `entries` are all of them. `before`: the turns of earlier processes, with which the list in the REPL begins that has
    all that is left out; None: nothing can be read any more.
    """

    cut: Cut = Cut()
    before: int | None = None

    @classmethod
    def of(cls, history: REPLHistory, cut: Cut, before: int | None) -> TrimmedHistory:
        """`history` without what `cut` leaves out."""
        return cls(entries=history.entries, max_output_chars=history.max_output_chars, cut=cut, before=before)

    def beginning(self) -> str | None:
        """What stands in the place of the turns that are left out; None: none is."""
        count = self.cut.turns
        if not count:
            return None
        steps = "Step 1 is" if count == 1 else f"Steps 1 to {count} are"
        if self.before is None:
            return f"[{steps} left out]"
        return f"[{steps} left out; {TURNS_VARIABLE}[{self.before}:{self.before + count}] has all of it]"

    def output_of(self, index: int) -> str:
        """What is shown of the output of a turn, or what stands in its place."""
        output = self.entries[index].output
        if index >= self.cut.outputs:
            return REPLEntry.format_output(output, self.max_output_chars)
        said = f"Output ({len(output):,} chars): left out"
        return said if self.before is None else f'{said}; print {TURNS_VARIABLE}[{self.before + index}]["output"]'

    def format(self) -> str:
        """As DSPy's own, which the adapters call."""
        if not self.cut.outputs:
            return super().format()
        shown = [self._step(index) for index in range(self.cut.turns, len(self.entries))]
        beginning = self.beginning()
        return "\n".join(shown if beginning is None else [beginning, *shown])

    def _step(self, index: int) -> str:
        entry = self.entries[index]
        whole = entry.format(index=index, max_output_chars=self.max_output_chars)
        if index >= self.cut.outputs:
            return whole
        return whole.removesuffix(REPLEntry.format_output(entry.output, self.max_output_chars)) + self.output_of(index)
