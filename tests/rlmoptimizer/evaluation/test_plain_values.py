"""Plain values: everything becomes one, nothing is lost that could be kept, and nothing ever raises."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import enum
import fractions
import types
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import dspy
import msgspec
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.evaluation.plain_values import MAX_DEPTH, MAX_NODES, to_plain


@dataclasses.dataclass
class Point:
    x: int
    where: Any = None


class Pair(NamedTuple):
    left: int
    right: Any


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: str
    tags: set[str] = set()


class Record(msgspec.Struct):
    a: int
    b: list[Any]


class Name(str):
    def __str__(self) -> str:
        raise RuntimeError("not this one")


class Count(int):
    def __int__(self) -> int:
        raise RuntimeError("not this one")


class Broken:
    def __str__(self) -> str:
        raise RuntimeError("no")


class BrokenMapping(collections.UserDict[str, Any]):
    def items(self) -> Any:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (dspy.Example(q=1, dspy_uuid="x").with_inputs("q"), {"q": 1}),
        (dspy.Prediction(a=dspy.Prediction(b=(1, 2))), {"a": {"b": [1, 2]}}),
        (dspy.Image("https://x.test/a.png"), {"url": "https://x.test/a.png"}),
        (dspy.History(messages=[{"q": "a"}]), {"messages": [{"q": "a"}]}),
        (Point(1, Point(2)), {"x": 1, "where": {"x": 2, "where": None}}),
        (Pair(1, Pair(2, None)), {"left": 1, "right": {"left": 2, "right": None}}),
        (Model(name="n", tags={"b", "a"}, more=1), {"name": "n", "tags": ["a", "b"], "more": 1}),
        (Record(1, [Record(2, [])]), {"a": 1, "b": [{"a": 2, "b": []}]}),
        (Color.RED, "red"),
        (Level.HIGH, 3),
        ({Color.RED: 1}, {"red": 1}),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        ({1, "a"}, [1, "a"]),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        (collections.deque([1, 2]), [1, 2]),
        (range(3), [0, 1, 2]),
        (collections.OrderedDict(a=1), {"a": 1}),
        (collections.UserDict(a=1), {"a": 1}),
        (types.MappingProxyType({"a": (1,)}), {"a": [1]}),
        ({1: "int", "1": "str", None: 0, (1, 2): "t"}, {"1": "int", "1'": "str", "None": 0, "[1, 2]": "t"}),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
        (np.str_("text"), "text"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"ab"), b"ab"),
        (fractions.Fraction(1, 2), "1/2"),
        (datetime.date(2024, 1, 2), "2024-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Path("a/b"), str(Path("a/b"))),
        (1j, "1j"),
        (ValueError("bad"), "ValueError: bad"),
        (Name("text"), "text"),
        (Count(5), 5),
        (Broken(), "<Broken that cannot be read: RuntimeError>"),
        (BrokenMapping(), "<BrokenMapping that cannot be read: RuntimeError>"),
        ([Broken(), 1], ["<Broken that cannot be read: RuntimeError>", 1]),
        ("\ud800", "\ud800"),
        ({"\ud800": 1, "ä": 2}, {"\\ud800": 1, "ä": 2}),
        ([{"\ud800": 1, "\\ud800": 2}], [{"\\ud800": 1, "\\ud800'": 2}]),
        (10**5000, 10**5000),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_becomes_plain(value: Any, plain: Any) -> None:
    converted = to_plain(value)
    assert converted == plain
    assert type(converted) is type(plain)
    check_plain(converted)


def check_plain(value: Any) -> None:
    assert type(value) in (type(None), bool, int, float, str, bytes, list, dict)
    if type(value) is list:
        for item in value:
            check_plain(item)
    if type(value) is dict:
        for key, item in value.items():
            assert type(key) is str
            check_plain(item)


def test_no_object_tells_where_it_lies_in_memory() -> None:
    def search(query: str) -> str:
        return query

    shown = to_plain({"tool": search, "object": object(), "error": ValueError(f"no use for {object()}")})
    assert shown["object"] == "<object object>"
    assert shown["tool"].startswith("<function ")
    assert shown["tool"].endswith("search>")
    assert shown["error"] == "ValueError: no use for <object object>"
    assert to_plain("a text <x at 0x12ab> stays") == "a text <x at 0x12ab> stays"


def test_a_plain_container_is_copied() -> None:
    value = {"a": 1}
    nested = {"a": [value]}
    assert to_plain(value) is not value
    assert to_plain(nested)["a"][0] is not value


def test_cycles_are_cut_but_what_is_only_shared_is_kept() -> None:
    shared = [1]
    loop: dict[str, Any] = {"twice": [shared, shared]}
    loop["self"] = loop
    point = Point(1)
    point.where = [point]
    assert to_plain(loop) == {"twice": [[1], [1]], "self": "<cycle>"}
    assert to_plain(point) == {"x": 1, "where": ["<cycle>"]}


def test_what_nests_too_deep_is_cut() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    plain = to_plain(deep)
    depth = 0
    while isinstance(plain, list):
        (plain,), depth = plain, depth + 1
    assert depth == MAX_DEPTH
    assert plain == f"<list nested deeper than {MAX_DEPTH} levels>"
    while deep:  # taken apart here: the interpreter's own way would nest as deep
        (deep,) = deep


def test_shared_lists_that_would_unfold_without_end_are_cut() -> None:
    value: list[Any] = [1]
    for _ in range(30):
        value = [value, value]
    assert f"more than {MAX_NODES} of them" in str(to_plain(value))[-200:]


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain_values)
def test_a_plain_value_stays_as_it_is(value: Any) -> None:
    assert to_plain(value) == value


@given(
    st.recursive(
        st.none() | st.floats() | st.text() | st.complex_numbers() | st.dates() | st.decimals() | st.uuids(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(st.integers() | st.text(), inner)
            | st.tuples(inner, inner)
            | st.builds(Point, st.integers(), inner)
            | st.builds(Pair, st.integers(), inner)
            | inner.map(lambda value: dspy.Prediction(a=value))
        ),
        max_leaves=10,
    )
)
def test_any_value_becomes_plain(value: Any) -> None:
    check_plain(to_plain(value))
