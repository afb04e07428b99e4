"""Loading the agent's names from their pickles: what cannot be loaded costs the names that hold it."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
import time
from collections.abc import Mapping
from itertools import chain, pairwise
from typing import Any, cast

from kernel_bridge.inside.bounded_call import call_within
from kernel_bridge.inside.tracebacks import in_brief

__all__ = ["load_names"]

_LEAST_SECONDS = 0.05  # that one name gets, however much time others have used up
_TEXTS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_REFERENCES = ("BINGET", "LONG_BINGET")
_NUMBER = struct.Struct("<I")


def load_names(data: bytes, sizes: Mapping[str, int], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Load names that `Pickling` has pickled. Returns their values, and why each other one is lost.

    Args:
        sizes: bytes of each name's pickle, in their order in the data.
        seconds: that the code which restores objects may take.
    """
    load = pickle.Unpickler(io.BytesIO(data)).load
    try:
        return call_within(seconds, lambda: {name: load() for name in sizes}), {}
    except BaseException:  # noqa: BLE001 - unpickling runs the agent's own code
        return _load_apart(data, sizes, seconds / 2)


def _load_apart(data: bytes, sizes: Mapping[str, int], left: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Load one name after the other. None gets more than half of the seconds that are left."""
    loader = _Loader()
    loaded: dict[str, Any] = {}
    lost: dict[str, str] = {}
    end = 0
    for name, size in sizes.items():
        started = time.monotonic()
        start, end = end, end + size
        try:
            loaded[name] = loader.load(data[start:end], name, max(_LEAST_SECONDS, left / 2))
        except BaseException as error:  # noqa: BLE001 - unpickling runs the agent's own code
            lost[name] = f"restoring it raised {in_brief(error, _LEAST_SECONDS)}"
        left -= time.monotonic() - started
    return loaded, lost


class _Loader:
    """One unpickler for many pickles, of which some fail. Serves it the bytes of the present one.

    Objects that pickles refer to are numbered in the order in which they are made. When a pickle fails, its objects are
    missing or half made, and a later pickle that refers to one of them is refused. Texts, classes and functions are
    made all the same: every other object with the same fields or of the same class refers to them.
    """

    def __init__(self) -> None:
        self._count = 0  # objects that have a number
        self._missing: dict[int, str] = {}  # number of an object, and the name that was lost with it
        self._texts: set[int] = set()
        self._unread: str | None = None  # a name whose pickle could not be read to its end
        self._file = io.BytesIO()
        self._unpickle = pickle.Unpickler(self).load

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline()

    def load(self, data: bytes, name: str, seconds: float) -> Any:
        """Load the next pickle. Raises: BaseException, from the agent's code."""
        if self._unread is not None:  # how many objects it has is not known, nor which numbers come after them
            raise ValueError(f"it comes after {self._unread}, which cannot be read")
        first, self._unread = self._count, name
        whole, spare, refers = call_within(seconds, lambda: self._with_numbers(data))
        self._unread = None
        try:
            for number in self._missing.keys() & refers:
                raise ValueError(f"it shares an object with {self._missing[number]}")
            return self._run(whole, seconds)
        except BaseException:
            self._missing.update(dict.fromkeys(range(first, self._count), name))
            for number, code in spare.items():
                try:
                    self._run(code, seconds)
                    del self._missing[number]
                except BaseException:  # noqa: BLE001 - a module is imported
                    continue
            raise

    def _run(self, code: bytes | bytearray, seconds: float) -> Any:
        self._file = io.BytesIO(code)
        return call_within(seconds, self._unpickle)

    def _with_numbers(self, data: bytes) -> tuple[bytearray, dict[int, bytes], set[int]]:
        """A pickle with the numbers of its objects written out.

        Also a pickle of each text, class and function in it by their numbers, and the numbers to which it refers.
        """
        whole = bytearray()
        spare: dict[int, bytes] = {}
        refers: set[int] = set()
        texts = [b"", b""]  # what pushes the last two of them
        simple = b""  # what makes the object on top, if that is a text, a class or a function
        found = ((kind.name, argument, start) for kind, argument, start in pickletools.genops(data))
        for (kind, argument, start), (_, _, end) in pairwise(chain(found, [("", None, len(data))])):
            code = data[start:end]
            before, simple = simple, b""
            if kind == "MEMOIZE":
                number = _NUMBER.pack(self._count)
                code = pickle.LONG_BINPUT + number
                if before:
                    spare[self._count] = before + code + pickle.STOP
                if before == texts[1]:
                    self._texts.add(self._count)
                    texts[1] = pickle.LONG_BINGET + number
                self._count += 1
            elif kind in _TEXTS:
                texts, simple = [texts[1], code], code
            elif kind == "STACK_GLOBAL":
                simple = b"".join((*texts, code))
            elif kind in _REFERENCES:
                refers.add(cast("int", argument))
                if argument in self._texts:
                    texts = [texts[1], code]
            if kind != "FRAME":  # which only says how much to read at once, and would now be wrong
                whole += code
        return whole, spare, refers
