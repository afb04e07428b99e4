"""Salvage: load a pickle of names of which some cannot be loaded, and lose only those. Runs in a kernel only.

Plain `pickle.loads` gives all or nothing. This is the slow way, in Python, for the case that it gave nothing.
"""

# pickle's own Unpickler in Python has no public name, and no types for what it does inside.
# pyright: reportPrivateUsage=false, reportAttributeAccessIssue=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false, reportUntypedBaseClass=false
# pyright: reportUnknownLambdaType=false, reportIncompatibleMethodOverride=false

from __future__ import annotations

import gc
import io
import pickle
import types
from collections.abc import Callable
from typing import Any, cast

_MOST_LOOKED_AT = 1_000_000  # objects, in the search for what is broken below one name


class _Broken:
    """Stands for an object that could not be made."""

    def __init__(self, error: BaseException) -> None:
        self.reason = f"restoring it raised {type(error).__name__}: {error}"[:300]


def salvage(data: bytes, namespace: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Load a pickled dict of names. Returns those that are whole, and why each other one is not.

    Args:
        namespace: the globals of restored functions; what is in there is not part of any of them.

    Raises:
        Exception: it is not a pickle of a dict at all.
    """
    loader = _Salvager(io.BytesIO(data))
    names = cast("dict[str, Any]", loader.load())
    if type(names) is not dict:
        raise TypeError("it is no dict of names")
    whole: dict[str, Any] = {}
    lost: dict[str, str] = {}
    for name, value in names.items():
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
        if isinstance(part, _Broken):
            return part
        if id(part) in known:
            return known[id(part)]
        if not isinstance(part, types.ModuleType):
            waiting.extend(gc.get_referents(part))
    return None


class _Salvager(pickle._Unpickler):
    """Puts a `_Broken` in the place of each object that cannot be made, and goes on."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.broken: dict[int, _Broken] = {}  # by the id of an object that was made, but not filled
        self._kept: list[Any] = []  # so that no id is used again

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return super().find_class(module_name, global_name)
        except BaseException as error:  # noqa: BLE001 - importing runs foreign code
            return _Broken(error)

    def _make(self, maker: Any, make: Callable[[], Any]) -> Any:
        if isinstance(maker, _Broken):
            return maker
        try:
            return make()
        except BaseException as error:  # noqa: BLE001 - the agent's own code
            return _Broken(error)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        maker = self.stack.pop()
        made = self._make(maker, lambda: maker(*args))
        if isinstance(made, _Broken) and isinstance(args, tuple) and args:
            self._note(args[0], made)  # cloudpickle fills functions and classes by a call whose result is dropped
        self.stack.append(made)

    def load_newobj(self) -> None:
        args = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(self._make(kind, lambda: kind.__new__(kind, *args)))

    def load_newobj_ex(self) -> None:
        keywords = self.stack.pop()
        args = self.stack.pop()
        kind = self.stack.pop()
        self.stack.append(self._make(kind, lambda: kind.__new__(kind, *args, **keywords)))

    def _note(self, target: Any, broken: _Broken) -> None:
        if type(target) not in _SHARED:
            self._kept.append(target)
            self.broken[id(target)] = broken

    @staticmethod
    def filling(load: Callable[[Any], None]) -> Callable[[Any], None]:
        """An instruction that fills the object on top of the stack, having taken what it fills it with."""

        def guarded(self: _Salvager) -> None:
            try:
                load(self)
            except BaseException as error:  # noqa: BLE001 - the agent's own code
                if not isinstance(self.stack[-1], _Broken):
                    self._note(self.stack[-1], _Broken(error))

        return guarded


_SHARED = (str, bytes, int, float, bool, type(None), tuple, frozenset)  # never filled, and used by many
_FILLING = (pickle.BUILD, pickle.APPEND, pickle.APPENDS, pickle.SETITEM, pickle.SETITEMS, pickle.ADDITEMS)
_plain = pickle._Unpickler.dispatch
_Salvager.dispatch = {
    **_plain,
    **{code[0]: _Salvager.filling(_plain[code[0]]) for code in _FILLING},
    pickle.REDUCE[0]: _Salvager.load_reduce,
    pickle.NEWOBJ[0]: _Salvager.load_newobj,
    pickle.NEWOBJ_EX[0]: _Salvager.load_newobj_ex,
}
