"""The namespace checkpoint: the agent's names on disk, for the kernel that comes after a crash. Never read by a host.

All names go into one pickle, so that what they share stays shared. When something in there cannot be pickled, the
names are tried one by one, and only the ones at fault are left out, with the reason. Functions and the methods of
classes defined in cells are pickled by value and get the new kernel's namespace as their globals.

While a checkpoint is made its predecessor stands aside under another name, so that a successor which finds only that
one knows that its values are older than they should be.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import signal
import sys
import threading
import time
import types
from collections.abc import Generator, Mapping
from typing import Any, cast

from kernel_bridge.inside.salvage import salvage

_PYTHON = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
_GLOBALS: dict[str, dict[str, Any]] = {}  # where restored functions find their globals: the running kernel's own


class _TooLarge(Exception):
    pass


class _OutOfTime(BaseException):
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
    """

    def __init__(self, path: str, namespace: dict[str, Any], limit_bytes: int, limit_seconds: float) -> None:
        self._path = path
        self._older = path + ".old"
        self._namespace = namespace
        self._limit_bytes = limit_bytes
        self._limit_seconds = limit_seconds
        self._digest = b""
        self._pickler: type[pickle.Pickler] | None = None
        _GLOBALS["namespace"] = namespace

    def write(self, names: Mapping[str, Any]) -> tuple[list[str], dict[str, str]] | None:
        """Write these names. Returns what was kept and what was not, with reasons; None when nothing had changed.

        Raises OSError when the disk is full; the last checkpoint then stays, known to be older.
        """
        self._set_aside()
        started = time.monotonic()
        lost: dict[str, str] = {}
        kept: dict[str, Any] = dict(names)
        data = b""
        try:
            with _time_limit(self._limit_seconds / 2):
                data = self._dump(kept)
        except BaseException:  # noqa: BLE001 - pickling runs the agent's own code
            data = b""  # one name is at fault, or some are: the others are kept without it
        if not data:
            kept, lost = self._sieve(names, started)
            data = self._dump_kept(kept, lost)
        digest = hashlib.blake2b(data + repr(lost).encode("utf-8", "replace")).digest()
        if digest == self._digest and os.path.exists(self._older):
            os.replace(self._older, self._path)
            return None
        self._store(self._path, data, sorted(kept), lost)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._older)
        self._digest = digest
        return sorted(kept), lost

    def _set_aside(self) -> None:
        try:
            os.replace(self._path, self._older)
        except FileNotFoundError:
            if not os.path.exists(self._older):
                self._store(self._older, pickle.dumps({}), [], {})  # before the first cell there was nothing

    def restore(self) -> tuple[list[str], dict[str, str]]:
        """Load the last checkpoint into the namespace. Returns the names restored and those lost, with reasons."""
        older = not os.path.exists(self._path)
        try:
            with open(self._older if older else self._path, "rb") as file:
                head = json.loads(file.readline())
                data = file.read()
        except FileNotFoundError:
            return [], {}
        except (OSError, ValueError) as error:
            return [], {"(all names)": f"the checkpoint cannot be read: {error}"}
        lost: dict[str, str] = dict(head["lost"])
        if older:
            lost["(what changed since an earlier cell)"] = "the checkpoint after the last cell was never finished"
        if head["python"] != _PYTHON:
            return [], {**lost, **dict.fromkeys(head["names"], f"it was kept by {head['python']}, this is {_PYTHON}")}
        restored: dict[str, Any] = {}
        try:
            restored = pickle.loads(data)
        except BaseException as error:  # noqa: BLE001 - unpickling runs the agent's own code
            reason = f"restoring it raised {type(error).__name__}: {error}"
            try:
                restored, broken = salvage(data, self._namespace)
                lost.update(broken)
            except BaseException:  # noqa: BLE001 - the same code, or no pickle at all
                return [], {**lost, **dict.fromkeys(head["names"], reason)}
        self._namespace.update(restored)
        return sorted(restored), lost

    def _sieve(self, names: Mapping[str, Any], started: float) -> tuple[dict[str, Any], dict[str, str]]:
        """Try each name alone, smallest guess first, until the bytes or the seconds are used up."""
        kept: dict[str, Any] = {}
        lost: dict[str, str] = {}
        room = self._limit_bytes
        for name, value in sorted(names.items(), key=lambda item: sys.getsizeof(item[1], 0)):
            seconds = self._limit_seconds - (time.monotonic() - started)
            if seconds <= 0:
                lost[name] = f"the checkpoint's {self._limit_seconds:g} s were used up"
                continue
            try:
                with _time_limit(seconds / 2):  # so that the slow ones leave something for the others
                    size = len(self._dump({name: value}))
            except _TooLarge:
                lost[name] = f"larger than the checkpoint's {self._limit_bytes} bytes"
            except _OutOfTime:
                lost[name] = f"pickling it took longer than the checkpoint's {self._limit_seconds:g} s"
            except BaseException as error:  # noqa: BLE001 - pickling runs the agent's own code
                lost[name] = f"{type(error).__name__}: {error}"[:300]
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
        self._pickler(buffer, protocol=pickle.HIGHEST_PROTOCOL).dump(names)
        return bytes(buffer.data)

    def _store(self, path: str, data: bytes, names: list[str], lost: dict[str, str]) -> None:
        head = json.dumps({"python": _PYTHON, "names": names, "lost": lost}).encode()
        temporary = self._path + ".new"
        with open(temporary, "wb") as file:
            file.write(head + b"\n" + data)
        os.replace(temporary, path)


@contextlib.contextmanager
def _time_limit(seconds: float) -> Generator[None]:
    """Raise _OutOfTime in the block after some seconds, where the platform has timers and this is the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before if before is not None else signal.SIG_DFL)


def _make_pickler(namespace: dict[str, Any]) -> type[pickle.Pickler]:
    try:
        import cloudpickle
    except ImportError:
        return pickle.Pickler

    class NamespacePickler(cloudpickle.Pickler):
        """cloudpickle, but functions of the agent's cells keep the namespace as their globals."""

        def reducer_override(self, obj: Any) -> Any:
            if type(obj) is types.FunctionType and obj.__globals__ is namespace:
                return _reduce_function(obj)
            return cast("Any", super()).reducer_override(obj)

    return NamespacePickler


def _reduce_function(function: types.FunctionType) -> tuple[Any, ...]:
    cells = function.__closure__
    contents = None if cells is None else [_cell_contents(cell) for cell in cells]
    state = {
        "cells": contents,
        "defaults": function.__defaults__,
        "kwdefaults": function.__kwdefaults__,
        "annotations": function.__annotations__,
        "attributes": function.__dict__,
        "doc": function.__doc__,
        "qualname": function.__qualname__,
        "module": function.__module__,
    }
    made = (function.__code__, function.__name__, None if cells is None else len(cells))
    return _make_function, made, state, None, None, _fill_function


def _cell_contents(cell: types.CellType) -> tuple[Any, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def _make_function(code: types.CodeType, name: str, cells: int | None) -> types.FunctionType:
    closure = None if cells is None else tuple(types.CellType() for _ in range(cells))
    return types.FunctionType(code, _GLOBALS["namespace"], name, None, closure)


def _fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    for cell, content in zip(function.__closure__ or (), state["cells"] or (), strict=True):
        if content:
            cell.cell_contents = content[0]
    function.__defaults__ = state["defaults"]
    function.__kwdefaults__ = state["kwdefaults"]
    function.__annotations__ = state["annotations"]
    function.__dict__.update(state["attributes"])
    function.__doc__ = state["doc"]
    function.__qualname__ = state["qualname"]
    function.__module__ = state["module"]
