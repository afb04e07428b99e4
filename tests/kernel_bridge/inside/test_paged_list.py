"""The kernel's list whose items stay on the host: to the code it is a list, and it reads no more than is touched."""

from __future__ import annotations

import collections
import copy
import json
import operator
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge.inside import paged_list
from kernel_bridge.inside.host_exceptions import host_exception
from kernel_bridge.inside.paged_list import PagedList, read_pages_with


class Host:
    """Keeps rows, and notes which of them are read."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.asked: list[tuple[int, int]] = []
        self.at_most = sys.maxsize  # items that it gives at once
        self.too_large: set[int] = set()

    def __call__(self, source: str, key: Any, start: int, stop: int) -> list[Any]:
        assert (source, key) == ("rows", {"run": "r1"})
        assert 0 <= start < stop <= len(self.rows)
        self.asked.append((start, stop))
        stop = min(stop, start + self.at_most)
        if not self.too_large.isdisjoint(range(start, stop)):
            raise host_exception("NotSendable", "300000000 bytes encoded; at most 268435456")
        return pickle.loads(pickle.dumps(self.rows[start:stop]))

    def list_of(self, rows: list[Any]) -> PagedList:
        self.rows = rows
        return PagedList("rows", {"run": "r1"}, len(rows))

    @property
    def read(self) -> int:
        """Items that were asked for."""
        return sum(min(stop - start, self.at_most) for start, stop in self.asked)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setattr(paged_list, "_READ", dict(paged_list._READ))
    made = Host()
    read_pages_with(made)
    return made


def rows(count: int, characters: int = 0) -> list[dict[str, Any]]:
    return [{"id": str(i), "score": i % 3, "steps": [{"text": "x" * characters}]} for i in range(count)]


# as a list


INDEXES = st.integers(-12, 12)
BOUNDS = st.none() | INDEXES
SLICES = st.builds(slice, BOUNDS, BOUNDS, st.none() | st.integers(-4, 4).filter(bool))
ITEMS = st.lists(st.none() | st.integers(0, 3) | st.text(max_size=2) | st.dictionaries(st.text(max_size=1), st.none()))


def _outcome(read: Callable[[Any], Any], value: Any) -> Any:
    try:
        return read(value)
    except (IndexError, ValueError, TypeError) as error:
        return type(error)


READS = st.one_of(
    st.builds(operator.itemgetter, INDEXES | SLICES),
    st.sampled_from([len, list, bool, tuple, sorted, copy.copy, copy.deepcopy, json.dumps, max]),
    st.sampled_from([lambda x: [*reversed(x)], lambda x: x[:], lambda x: x * 2, lambda x: 2 * x, lambda x: x.copy()]),
    st.builds(lambda other: lambda x: x + other, ITEMS),
    st.builds(lambda other: lambda x: other + x, ITEMS),
    st.builds(lambda other: lambda x: (x == other, other == x, x != other, other != x), ITEMS),
    st.builds(lambda other: lambda x: (x < other, other <= x), st.lists(st.integers())),
    st.builds(lambda item: lambda x: (item in x, x.count(item), x.index(item)), st.none() | st.integers(0, 3)),
    st.builds(lambda n: lambda x: [item for item, _ in zip(x, range(n), strict=False)], st.integers(0, 9)),
    st.builds(lambda n: lambda x: random.Random(n).sample(x, min(n, len(x))), st.integers(0, 9)),
)


def _mutation(name: str, *arguments: Any) -> Callable[[Any], Any]:
    return lambda x: (getattr(x, name)(*arguments), [*x])


CHANGES = st.one_of(
    st.sampled_from([_mutation("reverse"), _mutation("clear"), _mutation("append", 1), _mutation("pop")]),
    st.builds(lambda i: _mutation("__delitem__", i), INDEXES | SLICES),
    st.builds(lambda i: _mutation("__setitem__", i, "new"), INDEXES),
    st.builds(lambda i: _mutation("insert", i, "new"), INDEXES),
    st.builds(lambda more: _mutation("extend", more), ITEMS),
    st.builds(lambda more: _mutation("__iadd__", more), ITEMS),
    st.builds(lambda item: _mutation("remove", item), st.integers(0, 3)),
)


@given(ITEMS, st.lists(READS | CHANGES), st.integers(1, 4))
def test_it_behaves_as_the_list_of_the_same_items(items: list[Any], uses: list[Any], at_most: int) -> None:
    before = dict(paged_list._READ)
    host = Host()
    host.at_most = at_most
    try:
        read_pages_with(host)
        paged, plain = host.list_of(copy.deepcopy(items)), items
        for use in uses:
            assert _outcome(use, paged) == _outcome(use, plain)
        assert paged == plain
        assert pickle.loads(pickle.dumps(paged)) == plain
    finally:
        paged_list._READ.update(before)


def test_it_is_a_list_to_what_takes_lists(host: Host) -> None:
    plain = rows(7)
    assert isinstance(host.list_of(plain), list)
    assert json.dumps({"examples": host.list_of(plain)}, indent=1) == json.dumps({"examples": plain}, indent=1)
    assert json.dumps(host.list_of(plain)) == json.dumps(plain)
    assert collections.Counter(row["score"] for row in host.list_of(plain)) == {0: 3, 1: 2, 2: 2}
    first, *others = host.list_of(plain)
    assert [first, *others] == plain
    match host.list_of(plain):
        case [{"id": "0"}, *_, last]:
            assert last == plain[-1]
        case _:
            pytest.fail("it is a sequence")
    with pytest.raises(TypeError, match="unhashable"):
        hash(host.list_of(plain))
    with pytest.raises(IndexError, match="list index out of range"):
        host.list_of(plain)[7]
    with pytest.raises(TypeError):
        host.list_of(plain)["examples"]
    with pytest.raises(TypeError):
        operator.add(host.list_of(plain), (1,))


def test_two_of_them_are_compared_and_added_by_what_is_in_them(host: Host) -> None:
    one, other = host.list_of(rows(5)), host.list_of(rows(5))
    assert one == other
    assert one + other == rows(5) + rows(5)
    assert not one < PagedList("rows", {"run": "r1"}, 0)
    one.append(1)
    one += other
    assert one == [*rows(5), 1, *rows(5)]


# what is read


def test_a_list_that_was_read_to_its_end_says_so(host: Host) -> None:
    paged = host.list_of(rows(50))
    for _ in paged:
        pass
    assert repr(paged) == "<list of 50 items, all of them read; print(list(...)) shows them>"


def test_nothing_is_read_before_it_is_touched(host: Host) -> None:
    paged = host.list_of(rows(5000))
    assert len(paged) == 5000
    assert paged
    assert paged != []
    assert repr([paged]) == "[<list of 5,000 items, 0 of them read; an index, a slice or a loop reads more>]"
    copy.deepcopy({"examples": copy.copy(paged)})
    pickle.dumps(paged)
    assert host.asked == []


def test_an_index_or_a_slice_reads_what_it_names(host: Host) -> None:
    paged = host.list_of(rows(5000, 1000))
    assert paged[17]["id"] == "17"
    assert host.asked == [(17, 18)]
    assert [row["id"] for row in paged[-3:]] == ["4997", "4998", "4999"]
    assert host.read == 4
    assert [row["id"] for row in paged[::1000]] == ["0", "1000", "2000", "3000", "4000"]
    assert host.read == 9
    assert paged[17:18] == [paged[17]]
    assert host.read == 9


@pytest.mark.parametrize("order", [list, reversed, lambda paged: (paged[i] for i in range(4999, -1, -1))])
def test_a_loop_reads_each_item_once_in_pages_of_a_megabyte(host: Host, order: Callable[[Any], Any]) -> None:
    paged = host.list_of(rows(5000, 10_000))
    assert len([*order(paged)]) == 5000
    assert host.read == 5000
    sizes = [stop - start for start, stop in host.asked]
    assert 90 < max(sizes) < 110
    assert len(sizes) < 60


def test_a_loop_that_ends_early_has_not_read_the_rest(host: Host) -> None:
    paged = host.list_of(rows(5000, 10_000))
    assert next(row for row in paged if row["id"] == "30")
    assert host.read < 150
    assert paged[30] in paged
    assert host.read < 150


def test_a_source_that_gives_less_than_it_is_asked_for_is_asked_again(host: Host) -> None:
    host.at_most = 3
    assert host.list_of(rows(20)) == rows(20)
    assert all(stop - start <= 12 for start, stop in host.asked)


@pytest.mark.parametrize(
    ("page", "given"),
    [([], "0 items"), (None, "a NoneType"), ({"0": 1}, "a dict"), ("ab", "a str"), ([1, 2, 3], "3 items")],
)
def test_what_is_no_page_is_an_error_that_tells_what_came(host: Host, page: Any, given: str) -> None:
    paged = host.list_of(rows(5))
    read_pages_with(lambda *_: page)
    with pytest.raises(RuntimeError, match=f"must give a list of 1 to 1 items from 0 on, and gave {given}"):
        paged[0]


def test_an_item_that_is_too_large_costs_only_itself(host: Host) -> None:
    paged = host.list_of(rows(50))
    host.too_large = {20}
    assert len(paged[:20]) == 20
    with pytest.raises(TypeError, match=r"item \[20\] of the list .* can be read, such as those from \[21:\] on"):
        list(paged)
    assert [row["id"] for row in paged[21:]] == [str(i) for i in range(21, 50)]


# what stays


def test_the_same_index_gives_the_same_object(host: Host) -> None:
    paged = host.list_of(rows(50))
    assert paged[3] is paged[3]
    held = paged[-1]
    assert list(paged)[-1] is held
    assert paged[3:4][0] is paged[3]
    assert paged.copy()[3] is paged[3]
    assert copy.deepcopy(paged)[3] is not paged[3]


def test_what_the_code_changes_in_items_stays_in_copies_and_pickles(host: Host) -> None:
    paged = host.list_of(rows(50))
    paged[3]["mine"] = {1, 2}
    paged[40]["steps"][0]["text"] = "deep inside"
    for kept in (paged, paged.copy(), copy.deepcopy(paged), pickle.loads(pickle.dumps(paged))):
        assert kept[3]["mine"] == {1, 2}
        assert kept[40]["steps"] == [{"text": "deep inside"}]
        assert kept[4] == rows(50)[4]
    again = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(paged))))
    assert again[3]["mine"] == {1, 2}


def test_a_pickle_holds_no_items_that_are_as_they_were(host: Host) -> None:
    paged = host.list_of(rows(1000, 1000))
    assert len([*paged]) == 1000
    assert len(pickle.dumps(paged)) < 300
    paged[3]["mine"] = 1
    assert len(pickle.dumps(paged)) < 2_000_000


def test_a_list_that_was_changed_itself_is_an_ordinary_one(host: Host) -> None:
    paged = host.list_of(rows(6))
    paged.sort(key=lambda row: row["score"])
    assert [row["id"] for row in paged] == ["0", "3", "1", "4", "2", "5"]
    random.Random(1).shuffle(paged)
    del paged[2:]
    assert len(paged) == 2
    assert repr(paged) == repr(list(paged))
    kept = pickle.loads(pickle.dumps(paged))
    assert type(kept) is list
    assert kept == paged
    paged.append(paged)
    assert pickle.loads(pickle.dumps(paged))[2][0] == kept[0]
    assert copy.deepcopy(paged)[2][0] == kept[0]


def test_items_that_cannot_be_compared_with_what_came_are_kept_whole(host: Host) -> None:
    paged = host.list_of([{"text": "\ud800"}, {"text": "b"}])
    assert paged[0]["text"] == "\ud800"
    host.rows = [{"text": "later"}] * 2
    kept = pickle.loads(pickle.dumps(paged))
    assert kept[0]["text"] == "\ud800"
    assert kept[1]["text"] == "later"


# where it is used


def test_c_code_that_looks_past_the_methods_fails_until_all_is_read(host: Host) -> None:
    paged = host.list_of(rows(5))
    assert paged[0]
    with pytest.raises(TypeError, match="NotReadYet"):
        msgspec.json.encode(paged)
    assert len([*paged]) == 5
    assert msgspec.json.decode(msgspec.json.encode(paged)) == rows(5)
    assert msgspec.json.encode(paged.copy()) == msgspec.json.encode(rows(5))


def test_a_process_without_a_host_says_so() -> None:
    made = PagedList("rows", None, 3)
    assert len(made) == 3
    with pytest.raises(RuntimeError, match="cannot be read in this process"):
        made[0]
    code = "import pickle, sys; x = pickle.loads(sys.stdin.buffer.read()); print(len(x)); x[0]"
    child = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(made), capture_output=True, check=False)
    assert child.stdout.strip() == b"3"
    assert b"RuntimeError: the rest of this list is on the host of its kernel" in child.stderr


def test_threads_that_read_the_same_items_get_the_same_objects(host: Host) -> None:
    paged = host.list_of(rows(400))
    inside = threading.Barrier(8, timeout=30)
    waits = [True] * 8

    def read(source: str, key: Any, start: int, stop: int) -> list[Any]:
        if waits:
            waits.pop()
            inside.wait()  # all of them read the first page before any has it
        return host(source, key, start, stop)

    read_pages_with(read)
    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(lambda _: [*paged], range(8))]
    assert all(id(a) == id(b) for seen in found for a, b in zip(seen, found[0], strict=True))
    assert found[0] == rows(400)


def test_threads_that_change_it_at_once_lose_nothing(host: Host) -> None:
    paged = host.list_of(rows(100))
    begin = threading.Barrier(8, timeout=30)

    def add(number: int) -> None:
        begin.wait()
        paged.append(number)

    with ThreadPoolExecutor(8) as pool:
        [*pool.map(add, range(8))]
    assert paged[:100] == rows(100)
    assert sorted(paged[100:]) == [*range(8)]
