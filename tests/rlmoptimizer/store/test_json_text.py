"""The store's JSON: every plain value comes back as it was."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.store.json_text import decode, encode

keys = st.text(st.characters()) | st.sampled_from(["$bytes", "$int", "$dict", "$", "a"])
texts = st.text(st.characters())  # lone surrogates included
plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=20,
)


@given(plain_values)
def test_a_plain_value_comes_back_as_it_was(value: Any) -> None:
    again = decode(encode(value))
    assert again == value
    assert repr(again) == repr(value)  # 1, 1.0 and True are equal but not the same


@pytest.mark.parametrize(
    "value",
    [
        10**6000,
        [-(10**6000), {"n": 2**2048}],
        {"$bytes": "not bytes"},
        {"$int": {"$dict": [["$bytes", b"x"]]}},
        {"$dict": [[1, 2]], "other": 1},
        "\ud800",
        {"\udfff": ["\ud800"]},
        -0.0,
        math.inf,
        "a \x00 b",
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hard_value_comes_back_too(value: Any) -> None:
    again = decode(encode(value))
    assert again == value
    assert type(again) is type(value)


def test_nan_comes_back() -> None:
    assert math.isnan(decode(encode({"n": math.nan}))["n"])


def test_usual_values_are_plain_json_that_people_can_read() -> None:
    value = {"question": "Wie groß?", "n": [1, 2.5, None, True]}
    assert encode(value) == json.dumps(value, ensure_ascii=False)
    assert "ß" in encode(value)


@pytest.mark.parametrize("text", ["", "{", "nothing"])
def test_text_that_was_never_encoded_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        decode(text)
