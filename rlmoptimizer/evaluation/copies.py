"""Copies of foreign values, for whoever may change them. Knows what cannot be copied, not what anything means."""

# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false
# DSPy has no types of its own.

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import dspy
from dspy.primitives.prediction import Completions

__all__ = ["own_copy"]

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_FLAT: Final = frozenset({dict, list, set})

_T = TypeVar("_T")


def own_copy(value: _T) -> _T:
    """A deep copy of any value, which shares with it only what cannot be copied (locks, clients, generators).

    Never raises; what cannot be copied even so is given as it is.
    """
    if type(value) in _ATOMS:
        return value
    if type(value) is dspy.Example or type(value) is dspy.Prediction:
        quick = _flat_copy(value)
        if quick is not None:
            return quick
    try:
        return copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - any object may refuse to be copied, in its own way
        pass
    try:
        return copy.deepcopy(value, {id(part): part for part in _uncopyable(value)})
    except Exception:  # noqa: BLE001 - see above
        return value


def _flat_copy(value: Any) -> Any:
    """The same as a deep copy of a record of texts and numbers, as nearly all are, but quick; None: it is no such."""
    made = object.__new__(type(value))
    for name, part in vars(value).items():
        kind = cast("type[Any]", type(part))
        if kind in _FLAT and _ATOMS.issuperset(map(type, part.values() if kind is dict else part)):
            part = part.copy()
        elif kind is Completions:
            answers = cast("list[Any]", list(part.items()))
            if not all(_ATOMS.issuperset(map(type, texts)) for _, texts in answers):
                return None
            part = Completions({field: list(texts) for field, texts in answers}, signature=part.signature)
        elif kind not in _ATOMS:
            return None
        vars(made)[name] = part
    return made


def _uncopyable(value: Any) -> Iterator[Any]:
    """The innermost parts of a value that cannot be copied."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        part = stack.pop()
        if id(part) in seen or _copies(part):
            continue
        seen.add(id(part))
        inner = [each for each in _parts(part) if not _copies(each)]
        if inner:
            stack.extend(inner)
        else:
            yield part


def _copies(value: Any) -> bool:
    if type(value) in _ATOMS:
        return True
    try:
        copy.deepcopy(value)
    except Exception:  # noqa: BLE001 - see `own_copy`
        return False
    return True


def _parts(value: Any) -> list[Any]:
    if isinstance(value, dspy.Example):  # dspy.Prediction too
        return [vars(value)]
    if isinstance(value, Mapping):
        fields = cast("Mapping[Any, Any]", value)
        return [*fields.keys(), *fields.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(cast("list[Any]", value))
    return list(getattr(value, "__dict__", {}).values())
