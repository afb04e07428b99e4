"""Salvage: load a pickle of names of which some cannot be loaded, and lose only those. Runs in a kernel only.

Plain `pickle.loads` gives all or nothing. This is the slow way, for the case that it gave nothing: in the pickle, each
instruction that may run foreign code is replaced by the one for objects that are kept elsewhere. Of those the unpickler
asks `persistent_load`, which does what the instruction would have done, within a time, and catches what it raises.
"""

from __future__ import annotations

import gc
import io
import itertools
import pickle
import pickletools
import time
import types
from collections.abc import Callable
from typing import Any, cast

from kernel_bridge.inside.time_limit import call_within
from kernel_bridge.inside.tracebacks import in_brief

_MOST_LOOKED_AT = 1_000_000  # objects, in the search for what is broken below one name
_LEAST_SECONDS = 0.05  # that one call gets, however much time others have used up

# By the instruction's name in pickletools: what makes one tuple of all that it takes from the stack.
_TAKES = {
    "REDUCE": pickle.TUPLE2,
    "NEWOBJ": pickle.TUPLE2,
    "NEWOBJ_EX": pickle.TUPLE3,
    "FROZENSET": pickle.TUPLE + pickle.TUPLE1,
    "BUILD": pickle.TUPLE2,
    "APPEND": pickle.TUPLE1 + pickle.TUPLE2,
    "APPENDS": pickle.TUPLE + pickle.TUPLE2,
    "SETITEM": pickle.TUPLE2 + pickle.TUPLE2,
    "SETITEMS": pickle.TUPLE + pickle.TUPLE2,
    "ADDITEMS": pickle.TUPLE + pickle.TUPLE2,
}
_NAMES = (*_TAKES, "SET_STATE")  # the last one is a REDUCE whose result is dropped: it fills its first argument


class _Broken:
    """Stands for an object that could not be made."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def salvage(data: bytes, namespace: dict[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a pickled dict of names. Returns those that are whole, and why each other one is not.

    Args:
        namespace: the globals of restored functions; what is in there is not part of any of them.
        seconds: that the code which restores objects may take in all. No call gets more than half of what is left.

    Raises:
        Exception: it is not a pickle of a dict at all.
    """
    loader = _Salvager(io.BytesIO(_guarded(data)), seconds)
    names = loader.load()
    if type(names) is not dict:
        raise TypeError("it is no dict of names")
    whole: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for name, value in cast("dict[str, Any]", names).items():
        broken = _find_broken(value, loader.broken, namespace)
        if broken is None:
            whole[name] = value
        else:
            lost[name] = broken.reason
    return whole, lost


def _find_broken(value: Any, known: dict[int, _Broken], namespace: dict[str, Any]) -> _Broken | None:
    """What is broken in a value or below it, if anything is."""
    seen = {id(namespace)}
    waiting = [value]
    while waiting and len(seen) < _MOST_LOOKED_AT:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        if type(part) is _Broken:  # not isinstance, which asks the agent's objects for their __class__
            return part
        if id(part) in known:
            return known[id(part)]
        if not issubclass(type(part), types.ModuleType):
            waiting.extend(gc.get_referents(part))
    return None


def _guarded(data: bytes) -> bytearray:
    """The same pickle, with each instruction that may run foreign code replaced by one that asks `persistent_load`."""
    made = bytearray()
    view = memoryview(data)
    instructions = ((instruction.name, start) for instruction, _, start in pickletools.genops(data))
    for (name, start), (following, end) in itertools.pairwise(itertools.chain(instructions, [("", len(data))])):
        if name in _TAKES:
            kind = "SET_STATE" if name == "REDUCE" and following == "POP" else name
            number = bytes([_NAMES.index(kind)])
            made += _TAKES[name] + pickle.BININT1 + number + pickle.TUPLE2 + pickle.BINPERSID
        elif name != "FRAME":  # which only says how much to read at once, and would now be wrong
            made += view[start:end]
    return made


class _Salvager(pickle.Unpickler):
    """Loads a guarded pickle. Puts a `_Broken` in the place of each object that cannot be made, and goes on."""

    def __init__(self, file: io.BytesIO, seconds: float) -> None:
        super().__init__(file)
        self.broken: dict[int, _Broken] = {}  # by the id of an object that was made, but not filled
        self._kept: list[Any] = []  # so that no id is used again
        self._left = seconds

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = super().find_class
        return self._try(lambda: found(module_name, global_name))

    def persistent_load(self, pid: tuple[tuple[Any, ...], int]) -> Any:
        taken, number = pid
        kind = _NAMES[number]
        target = taken[0]
        if kind == "SET_STATE":
            setter, arguments = taken
            target = arguments[0] if arguments else None
            if type(setter) is _Broken or type(target) is _Broken:
                done = setter
            else:
                done = self._try(lambda: setter(*arguments))
        elif type(target) is _Broken:
            return target
        elif kind in _MAKING:
            return self._try(lambda: _MAKING[kind](*taken))
        else:
            done = self._try(lambda: _FILLING[kind](*taken))
        if type(done) is _Broken and type(target) not in _SHARED:
            self._kept.append(target)
            self.broken[id(target)] = done
        return target

    def _try(self, action: Callable[[], Any]) -> Any:
        started = time.monotonic()
        seconds = max(_LEAST_SECONDS, self._left / 2)
        try:
            return call_within(seconds, action)
        except BaseException as error:  # noqa: BLE001 - the agent's own code, or an import
            return _Broken(f"restoring it raised {in_brief(error, _LEAST_SECONDS)}")
        finally:
            self._left -= time.monotonic() - started


def _set_state(target: Any, state: Any) -> None:
    if hasattr(target, "__setstate__"):
        target.__setstate__(state)
        return
    slots: Any = None
    if isinstance(state, tuple) and len(cast("tuple[Any, ...]", state)) == 2:
        state, slots = cast("tuple[Any, Any]", state)
    if state:
        target.__dict__.update(state)
    for name, value in cast("dict[str, Any]", slots or {}).items():
        setattr(target, name, value)


def _extend(target: Any, items: tuple[Any, ...]) -> None:
    if hasattr(target, "extend"):
        target.extend(items)
        return
    for item in items:
        target.append(item)


def _set_items(target: Any, items: tuple[Any, ...]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[key] = value


def _add(target: Any, items: tuple[Any, ...]) -> None:
    target.update(items)


def _call(maker: Any, arguments: tuple[Any, ...]) -> Any:
    return maker(*arguments)


def _new(kind: Any, arguments: tuple[Any, ...], keywords: dict[str, Any] | None = None) -> Any:
    return kind.__new__(kind, *arguments, **(keywords or {}))


_MAKING: dict[str, Callable[..., Any]] = {"REDUCE": _call, "NEWOBJ": _new, "NEWOBJ_EX": _new, "FROZENSET": frozenset}
_FILLING: dict[str, Callable[..., Any]] = {
    "BUILD": _set_state,
    "APPEND": _extend,
    "APPENDS": _extend,
    "SETITEM": _set_items,
    "SETITEMS": _set_items,
    "ADDITEMS": _add,
}
_SHARED = (str, bytes, int, float, bool, type(None), tuple, frozenset)  # never filled, and used by many
