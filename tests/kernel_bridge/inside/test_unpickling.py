"""Loading pickled names: what pickle itself gives, and where one of them fails, all but that one and what it shares."""

from __future__ import annotations

import collections
import datetime
import decimal
import functools
import io
import pickle
import pickletools
import re
import time
from typing import Any

import numpy
import pytest

from kernel_bridge.inside.unpickling import load_names


class Plain:
    def __init__(self, value: Any = None) -> None:
        self.value = value


class Slotted(Plain):
    __slots__ = ("extra",)

    def __init__(self) -> None:
        super().__init__([1])
        self.extra = "slot"


class WithKeywords:
    def __new__(cls, *, size: int) -> WithKeywords:
        made = super().__new__(cls)
        made.size = size
        return made

    size: int

    def __getnewargs_ex__(self) -> tuple[Any, ...]:
        return (), {"size": self.size}


class Listed(list[Any]):
    pass


class Mapped(dict[Any, Any]):
    pass


class WithSetter:
    def __reduce__(self) -> tuple[Any, ...]:
        return WithSetter, (), {"set": [1]}, None, None, set_fields


def set_fields(made: Any, fields: dict[str, Any]) -> None:
    vars(made).update(fields)


class Growing:
    """Takes one item after the other."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    def append(self, item: Any) -> None:
        self.items.append(item)

    def __reduce__(self) -> tuple[Any, ...]:
        return Growing, (), None, iter(self.items)


def everything() -> dict[str, Any]:
    loop: list[Any] = []
    loop.append(loop)
    ring = Plain()
    ring.value = (ring, {"ring": ring})
    growing = Growing()
    growing.items += range(3)
    shared = ["shared"]
    mapped = Mapped({n: n for n in range(5)})
    mapped["self"] = mapped
    return {
        "atoms": [None, True, 1, 2**200, 1.5, "text", b"bytes", bytearray(b"more"), ...],
        "containers": [(), (1,), (1, 2, 3, 4), {1: 2}, {1, 2}, frozenset({3})],
        "long": [list(range(5000)), dict.fromkeys(range(5000), shared), set(range(5000)), b"x" * 200_000, "y" * 99_999],
        "loops": [loop, ring],
        "objects": [Plain(shared), Slotted(), WithKeywords(size=3), WithSetter(), growing, Listed([1, shared]), mapped],
        "library": [collections.deque([1]), collections.defaultdict(list, a=[1]), collections.OrderedDict(b=1),
                    collections.Counter("aab"), datetime.datetime(2020, 1, 1), decimal.Decimal("1.5"),
                    re.compile("a+"), functools.partial(set_fields, 1), ValueError("said"), range(3), 1j,
                    numpy.arange(6).reshape(2, 3), numpy.array([shared, None], dtype=object)],
        "shared": shared,
    }  # fmt: skip


def pickled(names: dict[str, Any]) -> tuple[bytes, dict[str, int]]:
    """As a checkpoint holds them: one pickle after the other, by one pickler."""
    file = io.BytesIO()
    pickler = pickle.Pickler(file, pickle.HIGHEST_PROTOCOL)
    sizes: dict[str, int] = {}
    for name, value in names.items():
        before = file.tell()
        pickler.dump(value)
        sizes[name] = file.tell() - before
    return file.getvalue(), sizes


@pytest.mark.parametrize("failing", [{}, {"bad": True}], ids=["at once", "apart"])
def test_what_can_be_loaded_is_what_pickle_itself_loads(failing: dict[str, Any]) -> None:
    names = everything()
    loaded, lost = load_names(*pickled({name: Unmakeable() for name in failing} | names), 60)
    assert set(lost) == set(failing)
    # Pickled again, what is equal and equally shared has equal bytes.
    load = pickle.Unpickler(io.BytesIO(pickled(names)[0])).load
    assert pickled(loaded) == pickled({name: load() for name in names})
    assert loaded["shared"] is loaded["objects"][0].value is loaded["long"][1][7]


class Unmakeable:
    def __reduce__(self) -> tuple[Any, ...]:
        return int, tuple(["no number"])  # a new one each time


class Unfillable(Plain):
    def __setstate__(self, state: Any) -> None:
        raise KeyError("no state")


class Unhashable(Plain):
    def __hash__(self) -> int:
        return hash(self.value)


class Unsettable:
    def __reduce__(self) -> tuple[Any, ...]:
        return Plain, (), 1, None, None, refuse


def refuse(made: Any, state: Any) -> None:
    raise TypeError("no state")


class Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit


def fail() -> None:
    raise Unreadable


class Failing:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, ()


class Disguised(Plain):
    armed = False

    @property
    def __class__(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        if self.armed:
            raise SystemExit
        return Disguised


def test_each_name_that_holds_what_cannot_be_loaded_is_lost_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    early = Unhashable(1)
    vars(early)["me"] = {early}  # to be hashed before it is whole
    bad = [Unmakeable(), Unfillable(1), Unsettable(), Failing(), early, {1: Unmakeable()}]
    shared = [1]
    names = {"shared": shared} | {f"bad{number}": value for number, value in enumerate(bad)}
    names |= {"all bad": tuple(bad), "whole": Plain(shared), "disguised": Disguised(1)}
    data, sizes = pickled(names)
    monkeypatch.setattr(Disguised, "armed", True)
    loaded, lost = load_names(data, sizes, 60)
    assert set(loaded) == {"shared", "whole", "disguised"}
    assert loaded["whole"].value is loaded["shared"]
    number = "ValueError: invalid literal for int() with base 10: 'no number'"
    reasons = [number, "KeyError: 'no state'", "TypeError: no state", "Unreadable: <exception str() failed>",
               "AttributeError: 'Unhashable' object has no attribute 'value'", number]  # fmt: skip
    assert {name: lost.pop(name).removeprefix("restoring it raised ") for name in tuple(lost) if name != "all bad"} == {
        f"bad{number}": reason for number, reason in enumerate(reasons)
    }
    assert set(lost) == {"all bad"}


def test_what_names_share_with_a_lost_one_is_there_and_still_shared() -> None:
    row, when = {"field": 1}, datetime.date(2020, 1, 1)
    parent, child = Plain(), Plain()
    parent.value, child.value = [child], parent
    names = {
        "rows": [row, when, parent, Plain(1), collections.Counter("a"), "said", (1, "two"), Unmakeable()],
        "best": row,
        "other": {"field": 2, "said": "said"},
        "later": [datetime.date(2020, 1, 2), Plain(2), collections.Counter("b"), collections.Counter, (1, "two")],
        "last": [row],
        "child": child,
        "when": when,
    }
    loaded, lost = load_names(*pickled(names), 60)
    assert set(lost) == {"rows"}
    assert loaded["best"] == row
    assert loaded["last"][0] is loaded["best"]
    assert loaded["child"].value.value[0] is loaded["child"]
    assert loaded["when"] == when
    assert loaded["other"] == names["other"]
    assert loaded["later"][1].value == 2


def test_a_name_that_shares_what_cannot_be_made_is_lost_too() -> None:
    bad = Unfillable(1)
    loaded, lost = load_names(*pickled({"bad": [bad], "also": [[bad]], "good": [1]}), 60)
    assert loaded == {"good": [1]}
    assert lost["also"] == "restoring it raised ValueError: it shares an object with bad"


@pytest.mark.parametrize(
    "shared",
    [b"", numpy.dtype("float64"), numpy.zeros(2), datetime.timezone.utc, re.compile("a"), collections.Counter, (1, 2)],
    ids=lambda shared: type(shared).__name__,
)
def test_a_lost_name_takes_nothing_along_that_all_names_share(shared: Any) -> None:
    loaded, lost = load_names(*pickled({"bad": [shared, Unmakeable()], "good": [shared]}), 60)
    assert set(lost) == {"bad"}
    assert repr(loaded["good"]) == repr([shared])


def test_a_large_name_is_read_after_another_one_has_failed() -> None:
    rows = [{"id": number, "text": str(number)} for number in range(20_000)]
    data, sizes = pickled({"bad": Unmakeable(), "rows": rows, "later": [1]})
    began = time.monotonic()
    collections.deque(pickletools.genops(data[sizes["bad"] :]), maxlen=0)
    seconds = 3 * (time.monotonic() - began)  # of which a quarter for one name would be too short
    loaded, lost = load_names(data, sizes, max(5.0, seconds))
    assert set(lost) == {"bad"}
    assert loaded == {"rows": rows, "later": [1]}


def test_what_is_no_pickle_is_lost_and_nothing_else_happens() -> None:
    data, sizes = pickled({"a": 1, "b": [2]})
    assert set(load_names(b"\x80\x05nonsense" + data, sizes, 60)[1]) == {"a", "b"}
    assert load_names(data, {"a": sizes["a"], "b": sizes["b"] - 1}, 60)[0] == {"a": 1, "b": [2]}
    loaded, lost = load_names(data[:-1], sizes, 60)
    assert (loaded, set(lost)) == ({"a": 1}, {"b"})


def test_nothing_is_loaded_after_a_pickle_of_which_not_even_the_objects_can_be_counted() -> None:
    shared = [1]
    data, sizes = pickled({"a": [[2], [3]], "b": [shared], "c": [shared]})
    loaded, lost = load_names(b"\xff" * sizes["a"] + data[sizes["a"] :], sizes, 60)
    assert loaded == {}
    assert lost["c"] == "restoring it raised ValueError: it comes after a, which cannot be read"
