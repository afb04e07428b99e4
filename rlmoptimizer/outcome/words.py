"""The words of a text, by which copied text is found. No dspy.

A word is a run of letters and digits, whatever its case (in Japanese and Chinese each character is one). Punctuation
does not count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, cast

__all__ = ["TrainRow", "Words", "texts_in", "windows", "word_spans", "words_of"]

Words: TypeAlias = tuple[str, ...]

_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff"  # kana and ideographs: written without spaces
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W_{_CHARACTERS}]+")
_ASCII_WORDS = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
_BASE64 = ";base64,"  # in the head of a data URI
_HEAD_CHARS = 200


class TrainRow(Protocol):
    """A row of train; an `ExampleResult` is one."""

    @property
    def example_id(self) -> str: ...
    @property
    def inputs(self) -> Mapping[str, Any]: ...  # plain values
    @property
    def expected(self) -> Mapping[str, Any]: ...  # plain values


def words_of(text: str) -> Words:
    """The words of a text, in its order."""
    if text.isascii():
        return tuple(text.translate(_ASCII_WORDS).split())  # the same, ten times as fast
    return tuple(word.casefold() for word in _WORD.findall(text))


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each of the words of a text begins and ends in it."""
    return [match.span() for match in _WORD.finditer(text)]


def windows(words: Words, length: int) -> Iterator[Words]:
    """Each `length` words in a row."""
    return (words[start : start + length] for start in range(len(words) - length + 1))


def texts_in(value: Any, *, numbers: bool = False) -> Iterator[str]:
    """All texts in a plain value but what is no language, the base64 of attachments; with `numbers`, numbers too."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if not (one.startswith("data:") and _BASE64 in one[:_HEAD_CHARS]):
                yield one
        elif isinstance(one, Mapping):
            waiting.extend(cast("Mapping[str, Any]", one).values())
        elif isinstance(one, list | tuple):
            waiting.extend(cast("Sequence[Any]", one))
        elif numbers and isinstance(one, int | float) and not isinstance(one, bool) and abs(one) < 1e15:
            yield str(one)
