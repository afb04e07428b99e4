"""Labels that only one row of train has, and that prompts name. No dspy."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rlmoptimizer.outcome.words import TrainRow, Words, texts_in, windows, words_of

__all__ = ["Labels", "NamedLabel"]

_LABEL_WORDS: Final = 50  # of a label that is looked for; a longer one is found as a passage
_LABEL_CHARS: Final = 4  # of a label of one word
_LABELS: Final = 100  # of one field of a row; more texts or numbers are data, and none of them is looked for
_CLASSES: Final = 0.75  # a field with fewer different labels than this share of its rows has classes
_SHOWN: Final = 10  # labels of each step
_TEXT_CHARS: Final = 500  # of a label


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """A label that only one row has, named by a prompt."""

    step: str
    field: str
    label: str  # at most 500 characters of it
    example_id: str


class Labels:
    """The labels of the rows, by field, and which of them only one row has."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Words], list[str]] = {}  # at most two ids of the rows with a label
        self._labelled: Counter[str] = Counter()  # rows by field
        self._distinct: Counter[str] = Counter()  # labels by field

    def add(self, row: TrainRow) -> None:
        for field, value in row.expected.items():
            texts = list(itertools.islice(texts_in(value, numbers=True), _LABELS + 1))
            if len(texts) > _LABELS:
                continue
            self._labelled[field] += 1
            # Of a label that is too long to be looked for, no more is kept than tells that it is.
            for label in {words_of(text)[: _LABEL_WORDS + 1] for text in texts}:
                ids = self._rows.setdefault((field, label), [])
                self._distinct[field] += not ids
                if len(ids) < 2:
                    ids.append(row.example_id)

    def named_in(self, prompts: Mapping[str, str], old: Sequence[Words]) -> Iterator[NamedLabel]:
        """Not counted are names of classes, which a prompt should give: a class that is rare in train may have one row.
        Nor are labels of a single short word, and those that a prompt named before."""
        single: dict[Words, list[tuple[str, str]]] = {}
        for (field, label), ids in self._rows.items():
            is_class = self._distinct[field] < _CLASSES * self._labelled[field]
            telling = len(label) > 1 or (len(label) == 1 and len(label[0]) >= _LABEL_CHARS)
            if len(ids) == 1 and telling and len(label) <= _LABEL_WORDS and not is_class:
                single.setdefault(label, []).append((field, ids[0]))
        lengths = sorted({len(label) for label in single}, reverse=True)
        for words in old:
            for length in lengths:
                for window in windows(words, length):
                    single.pop(window, None)
        for step, text in prompts.items():
            words = words_of(text)
            found = {window: None for length in lengths for window in windows(words, length) if window in single}
            for label in list(found)[:_SHOWN]:
                for field, example_id in single[label]:
                    yield NamedLabel(step, field, " ".join(label)[:_TEXT_CHARS], example_id)
