"""Values: the wire's own types, and how others are turned into them or refused."""

# Values of any type are looked at here by their run-time type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import enum
import pickle
from collections.abc import Callable, Collection, Sequence
from typing import Any, cast

import msgspec

from kernel_bridge.wire.paged_list import PagedList

__all__ = ["LEAVES", "Translation", "Unsendable", "host_extensions", "read_extension"]

_BIG_INT, _SURROGATES, _PICKLE, _PAGED = 1, 2, 3, 4  # msgpack extension codes; 3 and 4 travel host to kernel only
LEAVES = frozenset({type(None), bool, int, float, str, bytes})


class Unsendable(TypeError):
    """A value cannot be put on the wire.

    Attributes:
        path: where it sits, such as `examples[3].inputs.image`; empty for the value itself.
        type: the name of its type.
        reason: why it cannot cross.
    """

    def __init__(self, path: str, type: str, reason: str) -> None:
        self.path, self.type, self.reason = path, type, reason
        super().__init__(f"{path or 'the value'} ({type}) cannot be sent: {reason}")


class Translation:
    """Turns one value into the wire's own types, or refuses it with the path of the part at fault."""

    def __init__(
        self,
        depth: int,
        containers: int,
        parts: int,
        pickler: Callable[[Any], bytes | None] | None,
        sources: Collection[str],
    ) -> None:
        self._limit_depth = depth
        self._limit_containers = containers
        self._limit_parts = parts
        self._pickler = pickler
        self._sources = sources
        self._containers = self._parts = 0
        self._around: set[int] = set()  # ids of the containers that the current part is in

    def __call__(self, value: Any, path: str) -> Any:
        self._containers = self._parts = 0
        return self._part(value, path)

    def _part(self, value: Any, path: str) -> Any:
        self._parts += 1
        if self._parts > self._limit_parts:
            raise Unsendable(path, type(value).__name__, f"more than {self._limit_parts} parts in one value")
        leaf = _translate_leaf(value, path)
        if leaf is not _NOT_A_LEAF:
            return leaf
        if isinstance(value, PagedList):
            return self._paged(value, path)
        kind = type(value).__name__
        if id(value) in self._around:
            raise Unsendable(path, kind, "it contains itself")
        if len(self._around) >= self._limit_depth:
            raise Unsendable(path, kind, f"nested deeper than {self._limit_depth}")
        self._containers += 1
        if self._containers > self._limit_containers:
            raise Unsendable(path, kind, f"more than {self._limit_containers} lists and dicts in one value")
        if self._pickler is not None and (pickled := self._pickler(value)) is not None:
            return msgspec.msgpack.Ext(_PICKLE, pickled)
        self._around.add(id(value))
        try:
            return self._container(value, path)
        finally:
            self._around.remove(id(value))

    def _paged(self, value: PagedList, path: str) -> Any:
        if value.source not in self._sources:
            return self._part(value.whole(), path)
        parts = [value.source, self._part(value.key, _join(path, "key")), value.length]
        return msgspec.msgpack.Ext(_PAGED, msgspec.msgpack.encode(parts))

    def _container(self, value: Any, path: str) -> Any:
        if _is_model(value):
            value = self._dumped(value, path)
            if (leaf := _translate_leaf(value, path)) is not _NOT_A_LEAF:
                return leaf
        if isinstance(value, dict):
            pairs = cast("dict[Any, Any]", value)
        elif (fields := _fields_of(value)) is not None:
            pairs = fields
        elif isinstance(value, (list, tuple, set, frozenset)):
            items = cast("Sequence[Any]", value)
            return [self._part(item, f"{path}[{i}]") for i, item in enumerate(items)]
        else:
            raise Unsendable(path, type(value).__name__, _advice(value))
        self._parts += len(pairs)  # its keys
        return {_key(key, path): self._part(item, _join(path, key)) for key, item in pairs.items()}

    def _dumped(self, model: Any, path: str) -> Any:
        try:
            return model.model_dump(mode="json")
        except Exception as error:  # noqa: BLE001 - the model's own serializers
            reason = f"it has no JSON form: {type(error).__name__}: {error!s:.200}"
        for name in cast("Any", type(model)).model_fields:
            try:
                model.model_dump(mode="json", include={name})
            except Exception:  # noqa: BLE001 - the same serializers
                part = getattr(model, name, None)
                self._part(part, _join(path, name))  # refuses what is at fault deeper in there
                raise Unsendable(_join(path, name), type(part).__name__, reason) from None
        raise Unsendable(path, type(model).__name__, reason)


_NOT_A_LEAF = object()


def _translate_leaf(value: Any, path: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        number = int(value)
        if -(2**63) <= number < 2**64:
            return number
        size = number.bit_length() // 8 + 1
        return msgspec.msgpack.Ext(_BIG_INT, number.to_bytes(size, "little", signed=True))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, str):
        text = str.__str__(value)
        try:
            text.encode()
        except UnicodeEncodeError:
            return msgspec.msgpack.Ext(_SURROGATES, text.encode("utf-8", "surrogatepass"))
        return text
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if hasattr(value, "dtype") and getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        plain = value.item()
        if type(plain) in LEAVES:
            return _translate_leaf(plain, path)
    return _NOT_A_LEAF


def _fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass instance or a namedtuple; None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(cast("Any", value)._fields, cast("tuple[Any, ...]", value), strict=True))
    return None


def _is_model(value: Any) -> bool:
    """Whether it is an instance of a pydantic model. The kernel's Python may have no pydantic to ask."""
    kind = type(value)
    return hasattr(kind, "model_fields") and callable(getattr(kind, "model_dump", None))


def _key(key: Any, path: str) -> str:
    if not isinstance(key, str):
        raise Unsendable(_join(path, key), "dict key " + type(key).__name__, "dict keys must be str")
    try:
        key.encode()
    except UnicodeEncodeError:
        raise Unsendable(path, "dict key", "it holds a lone surrogate, which is not text") from None
    return str.__str__(key)


def _join(path: str, key: Any) -> str:
    if isinstance(key, str) and key.isidentifier():
        return f"{path}.{key}" if path else key
    return f"{path}[{key!r:.40}]"


def _advice(value: Any) -> str:
    if isinstance(value, enum.Enum):
        return "enum members do not cross; send .value"
    if callable(getattr(value, "isoformat", None)):
        return "dates and times do not cross; send .isoformat()"
    if hasattr(value, "tolist") and getattr(value, "shape", None) != ():
        return "arrays do not cross; send .tolist() or a summary"
    if callable(getattr(value, "to_dict", None)):
        return "tables do not cross; send .to_dict(), with text for keys, or a summary"
    if callable(value):
        return "code does not cross the process border"
    return (
        "only None, bool, int, float, str, bytes, lists and dicts with str keys cross (and dataclasses, pydantic "
        "models, named tuples, tuples and sets, turned into these); send str() of it, or what is needed of it"
    )


def read_extension(code: int, data: memoryview) -> Any:
    if code == _BIG_INT:
        return int.from_bytes(data, "little", signed=True)
    if code == _SURROGATES:
        return bytes(data).decode("utf-8", "surrogatepass")
    raise msgspec.DecodeError(f"extension {code} is not part of the wire")


def host_extensions(paged: Callable[[str, Any, int], Any]) -> Callable[[int, memoryview], Any]:
    """The reader of what a host may send; `paged` makes the list of its source, key and length."""

    def read(code: int, data: memoryview) -> Any:
        if code == _PICKLE:
            return pickle.loads(data)
        if code == _PAGED:
            return paged(*msgspec.msgpack.decode(data, ext_hook=read_extension))
        return read_extension(code, data)

    return read
