"""A cgroup for a kernel, by systemd: the only bound on all of its processes that the system itself keeps.

Used where a user's systemd gives scopes, as on most desktops and servers; containers have none, and the watchdog on
the host does its work there alone. Not tested by this project's own checks, whose machines have no systemd.
"""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Sequence

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.trial_program import ask
from kernel_bridge.os_errors import TransientError

__all__ = ["scope_prefix", "scopes_work"]

_TRIAL_SECONDS = 20
_WORD = "scoped"  # what a command says that systemd has run


@functools.cache
def scopes_work() -> bool:
    """Whether systemd gives this user a scope; found by asking for one, once.

    Raises:
        TransientError: it did not answer in time, or could not be asked now.
    """
    systemd_run = shutil.which("systemd-run")
    bus = f"/run/user/{os.getuid()}/bus" if hasattr(os, "getuid") else ""
    if systemd_run is None or not (os.path.exists(bus) or os.path.isdir("/run/systemd/system")):
        return False
    try:
        asked = ask([*_scope(systemd_run), "-p", "MemoryMax=1G", "echo", _WORD], seconds=_TRIAL_SECONDS)
    except TransientError:
        raise
    except OSError:
        return False
    return _WORD.encode() in asked.stdout


def scope_prefix(limits: Confinement) -> Sequence[str]:
    """What to put before a command so that it runs in a scope with these limits; empty where there are no scopes."""
    properties: list[str] = []
    if limits.memory_bytes is not None:
        properties += ["-p", f"MemoryMax={limits.memory_bytes}", "-p", "MemorySwapMax=0"]
    if limits.processes is not None:
        properties += ["-p", f"TasksMax={limits.processes + _OWN_TASKS}"]
    systemd_run = shutil.which("systemd-run")
    if not properties or systemd_run is None or not scopes_work():
        return ()
    return [*_scope(systemd_run), *properties, "--"]


_OWN_TASKS = 16  # of the wrapper and the kernel's own service threads


def _scope(systemd_run: str) -> list[str]:
    """With --scope the command takes systemd-run's place, so nothing stands between it and the guardian."""
    return [systemd_run, *(["--user"] if os.getuid() else []), "--scope", "--quiet", "--collect"]
