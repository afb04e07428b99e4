"""The namespace checkpoint: the agent's names on disk, for the kernel that comes after a crash. Never read by a host.

All names go into one pickle, so that what they share stays shared. When something in there cannot be pickled, the
names are tried one by one, and only the ones at fault are left out, with the reason. Functions and the methods of
classes defined in cells are pickled by value and get the new kernel's namespace as their globals. Modules are kept by
their names, apart, and imported first, so that what the agent wrote finds them when it is called while it is restored.

While a checkpoint is made its predecessor stands aside under another name, so that a successor which finds only that
one knows that its values are older than they should be.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import hashlib
import importlib
import io
import json
import linecache
import os
import pickle
import signal
import stat
import sys
import threading
import time
import types
from collections.abc import Callable, Generator, Mapping
from typing import Any, cast

from kernel_bridge.inside.salvage import salvage
from kernel_bridge.inside.tracebacks import CELL_PREFIX

_PYTHON = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
_GLOBALS: dict[str, dict[str, Any]] = {}  # where restored functions find their globals: the running kernel's own
_TOOLS: dict[str, Callable[[str], Callable[..., Any]]] = {}  # how restored references to a host tool find its stub
_AGAIN_SECONDS = 0.2  # an object that swallows the end of its time is told again, so often
_HOPELESS = 3  # times the limit: pickling that goes on for so long cannot be ended but with the process
_LONGEST_REASON = 300  # characters
_LONGEST_SOURCES = 2_000_000  # characters of cells that are kept for tracebacks


class _TooLarge(Exception):
    pass


class OutOfTime(BaseException):
    pass


class _Bounded(io.RawIOBase):
    """Memory that refuses to grow beyond a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.data = bytearray()
        self._limit = limit

    def writable(self) -> bool:
        return True

    def write(self, chunk: Any) -> int:
        size = memoryview(chunk).nbytes
        if len(self.data) + size > self._limit:
            raise _TooLarge
        self.data += chunk
        return size


class Checkpoint:
    """Writes and restores the checkpoint file of one session.

    Args:
        path: the file; a successor reads the same one.
        namespace: the agent's globals.
        limit_bytes: of one checkpoint.
        limit_seconds: of making one.
        stub_of: finds the stub of a host tool by its name.
        last_words: a file descriptor for a process that has to be ended because its pickling cannot be.
    """

    def __init__(
        self,
        path: str,
        namespace: dict[str, Any],
        limit_bytes: int,
        limit_seconds: float,
        *,
        stub_of: Callable[[str], Callable[..., Any]],
        last_words: int,
    ) -> None:
        self._path = path
        self._older = path + ".old"
        self._last_words = last_words
        self._sources: dict[str, str] = {}  # of the cells that define what was pickled last
        self._namespace = namespace
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds
        self._digest = b""
        self._pickler: type[pickle.Pickler] | None = None
        _GLOBALS["namespace"] = namespace
        _TOOLS["stub_of"] = stub_of

    def write(self, names: Mapping[str, Any]) -> tuple[list[str], dict[str, str]] | None:
        """Write these names. Returns what was kept and what was not, with reasons; None when nothing had changed.

        Raises OSError when the disk is full; the last checkpoint then stays, known to be older.
        """
        # Code of the agent's that swallows every exception, or never comes back from C, ends the process after a while.
        faulthandler.dump_traceback_later(_HOPELESS * self._limit_seconds + 1, exit=True, file=self._last_words)
        try:
            return self._write(names)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _write(self, names: Mapping[str, Any]) -> tuple[list[str], dict[str, str]] | None:
        self._set_aside()
        started = time.monotonic()
        lost: dict[str, str] = {}
        modules = {name: str(value.__name__) for name, value in names.items() if type(value) is types.ModuleType}
        names = kept = {name: value for name, value in names.items() if name not in modules}
        data = b""
        try:
            with _time_limit(self._limit_seconds / 2):
                data = self._dump(kept)
        except BaseException:  # noqa: BLE001 - pickling runs the agent's own code
            data = b""  # one name is at fault, or some are: the others are kept without it
        if not data:
            kept, lost = self._sieve(names, started)
            data = self._dump_kept(kept, lost)
        head = self._head(kept, lost, modules)
        digest = hashlib.blake2b(data + head).digest()
        if digest == self._digest and os.path.exists(self._older):
            os.replace(self._older, self._path)
            return None
        self._store(self._path, head, data)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._older)
        self._digest = digest
        return sorted([*kept, *modules]), lost

    def _head(self, kept: Mapping[str, Any], lost: Mapping[str, str], modules: Mapping[str, str]) -> bytes:
        head = {"python": _PYTHON, "names": sorted(kept), "lost": lost, "modules": modules, "sources": self._sources}
        return json.dumps(head).encode()

    def _set_aside(self) -> None:
        try:
            os.replace(self._path, self._older)
        except FileNotFoundError:
            if not os.path.exists(self._older):  # there was nothing before the first cell
                self._store(self._older, self._head({}, {}, {}), pickle.dumps({}))

    def restore(self) -> tuple[list[str], dict[str, str]]:
        """Load the last checkpoint into the namespace. Returns the names restored and those lost, with reasons."""
        older = not os.path.exists(self._path)
        try:
            head, data = _read(self._older if older else self._path)
        except FileNotFoundError:
            return [], {}
        except (OSError, ValueError, RecursionError) as error:
            return [], {"(all names)": f"the checkpoint cannot be read: {error}"[:_LONGEST_REASON]}
        lost: dict[str, str] = dict(head["lost"])
        if older:
            lost["(what changed since an earlier cell)"] = "the checkpoint after the last cell was never finished"
        if head["python"] != _PYTHON:
            return [], {**lost, **dict.fromkeys(head["names"], f"it was kept by {head['python']}, this is {_PYTHON}")}
        for cell, source in head["sources"].items():
            linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
        modules = self._import(head["modules"], lost)
        restored: dict[str, Any] = {}
        try:
            with _time_limit(self._limit_seconds):
                restored = pickle.loads(data)
        except BaseException as error:  # noqa: BLE001 - unpickling runs the agent's own code
            reason = f"restoring it raised {type(error).__name__}: {error}"[:_LONGEST_REASON]
            try:
                with _time_limit(self._limit_seconds / 4, only_in_cells=True):
                    restored, broken = salvage(data, self._namespace)
                lost.update(broken)
            except BaseException:  # noqa: BLE001 - the same code, or no pickle at all
                return sorted(modules), {**lost, **dict.fromkeys(head["names"], reason)}
        self._namespace.update(restored)
        return sorted([*restored, *modules]), lost

    def _import(self, modules: Mapping[str, str], lost: dict[str, str]) -> list[str]:
        found: list[str] = []
        for name, module in modules.items():
            try:
                with _time_limit(self._limit_seconds):
                    self._namespace[name] = importlib.import_module(module)
            except BaseException as error:  # noqa: BLE001 - a module runs code when it is imported
                lost[name] = f"importing {module} raised {type(error).__name__}: {error}"[:_LONGEST_REASON]
            else:
                found.append(name)
        return found

    def _sieve(self, names: Mapping[str, Any], started: float) -> tuple[dict[str, Any], dict[str, str]]:
        """Try each name alone, smallest guess first, until the bytes or the seconds are used up."""
        kept: dict[str, Any] = {}
        lost: dict[str, str] = {}
        room = self._limit_bytes
        for name, value in sorted(names.items(), key=lambda item: _guess_size(item[1])):
            seconds = self._limit_seconds - (time.monotonic() - started)
            if seconds <= 0:
                lost[name] = f"the checkpoint's {self._limit_seconds:g} s were used up"
                continue
            try:
                with _time_limit(seconds / 2):  # so that the slow ones leave something for the others
                    size = len(self._dump({name: value}))
            except _TooLarge:
                lost[name] = f"larger than the checkpoint's {self._limit_bytes} bytes"
            except OutOfTime:
                lost[name] = f"pickling it took longer than the checkpoint's {self._limit_seconds:g} s"
            except BaseException as error:  # noqa: BLE001 - pickling runs the agent's own code
                lost[name] = _reason(error)
            else:
                if size > room:
                    lost[name] = f"no room left in the checkpoint's {self._limit_bytes} bytes"
                    continue
                room -= size
                kept[name] = value
        return kept, lost

    def _dump_kept(self, kept: dict[str, Any], lost: dict[str, str]) -> bytes:
        try:
            with _time_limit(self._limit_seconds):
                return self._dump(kept)
        except BaseException as error:  # noqa: BLE001 - each went alone, but not all together
            lost.update(dict.fromkeys(kept, f"pickling all names together failed: {type(error).__name__}"))
            kept.clear()
            return self._dump({})

    def _dump(self, names: dict[str, Any]) -> bytes:
        if self._pickler is None:
            self._pickler = _make_pickler(self._namespace)
        buffer = _Bounded(self._limit_bytes)
        _cells_used.clear()
        self._pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(names)
        self._sources = _sources_of(_cells_used)
        return bytes(buffer.data)

    def _store(self, path: str, head: bytes, data: bytes) -> None:
        temporary = self._path + ".new"
        with open(temporary, "wb") as file:
            file.write(head + b"\n" + data)
        os.replace(temporary, path)


def _read(path: str) -> tuple[dict[str, Any], bytes]:
    """A checkpoint's head and its pickle. In its place may be whatever the agent's code put there.

    Raises: OSError, ValueError, RecursionError.
    """
    plain = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, os.O_RDONLY | plain), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no file")
        head = json.loads(file.readline())
        if not isinstance(head, dict) or _HEAD.keys() - cast("dict[str, Any]", head).keys():
            raise ValueError("its head is none")
        for key, kind in _HEAD.items():
            if not isinstance(head[key], kind):
                raise ValueError(f"{key} in its head is none")
        return cast("dict[str, Any]", head), file.read()


_HEAD = {"python": str, "names": list, "lost": dict, "sources": dict, "modules": dict}


@contextlib.contextmanager
def _time_limit(seconds: float, *, only_in_cells: bool = False) -> Generator[None]:
    """Raise OutOfTime in the block after some seconds, where the platform has timers and this is the main thread.

    Code that swallows it is told again. The agent's own timer goes on afterwards.

    Args:
        only_in_cells: raise it only where code of the agent's cells runs, each time that so many seconds have passed.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    armed = True

    def stop(signum: int, frame: types.FrameType | None) -> None:
        if armed and (not only_in_cells or _in_a_cell(frame)):
            raise OutOfTime(f"it took longer than {seconds:g} s")

    started = time.monotonic()
    before = signal.signal(signal.SIGALRM, stop)
    left, every = signal.setitimer(signal.ITIMER_REAL, seconds, seconds if only_in_cells else _AGAIN_SECONDS)
    try:
        yield
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.001, left - (time.monotonic() - started)), every)


def _in_a_cell(frame: types.FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(CELL_PREFIX):
            return True
        frame = frame.f_back
    return False


def _guess_size(value: Any) -> int:
    # Only of what cannot run the agent's own code when it is asked.
    return sys.getsizeof(value, 0) if type(value).__module__ in ("builtins", "numpy") else 0


def _reason(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:_LONGEST_REASON]
    except Exception:  # noqa: BLE001 - the agent's own __str__
        return type(error).__name__


_cells_used: set[str] = set()  # the file names of cells whose functions the running dump met


def _sources_of(cells: set[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    room = _LONGEST_SOURCES
    for cell in sorted(cells):
        source = "".join(linecache.getlines(cell))
        if source and len(source) <= room:
            room -= len(source)
            found[cell] = source
    return found


def _make_pickler(namespace: dict[str, Any]) -> type[pickle.Pickler]:
    try:
        import cloudpickle
    except ImportError:
        return pickle.Pickler

    class NamespacePickler(cloudpickle.Pickler):
        """cloudpickle, but functions of the agent's cells keep the namespace as their globals and what they share."""

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            cast("Any", super()).__init__(*args, **kwargs)
            self.closures: dict[int, _Closed] = {}

        def reducer_override(self, obj: Any) -> Any:
            kind = cast("type[Any]", type(obj))
            if kind is types.FunctionType:
                if obj.__globals__ is namespace:
                    _cells_used.add(obj.__code__.co_filename)
                    return _reduce_function(obj, self.closures)
                if obj.__module__ == HOST_TOOLS:
                    return _find_tool, (obj.__name__,)
            elif kind is _Closed:
                return _make_cell, ()
            elif kind is _LRU_CACHE and obj.__wrapped__.__module__ == "__main__":
                return _remake_cache, (obj.__wrapped__, obj.cache_parameters())
            return cast("Any", super()).reducer_override(obj)

    return NamespacePickler


HOST_TOOLS = "host_tools"
"""The `__module__` of every stub."""

_LRU_CACHE: type = type(functools.lru_cache(lambda: None))


def _remake_cache(function: Callable[..., Any], parameters: Mapping[str, Any]) -> Any:
    """An empty cache around a function of a cell: what it held is worth no more than the time to make it again."""
    return functools.lru_cache(maxsize=parameters["maxsize"], typed=parameters["typed"])(function)


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
        "annotations": function.__annotations__,
        "attributes": function.__dict__,
        "doc": function.__doc__,
        "qualname": function.__qualname__,
        "module": function.__module__,
    }
    cells = None if closure is None else tuple(closures.setdefault(id(cell), _Closed(cell)) for cell in closure)
    made = (function.__code__, function.__name__, cells)
    return _make_function, made, state, None, None, _fill_function


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
