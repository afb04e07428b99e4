"""Which variables a kernel has already: a value is encoded and sent again only when it changed."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, cast

from kernel_bridge.cells import Pickled
from kernel_bridge.wire import Codec

__all__ = ["SentVariables"]

_UNCHANGING = (str, bytes, int, float, bool, type(None))
_RAW_BYTES = 65536  # shorter ones are not worth a form of their own
_HASH_BYTES = 4096  # encodings shorter than this are compared as they are


@dataclass(frozen=True, slots=True)
class _Encoded:
    mark: bytes  # the encoding, or its hash when it is long


class SentVariables:
    """Remembers, for one kernel, what was last sent under each name. For one thread at a time."""

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._sent: dict[str, Any] = {}  # the value itself if it cannot change, else its _Encoded
        self._sending: dict[str, Any] = {}
        self._inherited: dict[str, Any] = {}  # what the kernel's dead predecessor had of it

    def changed(
        self, name: str, value: Any, page_sources: Collection[str] = ()
    ) -> tuple[str, bytes | memoryview] | None:
        """The value as (form, data), or None when the kernel has it.

        The form is "value", one of the wire's values, or, for a long string or bytes, "text" or "bytes": the data
        itself, which saves a copy on either side.

        A string or a number is compared with what was sent, anything that could have been changed in place by its
        encoding. `page_sources`: what the kernel can read pages from; see `Codec.dump`.

        Raises:
            Unsendable: with the path, whose root is the variable's name.
        """
        known = self._sent.get(name)
        if type(value) in _UNCHANGING:
            if _same(known, value):
                return None
            self._sending[name] = value
            return self._raw(value) or ("value", self._codec.dump(value, name))
        data = self._codec.dump(value, name, _pickled, page_sources)
        mark = _Encoded(data if len(data) < _HASH_BYTES else hashlib.blake2b(data).digest())
        if known == mark:
            return None
        self._sending[name] = mark
        return "value", data

    def _raw(self, value: Any) -> tuple[str, bytes | memoryview] | None:
        if type(value) is bytes and _RAW_BYTES <= len(value) <= self._codec.limit_bytes:
            return "bytes", value
        if type(value) is str and len(value) >= _RAW_BYTES:
            if value.isascii() and len(value) <= self._codec.limit_bytes:
                return "text", _ascii_bytes(value)
            with contextlib.suppress(UnicodeEncodeError):  # a lone surrogate: the codec knows what to do
                data = value.encode()
                if len(data) <= self._codec.limit_bytes:
                    return "text", data
        return None

    def begin(self) -> None:
        """A new cell is being encoded; what an earlier one did not deliver counts for nothing."""
        self._sending = {}

    def settle(self) -> None:
        """The cell that carried them was run: the kernel has them now."""
        self._sent.update(self._sending)
        for name in self._sending:
            self._inherited.pop(name, None)
        self._sending = {}

    def inherited(self, name: str) -> bool:
        """Whether a value that is sent now is the one that the kernel's dead predecessor had.

        Then what the agent made of it, if that was restored from a checkpoint, is newer.
        """
        had, has = self._inherited.get(name), self._sending.get(name)
        return had == has if isinstance(had, _Encoded) else _same(had, has)

    def forget(self) -> None:
        """The kernel is a new one and has nothing."""
        self._inherited = {**self._inherited, **self._sent}
        self._sent = {}
        self._sending = {}


def _same(known: Any, value: Any) -> bool:
    """Whether two values that cannot change are one to the agent: 1 is not True, -0.0 not 0.0, and NaN is NaN."""
    if type(known) is not type(value) or known is None:
        return False
    return known.hex() == value.hex() if type(value) is float else known == value


def _ascii_bytes(value: str) -> memoryview:
    """The bytes of an ASCII string where they are. An `encode` would copy them, a quarter of what sending costs."""
    size = ctypes.c_ssize_t()
    address = _utf8(ctypes.py_object(value), ctypes.byref(size))
    window: Any = (ctypes.c_char * size.value).from_address(address)
    window.owner = value  # lives as long as any view of its memory
    return memoryview(window).cast("B")


_utf8 = ctypes.pythonapi.PyUnicode_AsUTF8AndSize
_utf8.restype = ctypes.c_void_p


def _pickled(value: Any) -> bytes | None:
    if not isinstance(value, Pickled):
        return None
    import cloudpickle

    return cast("Any", cloudpickle).dumps(value.value)
