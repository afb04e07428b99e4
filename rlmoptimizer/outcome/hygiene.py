"""What is suspicious in new prompts: text copied from train, a label named, sentences repeated, growth. No dspy.

A word is a run of letters and digits, whatever its case (in Japanese and Chinese each character is one). A passage is
copied from a row when each 8 words in a row of it stand in the prompt and did not stand in any prompt before.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol, cast

from rlmoptimizer.text import token_estimate

__all__ = [
    "CopiedPassage",
    "Growth",
    "Hygiene",
    "NamedLabel",
    "RepeatedSentence",
    "TrainRow",
    "check_hygiene",
    "texts_in",
]

LEAST_WORDS: Final = 8  # of a copied passage
_STRIDE: Final = 4  # half of it: of 8 words in a row the places of two are multiples of 4
_SENTENCE_WORDS: Final = 5  # of a sentence that counts as repeated
_LABEL_WORDS: Final = 50  # of a label that is looked for; a longer one is found as a passage
_LABEL_CHARS: Final = 4  # of a label of one word
_SHOWN: Final = 10  # findings of a kind for each step, and ids of rows of one finding
_TEXT_CHARS: Final = 500  # of a passage or sentence
_GROWTH_TIMES: Final = 5  # a prompt that has grown so much, and
_GROWTH_TOKENS: Final = 1000  # has so many tokens, is worth a warning

_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff"  # kana and ideographs: written without spaces
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
_ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")

Words = tuple[str, ...]


class TrainRow(Protocol):
    """A row of train; an `ExampleResult` is one."""

    @property
    def example_id(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...  # plain values
    @property
    def expected(self) -> Mapping[str, Any]: ...  # plain values


@dataclass(frozen=True, slots=True)
class CopiedPassage:
    """A passage of a prompt that stands in rows of train."""

    step: str
    words: int  # its length
    text: str  # as it stands in the prompt, at most 500 characters of it
    row_count: int
    example_ids: tuple[str, ...]  # the first of these rows, at most 10


@dataclass(frozen=True, slots=True)
class NamedLabel:
    """A label that only one row has, named by a prompt."""

    step: str
    field: str
    label: str  # at most 500 characters of it
    example_id: str


@dataclass(frozen=True, slots=True)
class RepeatedSentence:
    """A sentence that a prompt holds several times, and more often than before."""

    step: str
    text: str
    times: int


@dataclass(frozen=True, slots=True)
class Growth:
    """The length of a prompt, in tokens by `token_estimate`."""

    step: str
    tokens_before: int
    tokens_after: int


@dataclass(frozen=True, slots=True)
class Hygiene:
    """What was found in the new prompts; of each kind at most 10 findings a step, the longest first."""

    copied: tuple[CopiedPassage, ...]
    labels: tuple[NamedLabel, ...]
    repeated: tuple[RepeatedSentence, ...]
    growth: tuple[Growth, ...]  # of every step
    rows: int  # that were looked at

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each kind of finding, about its worst one, the gravest kind first; () when all is well."""
        return tuple(
            line for line in (self._of_labels(), self._of_copied(), *self._of_growth(), self._of_repeated()) if line
        )

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "warnings": list(self.warnings)}

    def _of_labels(self) -> str | None:
        if not self.labels:
            return None
        ids = {label.example_id for label in self.labels}
        first = self.labels[0]
        return (
            f"the prompt of step {first.step!r} names the label of example {first.example_id} of train alone"
            f"{f' (and {len(ids) - 1} more like it)' if len(ids) > 1 else ''}: it may know answers instead of the rule"
        )

    def _of_copied(self) -> str | None:
        # What stands in most rows is the task's own wording.
        single = [passage for passage in self.copied if 2 * passage.row_count <= max(self.rows, 2)]
        if not single:
            return None
        worst = max(single, key=lambda passage: passage.words)
        rows = f"example{'' if worst.row_count == 1 else 's'} {', '.join(worst.example_ids)}"
        more = f" and {worst.row_count - len(worst.example_ids)} more" if worst.row_count > _SHOWN else ""
        return f"the prompt of step {worst.step!r} holds {worst.words} words in a row of {rows}{more} of train"

    def _of_growth(self) -> Iterator[str]:
        grown = [
            one for one in self.growth if one.tokens_after >= max(_GROWTH_TOKENS, _GROWTH_TIMES * one.tokens_before)
        ]
        if grown:
            worst = max(grown, key=lambda one: one.tokens_after)
            yield (
                f"the prompt of step {worst.step!r} has grown from about {worst.tokens_before:,} to "
                f"{worst.tokens_after:,} tokens, which every call pays for"
            )

    def _of_repeated(self) -> str | None:
        if not self.repeated:
            return None
        worst = max(self.repeated, key=lambda one: one.times)
        return f"the prompt of step {worst.step!r} says one sentence {worst.times} times"


def check_hygiene(before: Mapping[str, str], after: Mapping[str, str], train: Iterable[TrainRow]) -> Hygiene:
    """Look for what is suspicious in the prompts `after`, both maps from step to text.

    `train` is read once. Takes time in proportion to its length: 2 s for 5,000 rows of 20 kB, three times as
    long where the texts are not ASCII.
    """
    old = [_words(text) for text in before.values()]
    changed = {step: text for step, text in after.items() if text != before.get(step)}
    passages = _Passages(changed, old)
    labels = _Labels()
    rows = 0
    for row in train:
        rows += 1
        for text in (*texts_in(row.inputs), *texts_in(row.expected)):
            passages.look_at(row.example_id, text)
        labels.add(row)
    return Hygiene(
        copied=tuple(passages.found()),
        labels=tuple(labels.named_in(changed, old)),
        repeated=tuple(one for step, text in changed.items() for one in _repeated(step, text, before.get(step, ""))),
        growth=tuple(
            Growth(step, token_estimate(before.get(step, "")), token_estimate(text)) for step, text in after.items()
        ),
        rows=rows,
    )


class _Passages:
    """The copied passages of all prompts, found row by row."""

    def __init__(self, prompts: Mapping[str, str], old: Sequence[Words]) -> None:
        self._prompts = prompts
        known = {gram for words in old for gram in _windows(words, LEAST_WORDS)}
        self._places: dict[Words, dict[str, int]] = {}  # 8 new words -> where they stand first, by step
        for step, text in prompts.items():
            for place, gram in enumerate(_windows(_words(text), LEAST_WORDS)):
                if gram not in known:
                    self._places.setdefault(gram, {}).setdefault(step, place)
        # Few rows hold such a pair of words by chance, so hardly more than a fourth of all words is looked at.
        self._pairs = {(gram[at], gram[at + _STRIDE]) for gram in self._places for at in range(_STRIDE)}
        self._rows: dict[tuple[str, Words], dict[str, None]] = {}  # passage -> ids of its rows

    def look_at(self, example_id: str, text: str) -> None:
        if not self._places:
            return
        words = _words(text)
        pairs = self._pairs
        hits = [
            at for at, pair in enumerate(zip(words[::_STRIDE], words[_STRIDE::_STRIDE], strict=False)) if pair in pairs
        ]
        starts: defaultdict[str, list[int]] = defaultdict(list)
        for hit in hits:
            last = hit * _STRIDE  # windows of 8 that hold both words of the pair begin at it or up to 3 before
            for start in range(max(last - _STRIDE + 1, 0), last + 1):
                for step in self._places.get(tuple(words[start : start + LEAST_WORDS]), ()):
                    starts[step].append(start)
        for step, begun in starts.items():
            for first, end in _runs(begun):
                passage = tuple(words[first : end + LEAST_WORDS])
                self._rows.setdefault((step, passage), {})[example_id] = None

    def found(self) -> Iterator[CopiedPassage]:
        by_step: defaultdict[str, list[Words]] = defaultdict(list)
        for step, passage in self._rows:
            by_step[step].append(passage)
        for step, found in by_step.items():
            spans = [match.span() for match in _WORD.finditer(self._prompts[step])]
            for passage in sorted(found, key=lambda one: (-len(one), one))[:_SHOWN]:
                first = self._places[passage[:LEAST_WORDS]][step]
                last = min(first + len(passage), len(spans)) - 1
                text = self._prompts[step][spans[first][0] : spans[last][1]]
                if _words(text) != passage:  # it is pieced together from several places
                    text = " ".join(passage)
                ids = tuple(self._rows[step, passage])
                yield CopiedPassage(step, len(passage), text[:_TEXT_CHARS], len(ids), ids[:_SHOWN])


class _Labels:
    """The labels of the rows, by field, and which of them only one row has."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, Words], list[str]] = {}  # at most two ids of the rows with a label
        self._labelled: Counter[str] = Counter()  # rows by field
        self._distinct: Counter[str] = Counter()  # labels by field

    def add(self, row: TrainRow) -> None:
        for field, value in row.expected.items():
            self._labelled[field] += 1
            for label in {tuple(_words(text)) for text in texts_in(value, numbers=True)}:
                ids = self._rows.setdefault((field, label), [])
                self._distinct[field] += not ids
                if len(ids) < 2:
                    ids.append(row.example_id)

    def named_in(self, prompts: Mapping[str, str], old: Sequence[Words]) -> Iterator[NamedLabel]:
        """Not counted are names of classes: labels of a field in which most labels are shared. Nor are labels of a
        single short word, and those that a prompt named before."""
        single: dict[Words, list[tuple[str, str]]] = {}
        for (field, label), ids in self._rows.items():
            is_class = 2 * self._distinct[field] <= self._labelled[field]
            telling = len(label) > 1 or (len(label) == 1 and len(label[0]) >= _LABEL_CHARS)
            if len(ids) == 1 and telling and len(label) <= _LABEL_WORDS and not is_class:
                single.setdefault(label, []).append((field, ids[0]))
        lengths = sorted({len(label) for label in single}, reverse=True)
        for words in old:
            for length in lengths:
                for window in _windows(words, length):
                    single.pop(window, None)
        for step, text in prompts.items():
            words = _words(text)
            found = {window: None for length in lengths for window in _windows(words, length) if window in single}
            for label in list(found)[:_SHOWN]:
                for field, example_id in single[label]:
                    yield NamedLabel(step, field, " ".join(label)[:_TEXT_CHARS], example_id)


def _repeated(step: str, text: str, before: str) -> list[RepeatedSentence]:
    def sentences(prompt: str) -> Iterator[tuple[Words, str]]:
        for sentence in _SENTENCE_END.split(prompt):
            words = tuple(_words(sentence))
            if len(words) >= _SENTENCE_WORDS:
                yield words, sentence.strip()

    old = Counter(words for words, _ in sentences(before))
    new = Counter(words for words, _ in sentences(text))
    first = dict(reversed(list(sentences(text))))
    often = [words for words, times in new.items() if times > max(old[words], 1)]
    often.sort(key=lambda words: (-new[words], -len(words), words))
    return [RepeatedSentence(step, first[words][:_TEXT_CHARS], new[words]) for words in often[:_SHOWN]]


def _words(text: str) -> Words:
    if text.isascii():
        return tuple(text.translate(_ASCII_WORDS).split())  # the same, ten times as fast
    return tuple(word.casefold() for word in _WORD.findall(text))


def _windows(words: Words, length: int) -> Iterator[Words]:
    return (words[start : start + length] for start in range(len(words) - length + 1))


def _runs(starts: list[int]) -> Iterator[tuple[int, int]]:
    """First and last of every run of whole numbers that follow each other; `starts` ascend."""
    first = last = starts[0]
    for start in starts[1:]:
        if start != last + 1:
            yield first, last
            first = start
        last = start
    yield first, last


def texts_in(value: Any, *, numbers: bool = False) -> Iterator[str]:
    """All texts in a plain value; with `numbers`, numbers too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, Mapping):
            waiting.extend(cast("Mapping[str, Any]", one).values())
        elif isinstance(one, list | tuple):
            waiting.extend(cast("Sequence[Any]", one))
        elif numbers and isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e15:
            yield str(one)
