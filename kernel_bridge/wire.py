"""The wire: six messages and one codec. No sockets, no threads, no dspy. Both sides of the tool channel import it.

Every message is two frames: a small typed head and a body that holds one value (empty when the message has none).
A value is None, a bool, an int of any size, a float (NaN and the infinities too), a str, bytes, a list, or a dict
with string keys. Other kinds are turned into these or refused before a byte is sent; see `Codec.dump`.
"""

# Values of any type are looked at here by their run-time type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import gc
import pickle
from collections.abc import Callable, Sequence
from typing import Any, Union, cast

import msgspec

__all__ = [
    "Call",
    "Codec",
    "Foreign",
    "HostMessage",
    "KernelMessage",
    "Raise",
    "Ready",
    "Return",
    "Submit",
    "Unsendable",
    "WireError",
    "read_host_head",
    "read_kernel_head",
    "write_head",
]


Frame = Union[bytes, bytearray, memoryview]  # noqa: UP007 - as below


class WireError(ValueError):
    """What arrived is not one of the six messages, or not a value."""


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


class Ready(msgspec.Struct, tag="ready", array_like=True, frozen=True):
    """Kernel to host, once: the kernel takes cells. The names it restored from a checkpoint, and those it could not."""

    python: str
    restored: list[str]
    lost: dict[str, str]


class Call(msgspec.Struct, tag="call", array_like=True, frozen=True):
    """Kernel to host: run a tool. Body: `[positional arguments, keyword arguments]`."""

    id: int
    name: str


class Submit(msgspec.Struct, tag="submit", array_like=True, frozen=True):
    """Kernel to host: the final output of a cell. Body: a dict, field name to value."""

    id: int


class Foreign(msgspec.Struct, tag="foreign", array_like=True, frozen=True):
    """Kernel to host: another client's cell, a console's, starts or ends. The host's own cells wait for it."""

    running: bool


class Return(msgspec.Struct, tag="return", array_like=True, frozen=True):
    """Host to kernel: a call or a submission is done. Body: its result."""

    id: int


class Raise(msgspec.Struct, tag="raise", array_like=True, frozen=True):
    """Host to kernel: a call or a submission was refused or failed."""

    id: int
    kind: str  # the exception's class name
    message: str


KernelMessage = Union[Ready, Call, Submit, Foreign]  # noqa: UP007 - msgspec reads it at run time
HostMessage = Union[Return, Raise]  # noqa: UP007

_heads = msgspec.msgpack.Encoder()
_kernel_heads: msgspec.msgpack.Decoder[KernelMessage] = msgspec.msgpack.Decoder(KernelMessage)
_host_heads: msgspec.msgpack.Decoder[HostMessage] = msgspec.msgpack.Decoder(HostMessage)


def write_head(message: KernelMessage | HostMessage) -> bytes:
    """The head frame of a message."""
    try:
        return _heads.encode(message)
    except UnicodeEncodeError:
        # An error text or a name may hold a lone surrogate; the message matters more than that one character.
        return _heads.encode(_clean(msgspec.to_builtins(message)))


def _clean(part: Any) -> Any:
    """The same part of a head, with lone surrogates written as escapes."""
    if isinstance(part, str):
        return part.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(part, list):
        return [_clean(item) for item in cast("list[Any]", part)]
    if isinstance(part, dict):
        return {_clean(key): _clean(item) for key, item in cast("dict[Any, Any]", part).items()}
    return part


def read_kernel_head(frame: Frame) -> KernelMessage:
    """The head of a message from a kernel. Raises: WireError when it is not one a kernel may send."""
    return _read_head(_kernel_heads, frame)


def read_host_head(frame: Frame) -> HostMessage:
    """The head of a message from the host. Raises: WireError when it is not one a host may send."""
    return _read_head(_host_heads, frame)


def _read_head(decoder: msgspec.msgpack.Decoder[Any], frame: Frame) -> Any:
    if len(frame) > _HEAD_BYTES:
        raise WireError(f"a head of {len(frame)} bytes; at most {_HEAD_BYTES}")
    try:
        return decoder.decode(frame)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise WireError(f"not a message: {error}") from error


_HEAD_BYTES = 16 * 2**20  # Ready lists names; everything else is tiny

_BIG_INT, _SURROGATES, _PICKLE = 1, 2, 3  # msgpack extension codes; 3 travels host to kernel only
_LEAVES = frozenset({type(None), bool, int, float, str, bytes})
# What takes one byte on the wire takes more in memory: a part up to 75 bytes, a dict around others up to 230.
_BYTES_PER_CONTAINER = 64
_BYTES_PER_PART = 32
_FEWEST_PARTS = 2**20  # that any session may send in one value


class Codec:
    """Values to bytes and back, with the limits of one session.

    Args:
        limit_bytes: the largest encoded value. It also bounds how many lists and dicts one value may hold, at one
            for each 64 bytes, and how many parts it may have, at one for each 32 bytes (a million at least): lists,
            dicts, keys, and all that they hold. So a small frame cannot become a value that fills the memory.
        limit_depth: the deepest nesting of lists and dicts.
        unpickle: accept values that the other side pickled. True only in a kernel, never on a host.
    """

    def __init__(self, *, limit_bytes: int, limit_depth: int, unpickle: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self._limit_depth = limit_depth
        self._limit_containers = max(1024, limit_bytes // _BYTES_PER_CONTAINER)
        self.limit_parts = max(_FEWEST_PARTS, limit_bytes // _BYTES_PER_PART)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Any, ext_hook=_read_extension if not unpickle else _read_any_extension)

    def dump(self, value: Any, path: str = "", pickler: Callable[[Any], bytes | None] | None = None) -> bytes:
        """Encode a value.

        Dataclass and pydantic instances and namedtuples become dicts; tuples, sets and frozensets become lists;
        subclasses of the plain types become the plain type; numpy scalars become Python numbers; bytearray and
        memoryview become bytes.

        Args:
            path: what to call the value in an error.
            pickler: may answer, for an object that is not plain, with the pickle to send in its place.

        Raises:
            Unsendable: with the path of the part that cannot cross. Nothing was encoded.
        """
        try:
            translate = _Translation(self._limit_depth, self._limit_containers, self.limit_parts, pickler)
            if not self._plain(value):
                value = translate(value, path)
            try:
                data = self._encoder.encode(value)
            except (OverflowError, UnicodeEncodeError):
                data = self._encoder.encode(translate(value, path))
        except RecursionError:
            raise Unsendable(path, type(value).__name__, f"nested deeper than {self._limit_depth}") from None
        if len(data) > self.limit_bytes:
            raise Unsendable(path, type(value).__name__, f"{len(data)} bytes encoded; at most {self.limit_bytes}")
        return data

    def weigh(self, frame: Frame, room: int | None = None) -> int:
        """How many parts the value in an untrusted peer's frame has, at most. Builds nothing of it.

        Args:
            room: so many parts do no harm, so that a frame of no more bytes need not be looked through.

        Raises:
            WireError: the frame is too large, or has too many parts, or too many lists and dicts.
        """
        size = len(frame)
        if size > self.limit_bytes:
            raise WireError(f"a value of {size} bytes; at most {self.limit_bytes}")
        harmless = max(_UNWEIGHED_BYTES, self.limit_parts if room is None else room)
        if size <= min(harmless, self.limit_parts) and (
            size <= self._limit_containers or _most_containers(frame) <= self._limit_containers
        ):
            return size
        parts, containers = _count(frame, self.limit_parts, self._limit_containers)
        if containers > self._limit_containers:
            raise WireError(f"a value of more than {self._limit_containers} lists and dicts")
        if parts > self.limit_parts:
            raise WireError(f"a value of more than {self.limit_parts} parts")
        return parts

    def load(self, frame: Frame, *, verify: bool, weighed: bool = False) -> Any:
        """Decode a value.

        Args:
            verify: check every part of the result: set for what an untrusted peer sent.
            weighed: `weigh` has let this frame pass.

        Raises:
            WireError: it is not a value, or deeper than the limit, or beyond what `weigh` lets pass.
        """
        if verify and not weighed:
            self.weigh(frame)
        paused = gc.isenabled()
        gc.disable()  # hundreds of thousands of fresh containers would set off useless collections
        try:
            value = self._decoder.decode(frame)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, OverflowError) as error:
            raise WireError(f"not a value: {error}") from error
        finally:
            if paused:
                gc.enable()
        if verify and not self._plain(value):
            raise WireError("a value that is deeper than the limit or holds what no value may hold")
        return value

    def _plain(self, value: Any) -> bool:
        """Whether a value holds nothing but the wire's own types, with string keys, within the limits."""
        kind: type[Any] = type(value)
        if kind is not dict and kind is not list:
            return kind in _LEAVES
        level: list[Any] = [value]
        depth = containers = 0
        parts = 1
        while level:
            depth += 1
            containers += len(level)
            parts += sum(map(len, level))
            if depth > self._limit_depth or containers > self._limit_containers or parts > self.limit_parts:
                return False
            below: list[Any] = []
            for container in level:
                if type(container) is dict:
                    pairs = cast("dict[Any, Any]", container)
                    parts += len(pairs)  # its keys
                    for key, item in pairs.items():
                        if type(key) is not str:
                            return False
                        kind = type(item)
                        if kind is dict or kind is list:
                            below.append(item)
                        elif kind not in _LEAVES:
                            return False
                else:
                    for item in container:
                        kind = type(item)
                        if kind is dict or kind is list:
                            below.append(item)
                        elif kind not in _LEAVES:
                            return False
            level = below
        return parts <= self.limit_parts


class _Translation:
    """Turns one value into the wire's own types, or refuses it with the path of the part at fault."""

    def __init__(self, depth: int, containers: int, parts: int, pickler: Callable[[Any], bytes | None] | None) -> None:
        self._limit_depth = depth
        self._limit_containers = containers
        self._limit_parts = parts
        self._pickler = pickler
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

    def _container(self, value: Any, path: str) -> Any:
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
        if type(plain) in _LEAVES:
            return _translate_leaf(plain, path)
    return _NOT_A_LEAF


def _fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass instance, a pydantic model or a namedtuple; None for anything else."""
    if isinstance(value, type):
        return None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return dict(zip(cast("Any", value)._fields, cast("tuple[Any, ...]", value), strict=True))
    dump = getattr(value, "model_dump", None)
    if callable(dump) and hasattr(type(value), "model_fields"):
        fields = dump()
        return cast("dict[str, Any]", fields) if isinstance(fields, dict) else None
    return None


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
    if hasattr(value, "tolist"):
        return "arrays do not cross; send .tolist() or a summary"
    if callable(value):
        return "code does not cross the process border"
    return (
        "only None, bool, int, float, str, bytes, lists and dicts with str keys cross "
        "(and dataclasses, pydantic models, tuples and sets, turned into these)"
    )


def _read_extension(code: int, data: memoryview) -> Any:
    if code == _BIG_INT:
        return int.from_bytes(data, "little", signed=True)
    if code == _SURROGATES:
        return bytes(data).decode("utf-8", "surrogatepass")
    raise msgspec.DecodeError(f"extension {code} is not part of the wire")


def _read_any_extension(code: int, data: memoryview) -> Any:
    if code == _PICKLE:
        return pickle.loads(data)
    return _read_extension(code, data)


_UNWEIGHED_BYTES = 65536  # a frame of no more has too few parts to matter, even when each byte is one


def _steps() -> tuple[int, ...]:
    """How far each first byte of a part is from the next part's; 0: it depends on a length that follows."""
    found = [1] * 256
    found[0xA0:0xC0] = range(1, 33)  # short text
    found[0xC4:0xCA] = [0] * 6  # bytes, extensions
    found[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]  # floats and whole numbers
    found[0xD4:0xD9] = [3, 4, 6, 10, 18]  # extensions of a fixed size
    found[0xD9:0xDC] = [0] * 3  # text
    found[0xDC:0xE0] = [3, 5, 3, 5]  # lists and dicts: what they hold follows as parts of its own
    return tuple(found)


_STEPS = _steps()
# Where a length follows: its width, and the bytes between it and the data.
_LENGTHS = {
    **{0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0), 0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0)},
    **{0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)},
}
_CONTAINERS = frozenset([*range(0x80, 0xA0), *range(0xDC, 0xE0)])
_NO_CONTAINERS = bytes(code for code in range(256) if code not in _CONTAINERS)


def _most_containers(data: Frame) -> int:
    """Lists and dicts are at most as many as bytes that may begin one. Few in text; found much faster."""
    return len(bytes(data).translate(None, _NO_CONTAINERS))


def _count(data: Frame, most: int, most_containers: int) -> tuple[int, int]:
    """How many parts a frame has, and how many of them are lists and dicts; it stops at one more than the most.

    Nothing of the value is built. A frame that is no value is left for the decoder to refuse.
    """
    steps = _STEPS
    at = parts = containers = 0
    end = len(data)
    while at < end and parts <= most:
        code = data[at]
        parts += 1
        step = steps[code]
        if step:
            at += step
            if code in _CONTAINERS:
                containers += 1
                if containers > most_containers:
                    break
        else:
            width, extra = _LENGTHS[code]
            at += 1 + width + extra + int.from_bytes(data[at + 1 : at + 1 + width], "big")
    return parts, containers
