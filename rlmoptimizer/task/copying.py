"""Deep copies of foreign values, also of those that hold what cannot be copied: locks, clients, generators."""

# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false
# pyright: reportUnknownVariableType=false

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, Final, TypeVar, cast

import dspy
from dspy.primitives.base_module import BaseModule
from dspy.primitives.prediction import Completions

__all__ = ["RECORDS", "copy_of", "deep_copy"]

# What DSPy writes down while a program runs: it can be long, holds no modules, and is no part of the program.
RECORDS: Final = frozenset({"history", "callbacks", "traces", "train"})

_ATOMS: Final = frozenset({type(None), bool, int, float, str, bytes})
_FLAT: Final = frozenset({dict, list, set})

_T = TypeVar("_T")


def copy_of(value: _T) -> _T:
    """A deep copy that shares with `value` only what cannot be copied. Never raises; at worst it gives `value`."""
    if type(value) in _ATOMS:
        return value
    if type(value) is dspy.Example or type(value) is dspy.Prediction:
        quick = _flat_copy(value)
        if quick is not None:
            return quick
    try:
        return deep_copy(value, {}, opens_objects=True)
    except Exception:  # noqa: BLE001 - any object may refuse to be copied, in its own way
        return value


def deep_copy(value: _T, memo: dict[int, Any], *, opens_objects: bool = False) -> _T:
    """A deep copy that shares what is in `memo`, by id, and what cannot be copied and is no container.

    `opens_objects`: of an object that cannot be copied only those attributes are shared that cannot be copied.
    Raises whatever a container raises that refuses even so. `memo` has every part's copy in the end.
    """
    shared = dict(memo)
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # noqa: BLE001 - see above
        memo.clear()
        memo.update(shared | {id(part): part for part in _uncopyable(value, shared, opens_objects)})
        return copy.deepcopy(value, memo)


def _flat_copy(value: Any) -> Any:
    """A deep copy of a record of texts and numbers, as nearly all are, but quick; None: it is not one."""
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


def _uncopyable(value: Any, shared: Mapping[int, Any], opens_objects: bool) -> Iterator[Any]:
    """The parts of containers, modules and records in `value` that cannot be copied."""
    seen: set[int] = set(shared)
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if isinstance(part, BaseModule | dspy.Example):  # dspy.Prediction too
            waiting.extend(item for name, item in vars(part).items() if name not in RECORDS)
        elif isinstance(part, dict):
            waiting.extend(side for item in cast("dict[Any, Any]", part).items() for side in item)
        elif isinstance(part, list | tuple | set | frozenset):
            waiting.extend(cast("list[Any]", part))
        elif not _copies(part, shared):
            inner = getattr(part, "__dict__", {}).values() if opens_objects else ()
            if refusing := [each for each in inner if not _copies(each, shared)]:
                waiting.extend(refusing)
            else:
                yield part


def _copies(value: Any, shared: Mapping[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(shared))
    except Exception:  # noqa: BLE001 - see above
        return False
    return True
