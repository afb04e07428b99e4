"""What is suspicious in new prompts: text copied from train, a label named, sentences repeated, growth. No dspy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from kernel_bridge.text import shorten
from rlmoptimizer.outcome.copied_passages import CopiedPassage, Passages
from rlmoptimizer.outcome.named_labels import Labels, NamedLabel
from rlmoptimizer.outcome.words import TrainRow, Words, texts_in, words_of
from rlmoptimizer.text import token_estimate

__all__ = ["Growth", "Hygiene", "RepeatedSentence", "check_hygiene"]

_SENTENCE_WORDS: Final = 5  # of a sentence that counts as repeated
_SHOWN: Final = 10  # repeated sentences of each step
_TEXT_CHARS: Final = 500  # of a sentence
_SINGLE_WORDS: Final = 3  # so many labels of one word are worth a warning without a longer one
_REPEATS: Final = 3  # so often a sentence is said that is worth a warning
_QUOTED_CHARS: Final = 100  # of it in the warning
_GROWTH_TIMES: Final = 5  # a prompt that has grown so much, and
_GROWTH_TOKENS: Final = 1000  # has so many tokens, is worth a warning
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


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
    copied_rows: int  # of which a passage of their own stands in a prompt, also one that is not among `copied`

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
        # A single word is in the prompts of any task now and then.
        telling = [label for label in self.labels if " " in label.label]
        if not telling and len(self.labels) < _SINGLE_WORDS:
            return None
        ids = {label.example_id for label in self.labels}
        first = (telling or self.labels)[0]
        return (
            f"the prompt of step {first.step!r} names the label of example {first.example_id} of train alone"
            f"{f' (and {len(ids) - 1} more like it)' if len(ids) > 1 else ''}: it may know answers instead of the rule"
        )

    def _of_copied(self) -> str | None:
        single = [passage for passage in self.copied if passage.row_count <= _most_rows(self.rows)]
        if not single:
            return None
        worst = max(single, key=lambda passage: passage.words)
        rows = f"example{'' if worst.row_count == 1 else 's'} {', '.join(worst.example_ids)}"
        others = worst.row_count - len(worst.example_ids)
        more = f" and {others} more" if others else ""
        text = f"the prompt of step {worst.step!r} holds {worst.words} words in a row of {rows}{more} of train"
        if self.copied_rows > worst.row_count:
            text += f"; text of {self.copied_rows} of its {self.rows} examples stands in the prompts"
        return text

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
        worst = max(self.repeated, key=lambda one: one.times, default=None)
        if worst is None or worst.times < _REPEATS:  # two worked examples may well share a sentence
            return None
        return f"the prompt of step {worst.step!r} says {worst.times} times: {shorten(worst.text, _QUOTED_CHARS)}"


def check_hygiene(before: Mapping[str, str], after: Mapping[str, str], train: Iterable[TrainRow]) -> Hygiene:
    """Look for what is suspicious in the prompts `after`, both maps from step to text.

    `train` is read once. Takes time in proportion to its length: 2 s for 5,000 rows of 20 kB, three times as
    long where the texts are not ASCII.
    """
    old = [words_of(text) for text in before.values()]
    changed = {step: text for step, text in after.items() if text != before.get(step)}
    passages = Passages(changed, old)
    labels = Labels()
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
        copied_rows=passages.row_count(_most_rows(rows)),
    )


def _most_rows(rows: int) -> int:
    """In so many of `rows` rows a passage may stand; one that stands in more is the task's own wording."""
    return max(rows // 20, 2 if rows > 2 else 1)


def _repeated(step: str, text: str, before: str) -> list[RepeatedSentence]:
    def sentences(prompt: str) -> Iterator[tuple[Words, str]]:
        for sentence in _SENTENCE_END.split(prompt):
            words = words_of(sentence)
            if len(words) >= _SENTENCE_WORDS:
                yield words, sentence.strip()

    old = Counter(words for words, _ in sentences(before))
    new = Counter(words for words, _ in sentences(text))
    first = dict(reversed(list(sentences(text))))
    often = [words for words, times in new.items() if times > max(old[words], 1)]
    often.sort(key=lambda words: (-new[words], -len(words), words))
    return [RepeatedSentence(step, first[words][:_TEXT_CHARS], new[words]) for words in often[:_SHOWN]]
