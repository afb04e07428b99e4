"""Passages that prompts have copied from rows of train. No dspy.

A passage is copied from a row when each 8 words in a row of it stand in the prompt and did not stand in any prompt
before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rlmoptimizer.outcome.words import Words, windows, word_spans, words_of

__all__ = ["CopiedPassage", "Passages"]

_LEAST_WORDS: Final = 8  # of a copied passage
_STRIDE: Final = 4  # half of it: of 8 words in a row the places of two are multiples of 4
_SHOWN: Final = 10  # passages of each step, and ids of rows of one passage
_TEXT_CHARS: Final = 500  # of a passage


@dataclass(frozen=True, slots=True)
class CopiedPassage:
    """A passage of a prompt that stands in rows of train."""

    step: str
    words: int  # its length
    text: str  # as it stands in the prompt, at most 500 characters of it
    row_count: int
    example_ids: tuple[str, ...]  # the first of these rows, at most 10


class Passages:
    """The copied passages of all prompts, found row by row."""

    def __init__(self, prompts: Mapping[str, str], old: Sequence[Words]) -> None:
        self._prompts = prompts
        known = {gram for words in old for gram in windows(words, _LEAST_WORDS)}
        self._places: dict[Words, dict[str, int]] = {}  # 8 new words -> where they stand first, by step
        for step, text in prompts.items():
            for place, gram in enumerate(windows(words_of(text), _LEAST_WORDS)):
                if gram not in known:
                    self._places.setdefault(gram, {}).setdefault(step, place)
        # Few rows hold such a pair of words by chance, so hardly more than a fourth of all words is looked at.
        self._pairs = {(gram[at], gram[at + _STRIDE]) for gram in self._places for at in range(_STRIDE)}
        self._rows: dict[tuple[str, Words], dict[str, None]] = {}  # passage -> ids of its rows

    def look_at(self, example_id: str, text: str) -> None:
        if not self._places:
            return
        words = words_of(text)
        pairs = self._pairs
        hits = [
            at for at, pair in enumerate(zip(words[::_STRIDE], words[_STRIDE::_STRIDE], strict=False)) if pair in pairs
        ]
        starts: defaultdict[str, list[int]] = defaultdict(list)
        for hit in hits:
            last = hit * _STRIDE  # windows of 8 that hold both words of the pair begin at it or up to 3 before
            for start in range(max(last - _STRIDE + 1, 0), last + 1):
                for step in self._places.get(words[start : start + _LEAST_WORDS], ()):
                    starts[step].append(start)
        for step, begun in starts.items():
            for first, end in _runs(begun):
                passage = words[first : end + _LEAST_WORDS]
                self._rows.setdefault((step, passage), {})[example_id] = None

    def row_count(self, most: int) -> int:
        """How many rows have been copied from, going by passages that stand in at most `most` rows."""
        return len({example_id for ids in self._rows.values() if len(ids) <= most for example_id in ids})

    def found(self) -> Iterator[CopiedPassage]:
        by_step: defaultdict[str, list[Words]] = defaultdict(list)
        for step, passage in self._rows:
            by_step[step].append(passage)
        for step, found in by_step.items():
            spans = word_spans(self._prompts[step])
            for passage in sorted(found, key=lambda one: (-len(one), one))[:_SHOWN]:
                first = self._places[passage[:_LEAST_WORDS]][step]
                last = min(first + len(passage), len(spans)) - 1
                text = self._prompts[step][spans[first][0] : spans[last][1]]
                if words_of(text) != passage:  # it is pieced together from several places
                    text = " ".join(passage)
                ids = tuple(self._rows[step, passage])
                yield CopiedPassage(step, len(passage), text[:_TEXT_CHARS], len(ids), ids[:_SHOWN])


def _runs(starts: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of every run of whole numbers that follow each other; `starts` ascend."""
    first = last = starts[0]
    for start in starts[1:]:
        if start != last + 1:
            yield first, last
            first = start
        last = start
    yield first, last
