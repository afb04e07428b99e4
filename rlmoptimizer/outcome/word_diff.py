"""The difference of two texts, word by word. Quick on texts of any kind: where it would take long, it is coarser."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final, Literal, TypeAlias

__all__ = ["Change", "word_diff"]

_Kind: TypeAlias = Literal["same", "removed", "added"]
Change: TypeAlias = tuple[_Kind, str]

_WORD = re.compile(r"\w+|\s+|[^\w\s]")
_MOST_EDITS: Final = 256  # words that differ in a passage, up to which its shortest difference is looked for
_GRAMS: Final = (1, 4)  # a passage that differs more is split at so many words in a row that stand once in both texts
_MOST_SPLITS: Final = 20  # of passages within passages

_Words: TypeAlias = Sequence[str]
_Pair: TypeAlias = tuple[int, int]  # places of an equal word in the old and in the new text


def word_diff(old: str, new: str) -> list[Change]:
    """What is the same in both texts, removed from `old` and added in `new`, in order; no text is empty.

    The texts that are "same" and "removed", joined, are `old`; those that are "same" and "added" are `new`. Two
    neighbours are of different kinds, and what was removed comes before what was added in its place.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    pairs = list(_pairs(before, after, (0, 0), _MOST_SPLITS))
    changes: list[Change] = []
    i = j = 0
    for start, other in [*_without_lone_spaces(pairs, before, after), (len(before), len(after))]:
        _add(changes, "removed", before[i:start])
        _add(changes, "added", after[j:other])
        _add(changes, "same", before[start : start + 1])
        i, j = start + 1, other + 1
    return changes


def _add(changes: list[Change], kind: _Kind, words: _Words) -> None:
    if not words:
        return
    text = "".join(words)
    if changes and changes[-1][0] == kind:
        text = changes.pop()[1] + text
    changes.append((kind, text))


def _without_lone_spaces(pairs: Sequence[_Pair], old: _Words, new: _Words) -> Iterator[_Pair]:
    """Without the spaces between two changes: these read better as one."""
    framed = [(-1, -1), *pairs, (len(old), len(new))]
    for earlier, (i, j), later in zip(framed, framed[1:], framed[2:], strict=False):
        if not old[i].isspace() or earlier == (i - 1, j - 1) or later == (i + 1, j + 1):
            yield i, j


def _pairs(old: _Words, new: _Words, at: _Pair, splits: int) -> Iterator[_Pair]:
    """The equal words of two passages that begin `at` these places, both ascending."""
    head = _equal_words(old, new)
    tail = _equal_words(old[head:][::-1], new[head:][::-1])
    i, j = at
    yield from ((i + place, j + place) for place in range(head))
    inner, other = old[head : len(old) - tail], new[head : len(new) - tail]
    if inner and other:
        found = _shortest(inner, other)
        if found is not None:
            yield from ((i + head + place, j + head + twin) for place, twin in found)
        elif splits:
            yield from _split_pairs(inner, other, (i + head, j + head), splits - 1)
    ends = len(old) - tail, len(new) - tail
    yield from ((i + ends[0] + place, j + ends[1] + place) for place in range(tail))


def _equal_words(old: _Words, new: _Words) -> int:
    """How many words are equal at the beginning."""
    return next(
        (place for place, (one, other) in enumerate(zip(old, new, strict=False)) if one != other),
        min(len(old), len(new)),
    )


def _split_pairs(old: _Words, new: _Words, at: _Pair, splits: int) -> Iterator[_Pair]:
    """Split two passages where both have what stands once in them, and go on with the parts."""
    anchors = next((found for size in _GRAMS if (found := _anchors(old, new, size))), list[_Pair]())
    i = j = 0
    for start, other in anchors:
        yield from _pairs(old[i:start], new[j:other], (at[0] + i, at[1] + j), splits)
        yield at[0] + start, at[1] + other
        i, j = start + 1, other + 1
    if anchors:  # else nothing ties them together, and all of it differs
        yield from _pairs(old[i:], new[j:], (at[0] + i, at[1] + j), splits)


def _anchors(old: _Words, new: _Words, size: int) -> list[_Pair]:
    """The most places, ascending in both texts, of `size` words in a row that stand once in each of them."""
    places = [_single_places(words, size) for words in (old, new)]
    twins = [(place, places[1][gram]) for gram, place in places[0].items() if gram in places[1]]
    # The longest ascending sequence: `lowest[n]` is the lowest end of one with n + 1 members.
    lowest: list[int] = []
    ends: list[int] = []  # indexes into `twins`
    before: list[int | None] = []
    for index, (_, twin) in enumerate(twins):
        length = bisect_left(lowest, twin)
        lowest[length : length + 1] = [twin]
        ends[length : length + 1] = [index]
        before.append(ends[length - 1] if length else None)
    found: list[_Pair] = []
    last = ends[-1] if ends else None
    while last is not None:
        found.append(twins[last])
        last = before[last]
    return found[::-1]


def _single_places(words: _Words, size: int) -> dict[tuple[str, ...], int]:
    grams = list(zip(*(words[start:] for start in range(size)), strict=False))
    counts = Counter(grams)
    return {gram: place for place, gram in enumerate(grams) if counts[gram] == 1}


def _shortest(old: _Words, new: _Words) -> list[_Pair] | None:
    """The pairs of a shortest difference (Myers' algorithm); None: it is longer than `_MOST_EDITS`."""
    furthest = {1: 0}  # diagonal -> the furthest place in `old` that so many edits reach
    history: list[dict[int, int]] = []
    for edits in range(_MOST_EDITS + 1):
        history.append(dict(furthest))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1])
            i = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            j = i - diagonal
            while i < len(old) and j < len(new) and old[i] == new[j]:
                i, j = i + 1, j + 1
            furthest[diagonal] = i
            if i >= len(old) and j >= len(new):
                return _walked_back(history, len(old), len(new))
    return None


def _walked_back(history: Sequence[dict[int, int]], i: int, j: int) -> list[_Pair]:
    """The pairs on the way to the end, (i, j)."""
    pairs: list[_Pair] = []
    for edits in range(len(history) - 1, -1, -1):
        furthest, diagonal = history[edits], i - j
        down = diagonal == -edits or (diagonal != edits and furthest[diagonal - 1] < furthest[diagonal + 1])
        earlier = diagonal + 1 if down else diagonal - 1
        start = furthest[earlier]
        turn = (start, start - earlier) if edits else (0, 0)
        while i > turn[0] and j > turn[1]:
            i, j = i - 1, j - 1
            pairs.append((i, j))
        i, j = turn
    return pairs[::-1]
