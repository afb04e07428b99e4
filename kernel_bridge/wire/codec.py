"""The codec: values to bytes and back, within the limits of a session."""

# Values of any type are looked at here by their run-time type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import gc
from collections.abc import Callable, Collection
from typing import Any, cast

import msgspec

from kernel_bridge.wire.frame import Frame, WireError, count_parts
from kernel_bridge.wire.values import LEAVES, Translation, Unsendable, host_extensions, read_extension

__all__ = ["Codec"]

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
        paged: makes a list of its source, key and length. Given only in a kernel, never on a host: with it, what the
            other side pickled is accepted too.
    """

    def __init__(
        self, *, limit_bytes: int, limit_depth: int, paged: Callable[[str, Any, int], Any] | None = None
    ) -> None:
        self.limit_bytes = limit_bytes
        self._limit_depth = limit_depth
        self._limit_containers = max(1024, limit_bytes // _BYTES_PER_CONTAINER)
        self.limit_parts = max(_FEWEST_PARTS, limit_bytes // _BYTES_PER_PART)
        self._encoder = msgspec.msgpack.Encoder()
        extensions = read_extension if paged is None else host_extensions(paged)
        self._decoder = msgspec.msgpack.Decoder(Any, ext_hook=extensions)

    def dump(
        self,
        value: Any,
        path: str = "",
        pickler: Callable[[Any], bytes | None] | None = None,
        sources: Collection[str] = (),
    ) -> bytes:
        """Encode a value.

        A pydantic model becomes what `model_dump(mode="json")` gives. Dataclass instances and namedtuples become dicts;
        tuples, sets and frozensets become lists; subclasses of the plain types become the plain type; numpy scalars
        become Python numbers; bytearray and memoryview become bytes.

        Args:
            path: what to call the value in an error.
            pickler: may answer, for an object that is not plain, with the pickle to send in its place.
            sources: the page sources that the receiver can call; a `PagedList` of another one is sent whole.

        Raises:
            Unsendable: with the path of the part that cannot cross. Nothing was encoded.
            Exception: whatever the source of a `PagedList` raises that is sent whole.
        """
        try:
            translate = Translation(self._limit_depth, self._limit_containers, self.limit_parts, pickler, sources)
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
            room: for parts, that is left. A frame of no more bytes than half of it need not be looked through: what is
                guessed too high leaves as much for others.

        Raises:
            WireError: the frame is too large, or has too many parts, or too many lists and dicts.
        """
        size = len(frame)
        if size > self.limit_bytes:
            raise WireError(f"a value of {size} bytes; at most {self.limit_bytes}")
        harmless = self.limit_parts if room is None else room // 2
        if size <= min(harmless, self._limit_containers):
            return size
        parts, containers = count_parts(frame, self.limit_parts, self._limit_containers)
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
            return kind in LEAVES
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
                        elif kind not in LEAVES:
                            return False
                else:
                    for item in container:
                        kind = type(item)
                        if kind is dict or kind is list:
                            below.append(item)
                        elif kind not in LEAVES:
                            return False
            level = below
        return parts <= self.limit_parts
