"""The live kernel of the agent of an optimization, found from another process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.files.live_sessions import live_sessions
from kernel_bridge.files.session_facts import read_facts
from kernel_bridge.text import shorten_list
from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.store.directory import number_of
from rlmoptimizer.store.file_lock import holder
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["AgentKernel", "running_stores"]


@dataclass(frozen=True, slots=True)
class AgentKernel:
    """A kernel that lives, whose process belongs to the one that optimizes."""

    store: Path
    connection_file: Path
    host_pid: int
    started: int  # the number of the event that told of its start; one that takes its place has another

    @classmethod
    def of(cls, store: StoreReader) -> AgentKernel:
        """The one of the optimization in a store. Raises `InvalidSetup` when it has none now."""
        state = state_of(store)
        if state in ("finished", "interrupted"):
            raise InvalidSetup(f"the optimization in {store.path} is {state}, so its agent has no live kernel")
        started = store.events("KernelStarted")
        if not started:
            raise InvalidSetup(
                f"the agent of the optimization in {store.path} has no kernel yet; it starts after the baseline"
            )
        file = started[-1].data.get("connection_file")
        if not isinstance(file, str):
            raise InvalidSetup(
                f"the interpreter of the optimization in {store.path} is none that a console can attach to"
            )
        return cls(store.path, Path(file), _checked_host(store.path, Path(file)), started[-1].number)


def _checked_host(store: Path, connection_file: Path) -> int:
    """The process that has a kernel. A store may be anybody's, so what it names must be this user's and fit."""
    try:
        facts = read_facts(connection_file.parent)
        is_own = not hasattr(os, "geteuid") or connection_file.parent.stat().st_uid == os.geteuid()
    except (OSError, ValueError):
        raise InvalidSetup(
            f"the kernel of the optimization in {store} has ended; try again when it has another"
        ) from None
    if not is_own or facts.host_pid != holder(store) or facts.host.lives() is not True:
        raise InvalidSetup(f"the kernel that the store {store} names does not belong to the process that has the store")
    return facts.host_pid


def running_stores() -> list[Path]:
    """The stores of this user's processes that have a live kernel, each once.

    Raises `InvalidSetup` when there are none, or the system does not tell which files a process has.
    """
    pids = {session.host_pid for session in live_sessions()}
    if not pids:
        raise InvalidSetup("no kernel of yours is live; name the run_storage_dir of an optimization that runs")
    found = {store for pid in pids for store in _stores_of(pid)}
    if not found:
        hosts = shorten_list([str(pid) for pid in sorted(pids)], 10)
        raise InvalidSetup(
            f"what the live kernels of process {hosts} belong to cannot be seen; name the run_storage_dir"
        )
    return sorted(found)


def _stores_of(pid: int) -> set[Path]:
    """The stores that a process has open and writes to."""
    try:
        opened = [os.readlink(entry) for entry in os.scandir(f"/proc/{pid}/fd")]
    except OSError:  # it has ended, or this is no Linux
        return set()
    stores = {path for path in map(Path, opened) if number_of(path) is not None}
    return {store for store in stores if holder(store) == pid}
