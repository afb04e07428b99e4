"""Converts any value into a plain one, which may cross to the agent and into the store.

Plain are None, bool, int, float, str, bytes, lists of plain values and dicts from str to plain values.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections import deque
from collections.abc import Mapping, Set
from typing import Any, Final, cast

import dspy
from pydantic import BaseModel

__all__ = ["MAX_DEPTH", "MAX_NODES", "to_plain", "without_addresses"]

MAX_DEPTH: Final = 32  # nesting levels kept; the tool channel takes 64, and a result stands some levels deep
MAX_NODES: Final = 250_000  # containers in one conversion; lists that share their items can unfold to any number

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_TEXT: Final = frozenset({str})
_CYCLE: Final = "<cycle>"
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")


def to_plain(value: Any) -> Any:
    """A plain copy of any value; never raises.

    DSPy's records, pydantic models, dataclasses, named tuples and mappings become dicts; sequences and sets lists;
    enums their value; numpy scalars and arrays numbers and lists; everything else its `str`, without the address in
    memory that Python puts there. Keys become text without lone surrogates. Cycles are cut, and so is what nests deeper
    than `MAX_DEPTH` or holds more than `MAX_NODES` containers.
    """
    kind = cast("type[Any]", type(value))
    if kind in _ATOMS:
        return value
    flat = kind is dict and _ATOMS.issuperset(map(type, value.values())) and _TEXT.issuperset(map(type, value))
    if flat and "".join(value).isascii():
        return dict(value)  # by far the commonest: the fields of an example or a prediction
    return _Conversion().convert(value, 0)


def without_addresses(text: str) -> str:
    """An object's text without its address, which would help hostile code and differs from process to process."""
    return _ADDRESS.sub("", text)


class _Conversion:
    """One call of `to_plain`: the objects that are being converted, to see cycles, and how many there were."""

    __slots__ = ("inside", "nodes")

    def __init__(self) -> None:
        self.inside: set[int] = set()
        self.nodes = 0

    def convert(self, value: Any, depth: int) -> Any:
        kind = cast("type[Any]", type(value))
        if kind in _ATOMS:
            return value
        self.nodes += 1
        if depth >= MAX_DEPTH:
            return f"<{kind.__name__} nested deeper than {MAX_DEPTH} levels>"
        if self.nodes > MAX_NODES:
            return f"<{kind.__name__} left out: more than {MAX_NODES} of them>"
        if id(value) in self.inside:
            return _CYCLE
        self.inside.add(id(value))
        try:
            return self._convert_object(value, depth + 1)
        except Exception as error:  # noqa: BLE001 - a foreign object's own methods run here
            return f"<{kind.__name__} that cannot be read: {type(error).__name__}>"
        finally:
            self.inside.discard(id(value))

    def _convert_object(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return self._mapping(cast("dict[Any, Any]", value), depth)
        if isinstance(value, list | tuple):
            items = cast("list[Any] | tuple[Any, ...]", value)
            names = getattr(items, "_fields", None)
            if isinstance(names, tuple):
                return self._mapping(dict(zip(cast("tuple[str, ...]", names), items, strict=True)), depth)
            return [self.convert(item, depth) for item in items]
        if (fields := _record(value)) is not None:
            return self._mapping(fields, depth)
        if isinstance(value, enum.Enum):
            return self.convert(value.value, depth)
        if isinstance(value, Mapping):
            return self._mapping(cast("Mapping[Any, Any]", value), depth)
        if isinstance(value, Set):
            return [self.convert(item, depth) for item in _in_order(cast("Set[Any]", value))]
        if isinstance(value, deque | range):
            return [self.convert(item, depth) for item in cast("deque[Any] | range", value)]
        return self._convert_scalar(value, depth)

    def _convert_scalar(self, value: Any, depth: int) -> Any:
        # The base class's own method is called, because a subclass may have overridden it with anything.
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            return int.__int__(value)
        if isinstance(value, float):
            return float.__float__(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(cast("bytes | bytearray | memoryview[int]", value))
        if hasattr(value, "dtype") and callable(getattr(value, "tolist", None)):
            unboxed = value.tolist()  # numpy's scalars and arrays, and whatever speaks their language
            return str(value) if type(unboxed) is type(value) else self.convert(unboxed, depth)
        if isinstance(value, BaseException):
            return without_addresses(f"{type(value).__name__}: {value}")
        return without_addresses(str.__str__(str(value)))

    def _mapping(self, fields: Mapping[Any, Any], depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in fields.items():
            name = _sendable(key if type(key) is str else self._key(key, depth))
            while name in plain:  # 1 and "1" are two keys
                name += "'"
            plain[name] = self.convert(item, depth)
        return plain

    def _key(self, key: Any, depth: int) -> str:
        plain = self.convert(key, depth)
        return plain if isinstance(plain, str) else str(plain)


def _sendable(key: str) -> str:
    """The key with lone surrogates spelled out: the tool channel takes them in a text, not in a key."""
    return key if key.isascii() else key.encode("utf-8", "backslashreplace").decode("utf-8")


def _record(value: Any) -> Mapping[str, Any] | None:
    """The fields of an object that is a record; None: it is not."""
    if isinstance(value, dspy.Example):  # dspy.Prediction too
        return dict(cast("list[tuple[str, Any]]", value.items()))
    if isinstance(value, BaseModel):
        return {**value.__dict__, **(value.__pydantic_extra__ or {})}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name, None) for field in dataclasses.fields(value)}
    kind = cast("type[Any]", type(value))
    names = getattr(kind, "__struct_fields__", None)  # msgspec
    if isinstance(names, tuple):
        return {name: getattr(value, name, None) for name in cast("tuple[str, ...]", names)}
    attributes = getattr(kind, "__attrs_attrs__", None)  # attrs
    if isinstance(attributes, tuple):
        return {field.name: getattr(value, field.name, None) for field in cast("tuple[Any, ...]", attributes)}
    return None


def _in_order(values: Set[Any]) -> list[Any]:
    """A set's items in an order that does not change from process to process, where they have one."""
    try:
        return sorted(values)
    except TypeError:
        return sorted(values, key=lambda item: (type(item).__name__, str(item)))
