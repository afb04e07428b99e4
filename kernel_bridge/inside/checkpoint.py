"""The namespace checkpoint: the agent's names on disk, for the kernel that comes after a crash.

Each name has a pickle of its own, which refers to the earlier ones for what it shares with them. When something cannot
be pickled or loaded, only the names that hold it are left out, with the reason. Modules are kept by their names and
imported first, so that what the agent wrote finds them when it is called while it is restored.

While a checkpoint is made its predecessor stays, marked as set aside, so that a successor which finds only that one
knows that its values are older than they should be.
"""

from __future__ import annotations

import faulthandler
import functools
import importlib
import json
import linecache
import sys
import time
import types
from collections.abc import Mapping
from typing import Any, cast

from kernel_bridge.inside.launch_config import CheckpointConfig
from kernel_bridge.inside.loading import load_names
from kernel_bridge.inside.pickling import Pickling, TooLarge
from kernel_bridge.inside.slots import Slot, digest_of, mark_slot, newest, read_slot, write_slot
from kernel_bridge.inside.time_limit import OutOfTime, call_within
from kernel_bridge.inside.tracebacks import in_brief

__all__ = ["Checkpoint"]

_PYTHON = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
_HOPELESS = 3  # times the limit: pickling that goes on for so long cannot be ended but with the process
_REASON_SECONDS = 0.2  # that an exception may take to give its text


class Checkpoint:
    """Writes and restores the checkpoint of one session.

    Args:
        config: where the checkpoint is, and its limits.
        namespace: the agent's globals.
        last_words: a file descriptor for a process that has to be ended because its pickling cannot be.
    """

    def __init__(
        self, config: CheckpointConfig, namespace: dict[str, Any], pickling: Pickling, *, last_words: int
    ) -> None:
        self._path = config.path
        self._limit_bytes = config.bytes
        self._limit_seconds = config.seconds
        self._namespace = namespace
        self._pickling = pickling
        self._last_words = last_words
        self._sources: dict[str, str] = {}  # of the cells that define what was pickled last

    def write(self, names: Mapping[str, Any]) -> dict[str, str]:
        """Write these names. Returns those that could not be kept, with reasons.

        Raises OSError when the disk is full; the last checkpoint then stays, known to be older.
        """
        # The agent's code may swallow every exception, or never come back from C: then this ends the process.
        faulthandler.dump_traceback_later(_HOPELESS * self._limit_seconds + 1, exit=True, file=self._last_words)
        try:
            return self._write(names)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _write(self, names: Mapping[str, Any]) -> dict[str, str]:
        before = self._set_aside()
        started = time.monotonic()
        lost: dict[str, str] = {}
        modules = {name: str(value.__name__) for name, value in names.items() if type(value) is types.ModuleType}
        names = {name: value for name, value in names.items() if name not in modules}
        try:
            dumped = call_within(self._limit_seconds / 2, lambda: self._dump(names))
        except BaseException:  # noqa: BLE001 - pickling runs the agent's own code
            dumped = None  # some names cannot be pickled: the others are kept without them
        if dumped is None:
            kept, lost = self._sieve(names, started)
            dumped = self._dump_kept(kept, lost)
        data, sizes = dumped
        whole = self._head(sizes, lost, modules) + b"\n" + data
        if before.digest == digest_of(whole):
            mark_slot(before, aside=False)
        else:
            write_slot(self._path, whole)
        return lost

    def _head(self, sizes: Mapping[str, int], lost: Mapping[str, str], modules: Mapping[str, str]) -> bytes:
        head = {"python": _PYTHON, "names": sizes, "lost": lost, "modules": modules, "sources": self._sources}
        return json.dumps(head).encode()

    def _set_aside(self) -> Slot:
        """Mark the last checkpoint as older than one that is begun now. The first of all is empty."""
        before = newest(self._path)
        if before is None:
            return write_slot(self._path, self._head({}, {}, {}) + b"\n", aside=True)
        return mark_slot(before, aside=True)

    def restore(self) -> tuple[list[str], dict[str, str]]:
        """Load the last checkpoint into the namespace. Returns the names restored and those lost, with reasons."""
        try:
            slot = newest(self._path)
            if slot is None:
                return [], {}
            line, data = read_slot(slot)
            head = _parse(line)
        except (OSError, ValueError, RecursionError) as error:
            return [], {"(all names)": f"the checkpoint cannot be read: {in_brief(error, _REASON_SECONDS)}"}
        lost: dict[str, str] = dict(head["lost"])
        if slot.aside:
            lost["(what changed since an earlier cell)"] = "the checkpoint after the last cell was never finished"
        if head["python"] != _PYTHON:
            return [], {**lost, **dict.fromkeys(head["names"], f"it was kept by {head['python']}, this is {_PYTHON}")}
        for cell, source in head["sources"].items():
            linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
        modules = self._import(head["modules"], lost)
        restored, broken = load_names(data, head["names"], self._limit_seconds)
        lost.update(broken)
        self._namespace.update(restored)
        return sorted([*restored, *modules]), lost

    def _import(self, modules: Mapping[str, str], lost: dict[str, str]) -> list[str]:
        imported: list[str] = []
        for name, module in modules.items():
            try:
                found = call_within(self._limit_seconds, functools.partial(importlib.import_module, module))
            except BaseException as error:  # noqa: BLE001 - a module runs code when it is imported
                lost[name] = f"importing {module} raised {in_brief(error, _REASON_SECONDS)}"
            else:
                self._namespace[name] = found
                imported.append(name)
        return imported

    def _sieve(self, names: Mapping[str, Any], started: float) -> tuple[dict[str, Any], dict[str, str]]:
        """Pickle each name alone, what looks smallest first, until the bytes or the seconds are used up."""
        kept: dict[str, Any] = {}
        lost: dict[str, str] = {}
        room = self._limit_bytes
        for name, value in sorted(names.items(), key=lambda item: _guess_size(item[1])):
            seconds = self._limit_seconds - (time.monotonic() - started)
            if seconds <= 0:
                lost[name] = f"the checkpoint's {self._limit_seconds:g} s were used up"
                continue
            try:
                # Half of what is left, so that the slow ones leave something for the others.
                data, _ = call_within(seconds / 2, functools.partial(self._dump, {name: value}))
            except TooLarge:
                lost[name] = f"larger than the checkpoint's {self._limit_bytes} bytes"
            except OutOfTime:
                lost[name] = f"pickling it took longer than the checkpoint's {self._limit_seconds:g} s"
            except BaseException as error:  # noqa: BLE001 - pickling runs the agent's own code
                lost[name] = in_brief(error, _REASON_SECONDS)
            else:
                if len(data) > room:
                    lost[name] = f"no room left in the checkpoint's {self._limit_bytes} bytes"
                    continue
                room -= len(data)
                kept[name] = value
        return {name: value for name, value in names.items() if name in kept}, lost  # a class before its objects

    def _dump_kept(self, kept: dict[str, Any], lost: dict[str, str]) -> tuple[bytes, dict[str, int]]:
        try:
            return call_within(self._limit_seconds, lambda: self._dump(kept))
        except BaseException as error:  # noqa: BLE001 - each can be pickled alone, but not all together
            lost.update(dict.fromkeys(kept, f"pickling all names together failed: {type(error).__name__}"))
            kept.clear()
            return b"", {}

    def _dump(self, names: Mapping[str, Any]) -> tuple[bytes, dict[str, int]]:
        data, sizes, self._sources = self._pickling.dump(names, self._limit_bytes)
        return data, sizes


def _parse(line: bytes) -> dict[str, Any]:
    """A checkpoint's head. It may be whatever the agent's code put there. Raises: ValueError, RecursionError."""
    head = json.loads(line)
    if not isinstance(head, dict) or _HEAD.keys() - cast("dict[str, Any]", head).keys():
        raise ValueError("malformed header")
    for key, kind in _HEAD.items():
        if not isinstance(head[key], kind):
            raise ValueError(f"malformed header: {key}")
    return cast("dict[str, Any]", head)


_HEAD = {"python": str, "names": dict, "lost": dict, "sources": dict, "modules": dict}


def _guess_size(value: Any) -> int:
    # Other types may run the agent's own code.
    return sys.getsizeof(value, 0) if type(value).__module__ in ("builtins", "numpy") else 0
