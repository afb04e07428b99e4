"""The namespace checkpoint: the agent's names on disk, for the kernel that comes after a crash.

Each name has a pickle of its own, which refers to the earlier ones for what it shares with them. When something cannot
be pickled or loaded, only the names that hold it are left out, with the reason. Modules are kept by their names and
imported first, so that what the agent wrote finds them when it is called while it is restored.

While a checkpoint is made its predecessor stays, marked as set aside, so that a successor which finds only that one
knows that its values are older than they should be.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import json
import linecache
import os
import re
import sys
import time
import types
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import msgspec

from kernel_bridge.inside import KEEPING, KEPT
from kernel_bridge.inside.bounded_call import OutOfTime, Seconds, call_within
from kernel_bridge.inside.checkpoint_slots import SlotWriter, mark_slot, newest, read_slot
from kernel_bridge.inside.namespace_snapshot import CHANGEABLE, NamespaceSnapshot
from kernel_bridge.inside.pickling import Pickling, TooLarge
from kernel_bridge.inside.tracebacks import in_brief
from kernel_bridge.inside.unpickling import load_names

__all__ = ["Checkpoint", "NamespaceKeeper"]

if TYPE_CHECKING:
    from kernel_bridge.inside.launch_config import CheckpointConfig

_PYTHON = f"{sys.implementation.name}-{sys.version_info[0]}.{sys.version_info[1]}"
_HOPELESS = 3  # times the limit: pickling that goes on for so long cannot be ended but with the process
_IMPORTING = 2  # times the limit, for all modules: a large one takes long on a machine that does much else
_MOST_OF_IMPORTING = 0.75  # of the time that is left, for one module
_REASON_SECONDS = 0.2  # that an exception may take to give its text
_LONGEST_REASON = 300  # characters
_MOST_UNKEPT = 100  # names in one reply
_ADDRESS = re.compile("0x[0-9a-f]+", re.IGNORECASE)  # in the texts of objects: a new one in each cell is no new cause


@dataclass(frozen=True)
class _Description:
    """The end of a checkpoint."""

    python: str
    names: dict[str, int]  # bytes of each one's pickle, in their order
    lost: dict[str, str]
    modules: dict[str, str]
    sources: dict[str, str]  # of cells, for tracebacks


class Checkpoint:
    """Writes and restores the checkpoint of one session.

    Args:
        config: where the checkpoint is, and its limits.
        namespace: the agent's globals.
        last_words: a file descriptor for a process that has to be ended because its pickling cannot be.
        end_if_forked: ends a process that the agent's code has forked from this one.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        namespace: dict[str, Any],
        pickling: Pickling,
        *,
        last_words: int,
        end_if_forked: Callable[[], None],
    ) -> None:
        self._path = config.path
        self._limit_bytes = config.bytes
        self._limit_seconds = config.seconds
        self._namespace = namespace
        self._pickling = pickling
        self._last_words = last_words
        self._end_if_forked = end_if_forked
        self._sources: dict[str, str] = {}  # of the cells that define what was pickled last
        self._written: NamespaceSnapshot | None = None  # what the last checkpoint holds; None: it is not known
        self._failed: dict[str, None] = {}  # names that could not be pickled the last time

    def is_of(self, names: Mapping[str, Any]) -> bool:
        """Whether the last checkpoint holds these names as they are. False: that cannot be seen so quickly."""
        return self._written is not None and self._written.holds(names)

    def write(self, names: Mapping[str, Any]) -> dict[str, str]:
        """Write these names. Returns those that could not be kept, with reasons.

        Raises OSError when the disk is full; the last checkpoint then stays, known to be older.
        """
        self._written = None
        before = NamespaceSnapshot.of(names, self._namespace)
        # The agent's code may swallow every exception, or never come back from C: then this ends the process.
        faulthandler.dump_traceback_later(_HOPELESS * self._limit_seconds + 1, exit=True, file=self._last_words)
        try:
            lost = self._write(names)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if not lost and before is not None and before.holds(names):  # no thread of the agent's has changed it meanwhile
            self._written = before
        return lost

    def _write(self, names: Mapping[str, Any]) -> dict[str, str]:
        self._set_aside()
        started = time.monotonic()
        modules = {name: module for name, value in names.items() if (module := _module_name(value)) is not None}
        names = {name: value for name, value in names.items() if name not in modules}
        with SlotWriter(self._path) as file:
            lost = self._still_failing(names)
            names = {name: value for name, value in names.items() if name not in lost}
            try:
                sizes = call_within(self._limit_seconds / 2, lambda: self._dump(names, file))
            except BaseException:  # noqa: BLE001 - pickling runs the agent's own code
                sizes = None  # some names cannot be pickled: the others are kept without them
            if sizes is None:
                if file.failure is not None:
                    raise file.failure
                kept, more = self._sieve(names, started)
                lost.update(more)
                sizes = self._dump_kept(kept, lost, file)
            file.finish(self._description(sizes, lost, modules))
        return lost

    def _description(self, sizes: dict[str, int], lost: dict[str, str], modules: dict[str, str]) -> bytes:
        return json.dumps(asdict(_Description(_PYTHON, sizes, lost, modules, self._sources))).encode()

    def _set_aside(self) -> None:
        """Mark the last checkpoint as older than one that is begun now. The first of all is empty."""
        before = newest(self._path)
        if before is not None:
            mark_slot(before, aside=True)
            return
        with SlotWriter(self._path) as file:
            file.finish(self._description({}, {}, {}), aside=True)

    def restore(self) -> tuple[list[str], dict[str, str]]:
        """Load the last checkpoint into the namespace. Returns the names restored and those lost, with reasons."""
        try:
            slot = newest(self._path)
            if slot is None:
                return [], {}
            data, description = read_slot(slot)
            head = msgspec.convert(json.loads(description), _Description)
        except (OSError, ValueError, RecursionError, msgspec.ValidationError) as error:
            return [], {"(all names)": f"the checkpoint cannot be read: {in_brief(error, _REASON_SECONDS)}"}
        lost = dict(head.lost)
        if slot.aside:
            lost["(what changed since an earlier cell)"] = "the checkpoint after the last cell was never finished"
        if head.python != _PYTHON:
            return [], {**lost, **dict.fromkeys(head.names, f"it was kept by {head.python}, this is {_PYTHON}")}
        for cell, source in head.sources.items():
            linecache.cache[cell] = (len(source), None, source.splitlines(keepends=True), cell)
        modules = self._import(head.modules, lost)
        restored, broken = load_names(data, head.names, self._limit_seconds)
        lost.update(broken)
        self._namespace.update(restored)
        return sorted([*restored, *modules]), lost

    def _import(self, modules: Mapping[str, str], lost: dict[str, str]) -> list[str]:
        imported: list[str] = []
        seconds = Seconds(_IMPORTING * self._limit_seconds)
        for name, module in modules.items():
            try:
                found = seconds.run(functools.partial(importlib.import_module, module), share=_MOST_OF_IMPORTING)
            except BaseException as error:  # noqa: BLE001 - a module runs code when it is imported
                lost[name] = f"importing {module} raised {in_brief(error, _REASON_SECONDS)}"
            else:
                self._namespace[name] = found
                imported.append(name)
        return imported

    def _still_failing(self, names: Mapping[str, Any]) -> dict[str, str]:
        """Names that could not be pickled the last time and cannot be now, with reasons.

        With them among the others, all that is large would be pickled once to find that out, once alone, and once more.
        """
        lost: dict[str, str] = {}
        end = time.monotonic() + self._limit_seconds / 4
        suspects, self._failed = self._failed, {}
        for name in suspects:
            if name in names and (seconds := end - time.monotonic()) > 0:
                with contextlib.suppress(OutOfTime):
                    found = self._try_alone(name, names[name], seconds / 2)
                    if isinstance(found, str):
                        lost[name] = found
        return lost

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
                found = self._try_alone(name, value, seconds / 2)  # the slow ones leave something for the others
            except OutOfTime:
                lost[name] = f"pickling it took longer than the checkpoint's {self._limit_seconds:g} s"
                continue
            if isinstance(found, str):
                lost[name] = found
            elif found > room:
                lost[name] = f"no room left in the checkpoint's {self._limit_bytes} bytes"
            else:
                room -= found
                kept[name] = value
        return {name: value for name, value in names.items() if name in kept}, lost  # a class before its objects

    def _try_alone(self, name: str, value: Any, seconds: float) -> int | str:
        """The bytes of a name's pickle, or why there is none. Raises: OutOfTime."""
        try:
            return sum(call_within(seconds, functools.partial(self._dump, {name: value})).values())
        except OutOfTime:
            raise
        except TooLarge:
            reason = f"larger than the checkpoint's {self._limit_bytes} bytes"
        except BaseException as error:  # noqa: BLE001 - pickling runs the agent's own code
            reason = in_brief(error, _REASON_SECONDS)
            self._end_if_forked()  # the text of an error is code of the agent's, too
        self._failed[name] = None
        return reason

    def _dump_kept(self, kept: dict[str, Any], lost: dict[str, str], file: SlotWriter) -> dict[str, int]:
        file.restart()
        try:
            return call_within(self._limit_seconds, lambda: self._dump(kept, file))
        except BaseException as error:  # noqa: BLE001 - each can be pickled alone, but not all together
            if file.failure is not None:
                raise file.failure from None
            file.restart()
            lost.update(dict.fromkeys(kept, f"pickling all names together failed: {type(error).__name__}"))
            return {}

    def _dump(self, names: Mapping[str, Any], file: SlotWriter | None = None) -> dict[str, int]:
        """Pickle names, into the file if there is one. Returns the sizes."""

        def write(chunk: Any) -> None:
            self._end_if_forked()  # the file is the parent's
            if file is not None:
                file.write(chunk)

        try:
            sizes, self._sources = self._pickling.dump(names, self._limit_bytes, write)
        finally:
            self._end_if_forked()
        return sizes


def _module_name(value: Any) -> str | None:
    """The name to import a module by; None: it is no module, or the agent's code has made something else of it."""
    name = vars(value).get("__name__") if type(value) is types.ModuleType else None
    return name if type(name) is str else None


def _guess_size(value: Any) -> int:
    kind = cast("type[Any]", type(value))
    # Other classes may run the agent's own code when they are asked for anything.
    return sys.getsizeof(value, 0) if type(kind) is type and not kind.__flags__ & CHANGEABLE else 0


class NamespaceKeeper:
    """Makes a checkpoint after each cell of the host, once its reply is on its way.

    Args:
        own_names: gives the names to keep.
        progress_file: shows the host whether a checkpoint is being made.
    """

    def __init__(self, checkpoint: Checkpoint, own_names: Callable[[], dict[str, Any]], progress_file: str) -> None:
        self._checkpoint = checkpoint
        self._own_names = own_names
        self._progress = os.open(progress_file, os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
        self._due: int | None = None  # the cell after which a checkpoint is to be made
        self._causes: dict[str, str] = {}  # why the last checkpoint lacks which names, without addresses
        self._unkept: dict[str, str] = {}  # what of it the next reply has to say

    def expect(self, cell: int) -> None:
        """The reply of this cell is on its way, and its checkpoint due."""
        self._due = cell

    def keep(self) -> None:
        """Make the checkpoint if it is due."""
        if self._due is None:
            return
        cell, self._due = self._due, None
        try:
            names = self._own_names()
            if not self._checkpoint.is_of(names):
                self._note_progress(KEEPING, cell)
                self._note_unkept(self._checkpoint.write(names))
        except Exception as error:  # noqa: BLE001 - a full disk, or no memory: the last good checkpoint stays
            reason = f"the checkpoint cannot be made: {type(error).__name__}: {error}"[:_LONGEST_REASON]
            self._note_unkept({"all names": reason})
        finally:
            self._note_progress(KEPT, cell)

    def _note_unkept(self, lost: dict[str, str]) -> None:
        """Remember for the next reply what the checkpoint lacks, if an earlier reply has not said it for this cause."""
        causes = {name: _ADDRESS.sub("0x", reason) for name, reason in lost.items()}
        news = {name: lost[name] for name, cause in causes.items() if self._causes.get(name) != cause}
        self._causes = causes
        self._unkept = {name: reason for name, reason in {**self._unkept, **news}.items() if name in lost}

    def take_unkept(self) -> dict[str, str]:
        """For a reply: names that the checkpoint lacks, and why, without what an earlier reply has said."""
        unkept, self._unkept = self._unkept, {}
        said = {name[:_LONGEST_REASON]: reason for name, reason in list(unkept.items())[:_MOST_UNKEPT]}
        if len(unkept) > _MOST_UNKEPT:
            said[f"{len(unkept) - _MOST_UNKEPT:,} more"] = "for such reasons"
        return said

    def _note_progress(self, state: bytes, cell: int) -> None:
        with contextlib.suppress(OSError):  # the agent's code closed it
            os.lseek(self._progress, 0, os.SEEK_SET)
            os.write(self._progress, state + b"%020d" % cell)
