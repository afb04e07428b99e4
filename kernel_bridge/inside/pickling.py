"""The agent's names as pickles: one for each name, and objects that names share stay shared.

Functions and the methods of classes defined in cells are pickled by value and get the new kernel's namespace as their
globals. Checkpoints refer to functions of this module by name: to move or rename one loses what older ones hold.
"""

from __future__ import annotations

import functools
import linecache
import pickle
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, cast

from kernel_bridge.inside.import_path import own_path
from kernel_bridge.inside.late_ipython import StandInOpen

__all__ = ["HOST_TOOLS", "Pickling", "TooLarge"]

_GLOBALS: dict[str, dict[str, Any]] = {}  # where restored functions find their globals: the running kernel's own
_TOOLS: dict[str, Callable[[str], Callable[..., Any]]] = {}  # how restored references to a host tool find its stub
_LONGEST_SOURCES = 2_000_000  # characters of cells that are kept for tracebacks


class TooLarge(Exception):
    """The pickle would grow beyond its limit."""


class _Bounded:
    """Hands on what is written, and refuses to go beyond a limit."""

    def __init__(self, write: Callable[[Any], object], limit: int) -> None:
        self.size = 0
        self._write = write
        self._limit = limit

    def write(self, chunk: Any) -> int:
        size = memoryview(chunk).nbytes
        if self.size + size > self._limit:
            raise TooLarge
        self._write(chunk)
        self.size += size
        return size


class Pickling:
    """Pickles the names of the running kernel. Once there is one, an unpickler can load what it pickled.

    Args:
        namespace: the agent's globals.
        stub_of: finds the stub of a host tool by its name.
    """

    def __init__(self, namespace: dict[str, Any], stub_of: Callable[[str], Callable[..., Any]]) -> None:
        self._namespace = namespace
        self._pickler: type[pickle.Pickler] | None = None
        _GLOBALS["namespace"] = namespace
        _TOOLS["stub_of"] = stub_of

    def dump(
        self, names: Mapping[str, Any], limit_bytes: int, write: Callable[[Any], object]
    ) -> tuple[dict[str, int], dict[str, str]]:
        """Pickle the names. Returns the sizes of their pickles, and the sources of the cells that define what is in
        them by file name.

        The pickles go to one unpickler, in this order: a later one may refer to an object that is in an earlier one.
        Sources are only for tracebacks: beyond two million characters they are left out.

        Args:
            write: gets the pickles, in pieces.

        Raises:
            TooLarge: it would be larger than the limit.
            BaseException: whatever the agent's objects raise when they are pickled.
        """
        if self._pickler is None:
            self._pickler = _make_pickler(self._namespace)
        file = _Bounded(write, limit_bytes)
        _cells_used.clear()
        pickler = self._pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
        sizes: dict[str, int] = {}
        for name, value in names.items():
            before = file.size
            pickler.dump(value)
            sizes[name] = file.size - before
        return sizes, _sources_of(_cells_used)


_cells_used: set[str] = set()  # the file names of all code that the running dump met


def _sources_of(cells: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    room = _LONGEST_SOURCES
    for cell in sorted(cells):
        source = _source_of(cell)
        if source and len(source) <= room:
            room -= len(source)
            found[cell] = source
    return found


def _source_of(name: str) -> str:
    """The text that tracebacks show for a file name, when no file holds it."""
    try:
        _, changed, lines, _ = cast("Any", linecache.cache[name])
        return "".join(lines) if changed is None else ""
    except Exception:  # noqa: BLE001 - it was never shown, or the agent's code put something else there
        return ""


def _make_pickler(namespace: dict[str, Any]) -> type[pickle.Pickler]:
    with own_path():
        import cloudpickle  # not before the first checkpoint: a kernel's start does not wait for it

    class NamespacePickler(cloudpickle.Pickler):
        """cloudpickle, but functions of the agent's cells keep the namespace as their globals and what they share."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            cast("Any", super()).__init__(*args, **kwargs)
            self.closures: dict[int, _Closed] = {}

        def reducer_override(self, obj: Any) -> Any:
            kind = cast("type[Any]", type(obj))
            if kind is types.FunctionType:
                if obj.__globals__ is namespace:
                    return _reduce_function(obj, self.closures)
                if obj.__module__ == HOST_TOOLS:
                    return _find_tool, (obj.__name__,)
            elif kind is StandInOpen:
                return _find_open, ()
            elif kind is types.CodeType:
                _cells_used.add(obj.co_filename)
                return _make_code, ({name: getattr(obj, name) for name in _CODE_FIELDS},)
            elif kind is _Closed:
                return _make_cell, ()
            elif kind is _LRU_CACHE and obj.__wrapped__.__module__ == "__main__":
                return _remake_cache, (obj.__wrapped__, obj.cache_parameters())
            return cast("Any", super()).reducer_override(obj)

    return NamespacePickler


# All that `CodeType.replace` takes here. The file name is that of a cell, and by it tracebacks find their lines.
_CODE_FIELDS = [
    *("co_argcount", "co_posonlyargcount", "co_kwonlyargcount", "co_nlocals", "co_stacksize", "co_flags", "co_code"),
    *("co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_filename", "co_name"),
    *("co_firstlineno", "co_linetable"),
    *(("co_qualname", "co_exceptiontable") if sys.version_info >= (3, 11) else ()),
]


def _make_code(fields: dict[str, Any]) -> types.CodeType:
    return _make_code.__code__.replace(**fields)


HOST_TOOLS = "host_tools"
"""The `__module__` of every stub."""

_LRU_CACHE: type = type(functools.lru_cache(lambda: None))


def _remake_cache(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """An empty cache around a function of a cell. Its content can be computed again."""
    return functools.lru_cache(maxsize=parameters["maxsize"], typed=parameters["typed"])(function)


def _find_open() -> Any:
    """What this kernel gives its cells under that name."""
    return _GLOBALS["namespace"].get("open", open)


def _find_tool(name: str) -> Callable[..., Any]:
    """A stand-in for the stub of a host tool, which the next cell will bring."""

    def stub(*args: Any, **kwargs: Any) -> Any:
        return _TOOLS["stub_of"](name)(*args, **kwargs)

    stub.__name__ = stub.__qualname__ = name
    stub.__module__ = HOST_TOOLS
    return stub


class _Closed:
    """Stands for the cell of a closed-over variable: pickled empty and once, so that functions that share one share it.

    What it holds comes with the state of each function that has it, since it may hold that function itself.
    """

    __slots__ = ("cell",)

    def __init__(self, cell: types.CellType) -> None:
        self.cell = cell  # kept, so that its id stays its own


def _make_cell() -> types.CellType:
    return types.CellType()


def _reduce_function(function: types.FunctionType, closures: dict[int, _Closed]) -> tuple[Any, ...]:
    closure = function.__closure__
    state = {
        "contents": [_cell_contents(cell) for cell in closure or ()],
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
        "annotations": _annotations(function),
        "attributes": function.__dict__,
        "doc": function.__doc__,
        "qualname": function.__qualname__,
        "module": function.__module__,
    }
    cells = None if closure is None else tuple(closures.setdefault(id(cell), _Closed(cell)) for cell in closure)
    made = (function.__code__, function.__name__, cells)
    return _make_function, made, state, None, None, _fill_function


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    """The annotations of a function; as text where they name what does not exist, as they may from Python 3.14 on."""
    try:
        return function.__annotations__
    except NameError:
        if sys.version_info < (3, 14):
            raise
        import annotationlib

        return annotationlib.get_annotations(function, format=annotationlib.Format.STRING)


def _cell_contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _make_function(code: types.CodeType, name: str, closure: tuple[types.CellType, ...] | None) -> types.FunctionType:
    return types.FunctionType(code, _GLOBALS["namespace"], name, None, closure)


def _fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    for cell, content in zip(function.__closure__ or (), state["contents"], strict=True):
        if content:
            cell.cell_contents = content[0]
    function.__defaults__ = state["defaults"]
    function.__kwdefaults__ = state["kwdefaults"]
    function.__annotations__ = state["annotations"]
    function.__dict__.update(state["attributes"])
    function.__doc__ = state["doc"]
    function.__qualname__ = state["qualname"]
    function.__module__ = state["module"]
