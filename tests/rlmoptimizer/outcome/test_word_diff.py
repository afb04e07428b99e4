"""The difference of two texts: both can be made from it, and it is quick on any text."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.outcome.word_diff import word_diff

WORDS = st.lists(st.sampled_from(["a", "b", "the", " ", "  ", "\n", ".", "é", "\ud800", "日本", "\x1b"]), max_size=60)


@given(WORDS, WORDS)
def test_same_and_removed_are_the_old_text_and_same_and_added_the_new_one(old: list[str], new: list[str]) -> None:
    before, after = "".join(old), "".join(new)
    changes = word_diff(before, after)
    assert "".join(text for kind, text in changes if kind != "added") == before
    assert "".join(text for kind, text in changes if kind != "removed") == after
    assert all(text for _, text in changes)
    kinds = [kind for kind, _ in changes]
    assert all(one != other for one, other in itertools.pairwise(kinds))
    assert ("added", "removed") not in itertools.pairwise(kinds)


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("", "", []),
        ("a b", "a b", [("same", "a b")]),
        ("", "new", [("added", "new")]),
        ("Say it.", "Say it in one word.", [("same", "Say it"), ("added", " in one word"), ("same", ".")]),
        (
            "Answer the question briefly.",
            "Answer every message briefly.",
            [
                ("same", "Answer "),
                ("removed", "the question"),
                ("added", "every message"),
                ("same", " briefly."),
            ],
        ),
    ],
)
def test_it_reads_as_a_person_would_mark_it(old: str, new: str, changes: list[tuple[str, str]]) -> None:
    assert word_diff(old, new) == changes


def text(rng: random.Random, words: int, vocabulary: int) -> str:
    return " ".join(f"w{rng.randrange(vocabulary)}" for _ in range(words))


@pytest.mark.parametrize("vocabulary", [2, 1000])
def test_texts_of_100_kb_that_have_nothing_in_common_take_no_long(vocabulary: int) -> None:
    rng = random.Random(0)
    old, new = text(rng, 25_000, vocabulary), text(rng, 25_000, vocabulary)
    began = time.process_time()
    word_diff(old, new)
    assert time.process_time() - began < 10  # a tenth of it where nothing else runs


def test_few_changes_in_a_long_text_are_found_exactly() -> None:
    words = text(random.Random(0), 25_000, 5000).split(" ")
    changed = [word if place % 500 else "new" for place, word in enumerate(words)]
    changes = word_diff(" ".join(words), " ".join(changed))
    assert [one for kind, one in changes if kind == "added"] == ["new"] * 50
