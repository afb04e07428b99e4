"""The quick look whether a namespace is still what was kept: it may miss that nothing changed, but never a change."""

from __future__ import annotations

import math
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge.inside.namespace_snapshot import NamespaceSnapshot


def snapshot(names: dict[str, Any]) -> NamespaceSnapshot | None:
    return NamespaceSnapshot.of(names, globals())


class Plain:
    value = 1


def plain(a: int = 1, *, b: Any = None) -> list[int]:
    return [a, b]


def closing() -> Any:
    number = 1
    return lambda: number


LEAVES = [None, True, 1, 1.0, -0.0, 0.0, math.nan, "text", b"bytes", 1j, range(3), 2**70, int, math, math.floor]
ORDINARY = {
    "leaves": LEAVES,
    "containers": [[], {}, (), set(), frozenset({1}), {"a": [{"b": ({"c"},)}]}],
    "number": 41,
    "module": math,
}


def test_an_ordinary_namespace_is_known_again() -> None:
    taken = snapshot(ORDINARY)
    assert taken is not None
    assert taken.holds(ORDINARY)
    assert taken.holds(dict(ORDINARY))
    assert not taken.holds({**ORDINARY, "more": 1})
    assert not taken.holds({name: value for name, value in ORDINARY.items() if name != "number"})
    assert not taken.holds({**ORDINARY, "number": 42})
    assert not taken.holds(dict(reversed(ORDINARY.items())))


@pytest.mark.parametrize(
    "value",
    [Plain, Plain(), closing(), sys.stdin, iter([1]), [Plain()], {1: Plain}, (i for i in "a"), type("L", (list,), {})(),
     bytearray(b"x"), [].append, "x" * 100_000, list(range(2000)), [[1] * 600] * 3, lambda: 1, object()],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_could_change_unseen_or_is_large_is_not_taken(value: Any) -> None:
    taken = snapshot({"x": value})
    assert taken is None or type(value).__name__ in ("function", "list")


@pytest.mark.parametrize(
    "change",
    [
        lambda f: setattr(f, "__defaults__", (2,)),
        lambda f: setattr(f, "__kwdefaults__", {"b": 2}),
        lambda f: f.__kwdefaults__.update(b=[2]),
        lambda f: setattr(f, "__code__", closing.__code__),
        lambda f: setattr(f, "__doc__", "new"),
        lambda f: setattr(f, "__name__", "other"),
        lambda f: setattr(f, "__qualname__", "other"),
        lambda f: setattr(f, "__module__", "other"),
        lambda f: setattr(f, "attribute", 1),
        lambda f: setattr(f, "__dict__", {"attribute": 1}),
        lambda f: setattr(f, "__annotations__", {"a": str}),
    ],
)
def test_every_change_of_a_function_is_seen(change: Any) -> None:
    made: dict[str, Any] = {}
    exec("def f(a=1, *, b=None): return a", globals(), made)
    taken = snapshot(made)
    assert taken is not None
    assert taken.holds(made)
    change(made["f"])
    assert not taken.holds(made)


def test_a_cycle_and_what_is_shared_are_followed_once() -> None:
    loop: list[Any] = [{}]
    loop.append(loop)
    names = {"loop": loop, "again": loop}
    taken = snapshot(names)
    assert taken is not None
    assert taken.holds(names)
    loop[0]["new"] = 1
    assert not taken.holds(names)


values = st.recursive(
    st.sampled_from([None, True, 1, 1.0, 0.0, -0.0, "a", b"b"]) | st.integers(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2)
    | st.tuples(inner, inner) | st.lists(inner, max_size=2).map(lambda found: {repr(item) for item in found}),
    max_leaves=8,
)  # fmt: skip


def parts_of(value: Any) -> list[Any]:
    found = [value]
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ():
        found += parts_of(item)
    return found


@given(names=st.dictionaries(st.sampled_from("xyz"), values, min_size=1), data=st.data())
def test_no_change_of_plain_values_is_missed(names: dict[str, Any], data: st.DataObject) -> None:
    taken = snapshot(names)
    assert taken is not None
    before = pickle.dumps(names)
    assert taken.holds(names)
    changeable = [part for part in parts_of(names) if isinstance(part, (list, dict, set))]
    part = data.draw(st.sampled_from(changeable))
    new = data.draw(values)
    if isinstance(part, list):
        part[data.draw(st.integers(0, len(part))) :] = [new]
    elif isinstance(part, set):
        part.add(repr(new))
    else:
        part[data.draw(st.sampled_from("ab"))] = new
    if taken.holds(names):
        assert pickle.dumps(names) == before
