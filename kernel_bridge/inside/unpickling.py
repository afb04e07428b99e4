"""Loading the agent's names from their pickles: what cannot be loaded costs the names that hold it."""

from __future__ import annotations

import io
import pickle
import pickletools
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any, cast

from kernel_bridge.inside.bounded_call import LEAST_SECONDS, Seconds, call_within
from kernel_bridge.inside.tracebacks import in_brief

__all__ = ["load_names"]

_REFERENCES = ("BINGET", "LONG_BINGET")
_FILLING = ("BUILD", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS")  # they leave the object that they fill
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
        return _load_apart(data, sizes, seconds)


def _load_apart(data: bytes, sizes: Mapping[str, int], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Load one name after the other. Half of the seconds are for the agent's code, of which none gets more than half.

    As many are for reading pickles, which runs none of it: one that is not read loses all names that come after it.
    """
    loader = _Loader(Seconds(seconds), Seconds(seconds / 2))
    loaded: dict[str, Any] = {}
    lost: dict[str, str] = {}
    end = 0
    for name, size in sizes.items():
        start, end = end, end + size
        try:
            loaded[name] = loader.load(data[start:end], name)
        except BaseException as error:  # noqa: BLE001 - unpickling runs the agent's own code
            lost[name] = f"restoring it raised {in_brief(error, LEAST_SECONDS)}"
    return loaded, lost


class _Loader:
    """One unpickler for many pickles, of which some fail. Serves it the bytes of the present one.

    Objects that pickles refer to are numbered in the order in which they are made. When a pickle fails, its objects are
    missing or half made. One that a later pickle refers to is made again, from its part of the failed pickle; when that
    cannot be, the later pickle is refused.

    Args:
        reading: for pickles.
        running: for the code that restores objects.
    """

    def __init__(self, reading: Seconds, running: Seconds) -> None:
        self._reading, self._running = reading, running
        self._count = 0  # objects that have a number
        self._missing: dict[int, str] = {}  # number of an object, and the name that was lost with it
        self._made_again: set[int] = set()
        self._failed: dict[str, bytes] = {}  # pickles of lost names, with the numbers of their objects
        self._parts: dict[str, _Parts] = {}  # of those to which later ones refer
        self._unread: str | None = None  # a name whose pickle could not be read to its end
        self._file = io.BytesIO()
        self._unpickle = pickle.Unpickler(self).load

    def read(self, size: int, /) -> bytes:
        return self._file.read(size)

    def readline(self) -> bytes:
        return self._file.readline()

    def load(self, data: bytes, name: str) -> Any:
        """Load the next pickle. Raises: BaseException, from the agent's code."""
        if self._unread is not None:  # how many objects it has is not known, nor which numbers come after them
            raise ValueError(f"it comes after {self._unread}, which cannot be read")
        first, self._unread = self._count, name
        whole, refers = self._reading.run(lambda: self._with_numbers(data))
        self._unread = None
        try:
            for number in self._missing.keys() & refers:
                self._make(number)
            return self._run(whole)
        except BaseException:
            self._missing.update(dict.fromkeys(range(first, self._count), name))
            self._failed[name] = whole
            raise

    def _make(self, number: int) -> None:
        """Make a missing object, and those in it. Raises: ValueError."""
        if (name := self._missing.pop(number, None)) is None:
            return  # it was made as a part of another one, or is being made
        try:
            if name not in self._parts:
                self._parts[name] = self._reading.run(lambda: _Parts(self._failed[name]))
            code, made, refers = self._parts[name].of(number)
            for other in self._missing.keys() & refers:
                self._make(other)
            if number not in self._made_again:  # as a part of one of those
                self._run(code)
                self._made_again |= made
        except BaseException as error:
            self._missing[number] = name
            raise ValueError(f"it shares an object with {name}") from error
        for other in made:
            self._missing.pop(other, None)

    def _run(self, code: bytes) -> Any:
        self._file = io.BytesIO(code)
        return self._running.run(self._unpickle, share=0.5)

    def _with_numbers(self, data: bytes) -> tuple[bytes, set[int]]:
        """A pickle with the numbers of its objects written out, and the numbers to which it refers."""
        whole = bytearray()
        refers: set[int] = set()
        found = ((kind.name, argument, start) for kind, argument, start in pickletools.genops(data))
        for (kind, argument, start), (_, _, end) in pairwise(chain(found, [("", None, len(data))])):
            if kind == "MEMOIZE":
                whole += pickle.LONG_BINPUT + _NUMBER.pack(self._count)
                self._count += 1
            elif kind != "FRAME":  # which only says how much to read at once, and would now be wrong
                whole += data[start:end]
            if kind in _REFERENCES:
                refers.add(cast("int", argument))
        return bytes(whole), refers


@dataclass
class _Item:
    """What lies on the unpickler's stack."""

    start: int  # of the instructions that make it
    is_mark: bool = False
    numbers: list[int] = field(default_factory=list[int])


class _Parts:
    """The parts of a pickle that make its numbered objects, each with all that fills it."""

    def __init__(self, code: bytes) -> None:
        self._code = code
        self._ends: dict[int, tuple[int, int]] = {}  # number -> where its part begins, and ends
        self._made: list[tuple[int, ...]] = []  # place, number
        self._refers: list[tuple[int, ...]] = []
        stack: list[_Item] = []
        for kind, argument, place in cast("Iterable[tuple[Any, Any, int]]", pickletools.genops(code)):
            if kind.name == "LONG_BINPUT":
                stack[-1].numbers.append(argument)
                self._made.append((place, argument))
                continue
            if kind.name in _REFERENCES:
                self._refers.append((place, argument))
            taken = _take(kind, stack)
            for item, above in pairwise([*taken, _Item(place)]):
                self._ends.update(dict.fromkeys(item.numbers, (item.start, above.start)))
            if kind.name in _FILLING:
                stack.append(taken[0])
            elif kind.stack_after:
                start = taken[0].start if taken else place
                stack.append(_Item(start, is_mark=kind.stack_after == [pickletools.markobject]))

    def of(self, number: int) -> tuple[bytes, set[int], set[int]]:
        """The pickle of an object, the numbers of those that it makes, and the numbers to which it refers besides."""
        start, end = self._ends[number]
        made, refers = (
            {number for _, number in found[bisect_left(found, (start,)) : bisect_left(found, (end,))]}
            for found in (self._made, self._refers)
        )
        return self._code[start:end] + pickle.STOP, made, refers - made


def _take(kind: Any, stack: list[_Item]) -> list[_Item]:
    """Take from the stack what an instruction takes."""
    least = len(kind.stack_before)
    if pickletools.markobject in kind.stack_before:
        mark = max(place for place, item in enumerate(stack) if item.is_mark)
        least = len(stack) - mark + kind.stack_before.index(pickletools.markobject)
    taken = stack[len(stack) - least :]
    del stack[len(stack) - least :]
    return taken
