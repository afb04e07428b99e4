"""What a small namespace of plain values holds, to see at little cost whether it still holds the same.

Pickling it again would tell, too, but takes longer than a small cell.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Mapping
from operator import is_
from typing import Any, cast

__all__ = ["CHANGEABLE", "NamespaceSnapshot"]

_MOST_PARTS = 1000  # that are looked at; what is larger is pickled
_LARGEST = 65_536  # bytes of one value: it stays in memory as long as the snapshot does, though the agent let go of it
CHANGEABLE = 1 << 9  # the flag of a class that was made by a `class` statement, or in such a way

_UNCHANGING: frozenset[Any] = frozenset(
    {type(None), bool, int, float, complex, str, bytes, range, type(...), types.ModuleType}
)


def _of_dict(value: dict[Any, Any]) -> tuple[Any, ...]:
    return (*value, *value.values())


def _of_function(value: types.FunctionType) -> tuple[Any, ...]:
    return (
        value.__code__,
        value.__closure__,
        value.__defaults__,
        value.__kwdefaults__,
        value.__dict__,
        value.__annotations__,
        value.__name__,
        value.__qualname__,
        value.__module__,
        value.__doc__,
    )


# Exactly these types: a subclass has what is not seen here, and code of the agent's that would run.
_PARTS: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    list: tuple,
    tuple: tuple,
    set: tuple,
    frozenset: tuple,
    dict: _of_dict,
    types.FunctionType: _of_function,
}


class _TooMuch(Exception):
    """There is a part of which no change would be seen, or too many parts."""


class NamespaceSnapshot:
    """All parts of the values of some names, by identity: parts that can change, and what was in them.

    Args:
        namespace: the agent's globals; functions with others are pickled in another way.
    """

    def __init__(self, names: Mapping[str, Any], namespace: dict[str, Any]) -> None:
        self._namespace = namespace
        self._names = tuple(names)
        self._values = tuple(names.values())
        self._parts: list[tuple[Any, tuple[Any, ...]]] = []
        self._room = _MOST_PARTS
        seen: set[int] = set()
        waiting = list(self._values)
        while waiting:
            self._take(waiting.pop(), seen, waiting)

    @classmethod
    def of(cls, names: Mapping[str, Any], namespace: dict[str, Any]) -> NamespaceSnapshot | None:
        """A snapshot of these names. None: they hold more than plain values, or many."""
        try:
            return cls(names, namespace)
        except (_TooMuch, RuntimeError):  # RuntimeError: a thread of the agent's changes them meanwhile
            return None

    def _take(self, value: Any, seen: set[int], waiting: list[Any]) -> None:
        kind = cast("type[Any]", type(value))
        self._room -= 1
        if self._room < 0:
            raise _TooMuch
        if kind in _UNCHANGING:
            if sys.getsizeof(value) > _LARGEST:
                raise _TooMuch
            return
        if kind is type and not value.__flags__ & CHANGEABLE:
            return
        if kind is types.BuiltinFunctionType and type(value.__self__) is types.ModuleType:
            return  # others, such as `[].append`, hold an object
        if kind not in _PARTS or (kind is types.FunctionType and not self._is_simple(value)):
            raise _TooMuch
        if id(value) in seen:
            return
        seen.add(id(value))
        parts = _PARTS[kind](value)
        if len(parts) > self._room:
            raise _TooMuch
        self._parts.append((value, parts))
        waiting += parts[1:] if kind is types.FunctionType else parts

    def _is_simple(self, function: types.FunctionType) -> bool:
        """Whether all that is kept of a function is in its own attributes, and looking at those runs no code."""
        lazy = sys.version_info >= (3, 14) and function.__annotate__ is not None
        return function.__globals__ is self._namespace and function.__closure__ is None and not lazy

    def holds(self, names: Mapping[str, Any]) -> bool:
        """Whether these names and their values are the same as then, and nothing in them has changed."""
        if not (_same(self._names, tuple(names)) and _same(self._values, tuple(names.values()))):
            return False
        try:
            return all(_same(parts, _PARTS[cast("type[Any]", type(value))](value)) for value, parts in self._parts)
        except (RuntimeError, NameError):  # it changes now, or has got annotations that cannot be evaluated
            return False


def _same(first: tuple[Any, ...], second: tuple[Any, ...]) -> bool:
    return len(first) == len(second) and all(map(is_, first, second))
