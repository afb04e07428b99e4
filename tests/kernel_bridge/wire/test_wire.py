"""The wire: what crosses, what is refused and how it is named, and what an untrusted peer can send."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import pathlib
import tracemalloc
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
import msgspec
import numpy
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from kernel_bridge.wire import (
    Call,
    Codec,
    Foreign,
    Raise,
    Ready,
    Return,
    Submit,
    Unsendable,
    WireError,
    read_host_head,
    read_kernel_head,
    write_head,
)

any_text = st.text(st.characters(codec=None, exclude_categories=()))  # lone surrogates too
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(2**200), max_value=2**200)
    | st.floats()
    | any_text
    | st.binary()
)
values = st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@pytest.fixture(scope="module")
def codec() -> Codec:
    return Codec(limit_bytes=2**20, limit_depth=64)


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type, where a NaN equals a NaN and 0.0 is not -0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (math.isnan(one) and math.isnan(other)) or (
            one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


# -- what crosses ----------------------------------------------------------------------------------------------------


@pytest.mark.smoke
@given(values)
@example([2**64, -(2**63) - 1, 2**64 - 1, -(2**63), float("nan"), float("-inf"), -0.0])
@example({"": ["\ud800", "a\udfffb", b"\xff\x00"]})
def test_a_value_comes_back_as_it_was_sent(value: Any) -> None:
    codec = Codec(limit_bytes=2**20, limit_depth=64)
    for verify in (True, False):
        assert same(codec.load(codec.dump(value), verify=verify), value)


@dataclass
class Point:
    x: int
    y: Any


class Model(pydantic.BaseModel):
    name: str
    parts: list[Point]


Pair = collections.namedtuple("Pair", "left right")


class Level(enum.IntEnum):
    HIGH = 3


class Colour(str, enum.Enum):
    RED = "red"


class Shouting(str):
    def __str__(self) -> str:
        return "not this"

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "arrives"),
    [
        ((1, (2, 3)), [1, [2, 3]]),
        ({4}, [4]),
        (frozenset({"a"}), ["a"]),
        (Point(1, (2,)), {"x": 1, "y": [2]}),
        (Model(name="n", parts=[Point(0, None)]), {"name": "n", "parts": [{"x": 0, "y": None}]}),
        (Pair(1, Pair(2, 3)), {"left": 1, "right": {"left": 2, "right": 3}}),
        (Level.HIGH, 3),
        (Colour.RED, "red"),
        (Shouting("text"), "text"),
        (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (collections.Counter("aab"), {"a": 2, "b": 1}),
        (collections.defaultdict(list, k=[1]), {"k": [1]}),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (numpy.float64(1.5), 1.5),
        (numpy.int32(-7), -7),
        (numpy.bool_(True), True),
        (numpy.array(4), 4),
        ([numpy.str_("s"), numpy.bytes_(b"b")], ["s", b"b"]),
    ],
)
def test_kinds_near_the_plain_ones_are_turned_into_them(codec: Codec, value: Any, arrives: Any) -> None:
    assert same(codec.load(codec.dump(value), verify=True), arrives)


def test_what_is_shared_within_a_value_arrives_as_copies(codec: Codec) -> None:
    part = (1, [2])
    assert codec.load(codec.dump({"a": part, "b": [part, part]}), verify=True) == {
        "a": [1, [2]],
        "b": [[1, [2]], [1, [2]]],
    }


# -- what is refused before a byte is sent ---------------------------------------------------------------------------


def _endless() -> list[Any]:
    loop: list[Any] = []
    loop.extend([loop, loop])
    return loop


class Weekday(enum.Enum):
    MON = "mon"


class Shop(pydantic.BaseModel):
    opened: datetime.datetime = datetime.datetime(2020, 1, 2, 3, 4)
    open_for: datetime.timedelta = datetime.timedelta(hours=2)
    turnover: decimal.Decimal = decimal.Decimal("1.10")
    closed: Weekday = Weekday.MON
    id: uuid.UUID = uuid.UUID(int=7)
    path: pathlib.Path = pathlib.Path("a/b")
    stock: dict[int, set[str]] = {3: {"bolt"}}
    share: float = float("nan")
    grains: int = 2**80
    logo: bytes = b"abc"
    key: pydantic.SecretStr = pydantic.SecretStr("hidden")
    twin: Any = Pair(datetime.date(2020, 1, 1), Point(1, decimal.Decimal(2)))

    @pydantic.field_serializer("path", when_used="json")
    def path_text(self, path: pathlib.Path) -> str:
        return f"<{path}>"


@pytest.mark.parametrize(
    "model",
    [
        Shop(),
        pydantic.RootModel[list[datetime.date]]([datetime.date(2020, 1, 1)]),
        pydantic.RootModel[dict[int, Shop]]({1: Shop()}),
        pydantic.RootModel[str]("text"),
        pydantic.RootModel[None](None),
        pydantic.RootModel[decimal.Decimal](decimal.Decimal("0.1")),
        dspy.Image(url="https://example.org/a.png"),
        dspy.Code(code="x = 1"),
        dspy.History(messages=[{"q": Shop()}]),
    ],
    ids=lambda model: type(model).__name__,
)
def test_a_model_crosses_as_its_json_form_wherever_it_stands(codec: Codec, model: pydantic.BaseModel) -> None:
    form = model.model_dump(mode="json")
    for value, arrives in (
        (model, form),
        ([{"m": (model,)}], [{"m": [form]}]),
        (Holder(model), {"image": form}),
        (Pair(model, 1), {"left": form, "right": 1}),
    ):
        assert same(codec.load(codec.dump(value), verify=True), arrives)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (datetime.time(1), "send .isoformat()"),
        (Weekday.MON, "send .value"),
        (decimal.Decimal(1), "send str() of it"),
        (numpy.zeros(2), "send .tolist()"),
        (numpy.datetime64("2020-01-01"), "send str() of it"),
    ],
)
def test_a_refusal_says_what_to_send_instead_and_that_crosses(codec: Codec, value: Any, says: str) -> None:
    with pytest.raises(Unsendable) as refusal:
        codec.dump(value)
    assert says in str(refusal.value)
    expression = says.removeprefix("send ").removesuffix(" of it").replace("str()", "str(value)")
    codec.dump(eval(f"value{expression}" if expression.startswith(".") else expression, {"value": value}))


def _family() -> dict[str, Any]:
    """A tree whose nodes know their parents, as many real object graphs do."""
    root: dict[str, Any] = {"parent": None, "children": ()}
    root["children"] = tuple({"parent": root, "children": ()} for _ in range(5))
    return root


@dataclass
class Holder:
    image: Any


class Stubborn(pydantic.BaseModel):
    inner: Any


class Faulty(pydantic.BaseModel):
    @pydantic.model_serializer
    def fail(self) -> Any:
        raise ZeroDivisionError("its own serializer")


@pytest.mark.parametrize(
    ("value", "path", "type_name"),
    [
        (object(), "it", "object"),
        ({"inputs": Holder(image=object())}, "it.inputs.image", "object"),
        ([0, {"a b": [object()]}], "it[1]['a b'][0]", "object"),
        ((1, {2: 3}), "it[1][2]", "dict key int"),
        ({"k": {b"b": 1}}, "it.k[b'b']", "dict key bytes"),
        ({"k": {"\ud800": 1}}, "it.k", "dict key"),
        ([lambda: 1], "it[0]", "function"),
        ({"t": int}, "it.t", "type"),
        ([numpy.zeros(3)], "it[0]", "ndarray"),
        ({"when": numpy.datetime64("2020-01-01")}, "it.when", "datetime64"),
        ({"z": 1j}, "it.z", "complex"),
        ([iter([])], "it[0]", "list_iterator"),
        (_endless(), "it[0]", "list"),
        (_family(), "it.children[0].parent", "dict"),
        (Stubborn(inner=[{"deep": object()}]), "it.inner[0].deep", "object"),
        (Stubborn(inner=Holder(lambda: 1)), "it.inner.image", "function"),
        ({"m": Stubborn(inner=b"\xff")}, "it.m.inner", "bytes"),
        ([Faulty()], "it[0]", "Faulty"),
        ([datetime.datetime(2020, 1, 1)], "it[0]", "datetime"),
        (Holder(datetime.timedelta(1)), "it.image", "timedelta"),
        (Pair(decimal.Decimal(1), 0), "it.left", "Decimal"),
        (Pair(uuid.UUID(int=1), 0), "it.left", "UUID"),
        ({"p": pathlib.Path()}, "it.p", type(pathlib.Path()).__name__),
        ([Weekday.MON], "it[0]", "Weekday"),
    ],
)
def test_what_cannot_cross_is_named_by_its_path(codec: Codec, value: Any, path: str, type_name: str) -> None:
    with pytest.raises(Unsendable) as refusal:
        codec.dump(value, "it")
    assert (refusal.value.path, refusal.value.type) == (path, type_name)
    assert path in str(refusal.value)
    assert refusal.value.reason in str(refusal.value)


def nested(depth: int, kind: Callable[[Any], Any] = lambda inner: [inner]) -> Any:
    value: Any = None
    for _ in range(depth):
        value = kind(value)
    return value


@pytest.mark.parametrize(
    "kind", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,), Holder, lambda v: Stubborn(inner=v)]
)
def test_the_depth_limit_is_exact_on_both_sides(kind: Callable[[Any], Any]) -> None:
    codec = Codec(limit_bytes=2**20, limit_depth=8)
    codec.load(codec.dump(nested(8, kind)), verify=True)
    with pytest.raises(Unsendable, match="nested deeper than 8"):
        codec.dump(nested(9, kind))
    with pytest.raises(WireError):
        codec.load(msgspec.msgpack.encode(nested(9)), verify=True)


def test_the_size_limit_is_exact() -> None:
    codec = Codec(limit_bytes=100, limit_depth=4)
    assert len(codec.dump("x" * 98)) == 100
    with pytest.raises(Unsendable, match="101 bytes encoded; at most 100"):
        codec.dump("x" * 99)


def test_a_small_object_that_would_unfold_without_end_is_refused() -> None:
    codec = Codec(limit_bytes=2**16, limit_depth=64)
    lists: Any = []
    tuples: Any = ()
    for _ in range(60):
        lists, tuples = [lists, lists], (tuples, tuples)
    for value in (lists, tuples):
        with pytest.raises(Unsendable, match="more than 1024 lists and dicts"):
            codec.dump(value)


@given(st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(any_text, inner)), st.integers(1, 6))
def test_dump_either_refuses_or_sends_what_load_accepts(value: Any, depth: int) -> None:
    codec = Codec(limit_bytes=200, limit_depth=depth)
    try:
        data = codec.dump(value)
    except Unsendable:
        return
    assert len(data) <= 200
    assert same(codec.load(data, verify=True), value)


# -- hostile bytes ---------------------------------------------------------------------------------------------------


@given(st.binary(max_size=300))
@example(b"\x81\x90\x01")  # a list as a key
@example(b"\x91" * 100_000)
@example(b"\xdd\xff\xff\xff\xff")  # four billion items announced, none sent
@example(b"\xdf\xff\xff\xff\xff\xa0")
@example(b"\xd6\xff\x00\x00\x00\x01")  # msgpack's timestamp
@example(b"\xc0\xc0")
@example(b"\xc6\xff\xff\xff\xff")
def test_any_bytes_are_a_value_or_a_wire_error(data: bytes) -> None:
    codec = Codec(limit_bytes=1000, limit_depth=5)
    try:
        value = codec.load(data, verify=True)
    except WireError:
        return
    codec.dump(value)  # whatever was accepted is a value that could have been sent


def test_a_host_never_unpickles(codec: Codec) -> None:
    marked = codec.dump([object()], pickler=lambda value: b"cos\nabort\n(tR." if type(value) is object else None)
    with pytest.raises(WireError, match="extension 3 is not part of the wire"):
        codec.load(marked, verify=True)


@pytest.mark.parametrize("code", [0, 4, 100, 127, 255])
def test_extensions_that_were_not_agreed_are_refused(codec: Codec, code: int) -> None:
    with pytest.raises(WireError):
        codec.load(bytes([0xC7, 1, code, 7]), verify=True)


@pytest.mark.parametrize("piece", [b"\x80", b"\x90", b"\xdc\x00\x00", b"\xde\x00\x00", b"\xdd\x00\x00\x00\x00"])
def test_a_small_frame_cannot_become_a_value_that_fills_the_memory(piece: bytes) -> None:
    codec = Codec(limit_bytes=2**20, limit_depth=8)
    count = 2**20 // 64
    most = b"\xdd" + (count - 1).to_bytes(4, "big") + piece * (count - 1)
    assert len(codec.load(most, verify=True)) == count - 1
    over = b"\xdd" + count.to_bytes(4, "big") + piece * count
    with pytest.raises(WireError, match=f"more than {count} lists and dicts"):
        codec.load(over, verify=True)


@pytest.mark.parametrize("piece", [b"\xe0", b"\xa2ab", b"\xd4\x01\x05"])
def test_the_limit_of_parts_is_exact_and_the_refused_are_not_built(piece: bytes, small_limit: int) -> None:
    count = small_limit
    codec = Codec(limit_bytes=16 * count, limit_depth=64)
    most = b"\xdd" + (count - 1).to_bytes(4, "big") + piece * (count - 1)
    assert len(codec.load(most, verify=True)) == count - 1
    over = b"\xdd" + count.to_bytes(4, "big") + piece * count
    tracemalloc.start()
    try:
        with pytest.raises(WireError, match=f"more than {count} parts"):
            codec.load(over, verify=True)
        assert tracemalloc.get_traced_memory()[1] < count
    finally:
        tracemalloc.stop()


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many parts a value may have in the test: a million take seconds to make and say no more."""
    assert Codec(limit_bytes=16 * 2**20, limit_depth=64).limit_parts == 2**20
    monkeypatch.setattr("kernel_bridge.wire.codec._FEWEST_PARTS", 2**15)
    return 2**15


def test_a_value_of_more_parts_than_may_arrive_is_not_sent(small_limit: int) -> None:
    codec = Codec(limit_bytes=16 * small_limit, limit_depth=64)
    pairs = {str(i): None for i in range(small_limit // 2)}  # with itself one part too many
    rows = (0,) * small_limit
    for value, path in ((pairs, "it"), (list(rows), "it"), ({"rows": rows}, f"it.rows[{small_limit - 3}]")):
        with pytest.raises(Unsendable, match=f"more than {small_limit} parts in one value") as refused:
            codec.dump(value, "it")
        assert refused.value.path.startswith(path)
    pairs.popitem()
    assert codec.load(codec.dump(pairs), verify=True) == pairs


@given(values)
def test_a_frame_is_weighed_as_what_it_holds(value: Any) -> None:
    codec = Codec(limit_bytes=2**24, limit_depth=64)
    assert codec.weigh(codec.dump(value), room=0) == _parts(value)


def _parts(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + _parts(item) for item in value.values())
    return 1 + sum(map(_parts, value)) if isinstance(value, list) else 1


@given(values)
def test_bytes_that_look_like_containers_are_not_counted_as_such(value: Any) -> None:
    codec = Codec(limit_bytes=2**16, limit_depth=64)
    disguised = {"text": "\u0800\u0900" * 1000, "bytes": b"\x80\x90" * 2000, "big": -(2**30000), "value": value}
    assert same(codec.load(codec.dump(disguised), verify=True), disguised)


# -- heads -----------------------------------------------------------------------------------------------------------

KERNEL_MESSAGES = [
    Ready(),
    Call(2**40, "tool"),
    Submit(0),
    Foreign(True),
]
HOST_MESSAGES = [Return(1), Raise(2, "ValueError", "why")]


@pytest.mark.parametrize("message", KERNEL_MESSAGES, ids=lambda m: type(m).__name__)
def test_a_kernels_message_is_read_by_the_host_and_by_nobody_else(message: Any) -> None:
    assert read_kernel_head(write_head(message)) == message
    with pytest.raises(WireError):
        read_host_head(write_head(message))


@pytest.mark.parametrize("message", HOST_MESSAGES, ids=lambda m: type(m).__name__)
def test_a_hosts_message_is_read_by_the_kernel_and_by_nobody_else(message: Any) -> None:
    assert read_host_head(write_head(message)) == message
    with pytest.raises(WireError):
        read_kernel_head(write_head(message))


def test_an_unsendable_character_costs_a_head_nothing_but_that_character() -> None:
    assert read_host_head(write_head(Raise(3, "Odd\udc80", "bad \ud800 text"))) == Raise(
        3, "Odd\\udc80", "bad \\ud800 text"
    )
    assert read_kernel_head(write_head(Call(1, "n\udfff"))) == Call(1, "n\\udfff")


@given(st.binary(max_size=100))
@example(write_head(Call(1, "x")) + b"\xc0")
@example(msgspec.msgpack.encode(["call", 1]))
@example(msgspec.msgpack.encode(["call", "1", "name"]))
@example(msgspec.msgpack.encode(["call", 1, None]))
@example(msgspec.msgpack.encode(["shutdown", 1]))
@example(msgspec.msgpack.encode({"type": "call", "id": 1, "name": "x"}))
def test_any_bytes_are_a_message_of_their_direction_or_a_wire_error(data: bytes) -> None:
    for read, kinds in ((read_kernel_head, (Ready, Call, Submit, Foreign)), (read_host_head, (Return, Raise))):
        try:
            assert isinstance(read(data), kinds)
        except WireError:
            continue


def test_a_head_of_any_size_is_refused_unread() -> None:
    for message in (Call(1, "x" * 5000), Call(1, "x" * 2**24)):
        with pytest.raises(WireError, match="a head of"):
            read_kernel_head(write_head(message))
    with pytest.raises(WireError, match="a head of"):
        read_host_head(write_head(Raise(1, "E", "x" * 2**21)))


def test_messages_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Call(1, "x").name = "y"  # type: ignore[misc]
