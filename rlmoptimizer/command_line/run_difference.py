"""Two runs compared: their prompts word by word, and the examples that both have a verdict for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kernel_bridge.text import printable, printable_line, shorten_list
from rlmoptimizer.command_line.run_table import score_text
from rlmoptimizer.command_line.spans import Line, Span, Style
from rlmoptimizer.comparison import direction, sign_test
from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.outcome.word_diff import Change, word_diff
from rlmoptimizer.records import RunRecord, mean
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.text import count_text

__all__ = ["RunDifference"]

_MOST_CHANCE = 0.05
_MOST_NAMED = 100  # examples in a line of text
_MARKS: dict[str, tuple[Style, str, str]] = {
    "same": ("", "", ""),
    "removed": ("red", "[-", "-]"),
    "added": ("green", "{+", "+}"),
}


@dataclass(frozen=True, slots=True)
class RunDifference:
    """What changed from run `a` to run `b`. Differences are b - a."""

    a: RunRecord
    b: RunRecord
    n: int  # examples that both have a verdict for; of runs on different splits there are none
    before: float | None  # mean score of these, 0..1; None: there are none
    after: float | None
    fixed: tuple[str, ...]  # ids of those whose score rose
    broken: tuple[str, ...]  # ids of those whose score fell
    prompts: dict[str, list[Change]]  # by step, those whose prompts differ

    @classmethod
    def of(cls, store: StoreReader, run_a: str, run_b: str) -> RunDifference:
        """Read it. Raises `UnknownRunError`."""
        a, b = store.run(run_a), store.run(run_b)
        was, now = ({one: mean(scores) for one, scores in store.scores(run.run_id).items()} for run in (a, b))
        common = [one for one in was if one in now] if a.split == b.split else []
        change = {one: direction(was[one], now[one]) for one in common}
        return cls(
            a,
            b,
            len(common),
            mean([was[one] for one in common]) if common else None,
            mean([now[one] for one in common]) if common else None,
            tuple(one for one in common if change[one] > 0),
            tuple(one for one in common if change[one] < 0),
            {
                step: word_diff(a.prompts.get(step, ""), text)
                for step, text in b.prompts.items()
                if a.prompts.get(step) != text
            },
        )

    @property
    def p_value(self) -> float:
        """Of the two-sided sign test on the examples that changed."""
        return sign_test(len(self.fixed), len(self.broken))

    @property
    def is_shown(self) -> bool:
        """Whether the examples may be named."""
        return self.a.split == self.b.split == "train"

    def as_dict(self) -> dict[str, Any]:
        """What `--json` writes."""
        difference = None if self.before is None or self.after is None else self.after - self.before
        return {
            "run_a": self.a.run_id,
            "run_b": self.b.run_id,
            "split": self.a.split if self.a.split == self.b.split else None,
            "n": self.n,
            "score_a": percent(self.before),
            "score_b": percent(self.after),
            "difference": percent(difference),
            "better": len(self.fixed),
            "worse": len(self.broken),
            "same": self.n - len(self.fixed) - len(self.broken),
            "p_value": self.p_value,
            "fixed": list(self.fixed) if self.is_shown else None,
            "broken": list(self.broken) if self.is_shown else None,
            "prompts": {step: [list(change) for change in changes] for step, changes in self.prompts.items()},
        }

    def lines(self) -> Iterator[Line]:
        """For a terminal."""
        yield from self._score_lines()
        if not self.prompts:
            yield [("", "the prompts are the same")]
        indent: Span = ("", "  ")
        for step, changes in self.prompts.items():
            yield []
            yield [("bold", f"prompt of {printable_line(step)}")]
            yield from ([indent, *line] for line in _change_lines(changes))

    def _score_lines(self) -> Iterator[Line]:
        if self.a.split != self.b.split:
            yield [
                ("bold", f"{self.a.run_id} on {self.a.split} and {self.b.run_id} on {self.b.split}"),
                ("", ": no examples in common"),
            ]
            return
        title: Span = ("bold", f"{self.a.run_id} to {self.b.run_id} on {self.a.split}")
        if self.before is None or self.after is None:
            yield [title, ("", ": no example has a verdict in both")]
            return
        points = 100 * (self.after - self.before)
        scores = f": {score_text(self.before)} to {score_text(self.after)} on {count_text(self.n, 'example')}, "
        yield [title, ("", scores), (_tone(points), f"{points:+.2f} points")]
        same = self.n - len(self.fixed) - len(self.broken)
        chance = ", may be chance" if self.p_value > _MOST_CHANCE else ""
        counts = f"{len(self.fixed)} better, {len(self.broken)} worse, {same} same"
        yield [("", f"{counts}; sign test p = {self.p_value:.2g}{chance}")]
        if not self.is_shown:
            yield [("dim", f"examples of {self.a.split} are never shown")]
            return
        if self.fixed:
            yield [("green", "fixed: "), ("", _names(self.fixed))]
        if self.broken:
            yield [("red", "broken: "), ("", _names(self.broken))]


def _change_lines(changes: Sequence[Change]) -> Iterator[Line]:
    """The text with marks around what was removed and added, line by line."""
    line: list[Span] = []
    for kind, text in changes:
        style, begin, end = _MARKS[kind]
        parts = printable(text, None).split("\n")
        for place, part in enumerate(parts):
            if place:
                yield line
                line = []
            # A change of several lines is marked in each of them; an empty one shows that its end was added or removed.
            if part or (kind != "same" and place < len(parts) - 1):
                line.append((style, f"{begin}{part}{end}"))
    yield line


def _names(ids: Sequence[str]) -> str:
    return shorten_list([printable_line(one) for one in ids], _MOST_NAMED)


def _tone(points: float) -> Style:
    return "green" if points > 0 else "red" if points < 0 else ""
