"""Live sessions of this user, seen from any process, by the directories they lie in. Starts no kernel."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from kernel_bridge.files.session_directory import remove_nameless, runtime_root
from kernel_bridge.files.session_facts import CONNECTION, FACTS, read_facts
from kernel_bridge.inside.tree_removal import remove_tree

__all__ = ["LiveSession", "live_sessions", "sweep"]


@dataclass(frozen=True, slots=True)
class LiveSession:
    """A session whose host is alive."""

    id: str  # the name of its directory
    host_pid: int
    command: str  # the host's command line
    started: float  # seconds since the epoch
    connection_file: Path


def live_sessions(root: Path | None = None) -> list[LiveSession]:
    """The sessions below `root` (None: the user's runtime directory) whose host lives, oldest first.

    Directories that a host left behind when it was killed are removed on the way. Those of hosts that this process
    cannot see, because each is in a container of its own, are neither given nor removed.
    """
    root = runtime_root() if root is None else root.absolute()
    found: list[LiveSession] = []
    for directory in root.iterdir() if root.is_dir() else ():
        try:
            facts = read_facts(directory)
        except (OSError, ValueError):
            remove_nameless(directory)  # unless it is being made or removed right now, or not ours
            continue
        lives = facts.host.lives()
        if lives is False:
            remove_tree(directory, last=FACTS)
        elif lives and (file := directory / CONNECTION).exists():
            found.append(LiveSession(directory.name, facts.host_pid, facts.command, facts.started, file))
    return sorted(found, key=lambda session: session.started)


@functools.cache
def sweep(root: Path) -> None:
    """Remove what hosts that were killed while they started a kernel, before it had a guardian, left below `root`.

    Once in a process.
    """
    live_sessions(root)
