"""Tier L: Landlock, a system call filter and limits, where namespaces are refused, as in many containers."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path

from kernel_bridge.confine.layout import Layout
from kernel_bridge.confine.plain import plain_guarantees
from kernel_bridge.confine.plan import (
    PACKAGE,
    LaunchPlan,
    clean_environment,
    encoded_filter,
    kernel_command,
    python_paths,
    rlimits,
)
from kernel_bridge.confine.seccomp import ARCHITECTURES
from kernel_bridge.confine.vocabulary import Confinement
from kernel_bridge.inside.seal import landlock_abi

__all__ = [
    "DEVICES",
    "SYSTEM_FILES",
    "landlocked_guarantees",
    "plan_landlocked",
    "unprivileged_user",
    "why_no_landlock",
]

OLDEST_ABI = 6  # the first that keeps signals and abstract unix sockets within the domain

SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/etc/ssl",
    "/etc/ca-certificates",
    "/etc/pki",
    "/etc/fonts",
    "/etc/localtime",
    "/etc/alternatives",
)
"""What of /etc a Python and its libraries read, and which holds nothing private."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/nix/store")
_HARMLESS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/version",
             "/proc/filesystems", "/proc/sys/kernel/osrelease", "/sys/devices/system/cpu", "/sys/devices/system/node",
             "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts")  # fmt: skip


_ROOM_FOR_OTHERS = 512  # processes and threads that the user may start elsewhere while the kernel lives


def why_no_landlock() -> str | None:
    """Why this tier cannot be had here, with what would mend it; None when it can."""
    abi = landlock_abi()
    if abi < OLDEST_ABI:
        have = "none" if abi < 1 else f"version {abi}"
        return f"Landlock of version {OLDEST_ABI} or newer is needed (Linux 6.12), this kernel has {have}"
    if platform.machine() not in ARCHITECTURES:
        return f"there is no system call filter for {platform.machine()}"
    return None


def landlocked_guarantees(python: str) -> Mapping[str, str]:
    """What this tier gives here: guarantee -> mechanism."""
    found = dict(plain_guarantees())
    found["killed_with_host"] = "a guardian process outside the Landlock domain, which it cannot signal; subreaper"
    found["no_network"] = "seccomp: only unix stream sockets, no connect; Landlock: no TCP"
    found["filesystem_allowlist"] = "Landlock path rules"
    found["reduced_syscalls"] = "seccomp"
    if os.geteuid() == 0 and unprivileged_user(python) is not None:
        found["processes_capped"] = "setrlimit(RLIMIT_NPROC) for a user of its own"
    else:
        found["processes_capped"] = "a watchdog on the host"
        if os.geteuid() != 0:
            found["processes_capped"] += "; setrlimit(RLIMIT_NPROC), coarsely, for it counts all that the user has"
    return found


def unprivileged_user(python: str) -> int | None:
    """A user number of its own for a kernel that root starts; None when that user could not reach the interpreter."""
    reached = all(_open_to_all(Path(path)) for path in (*python_paths(python), str(PACKAGE)))
    return 0x70000000 + secrets.randbelow(2**24) if reached else None


def _open_to_all(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents))


def plan_landlocked(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel that shares the host's namespaces but is fenced in by its own process."""
    root = os.geteuid() == 0
    user = unprivileged_user(python) if root else None
    read = [*_SYSTEM, *_HARMLESS, *SYSTEM_FILES, *python_paths(python), str(PACKAGE), "/proc/self"]
    read += [str(path) for path in limits.read_only]
    extra = layout.session / "path"
    read.append(str(extra))
    write = [str(layout.scratch), str(layout.keep), str(layout.sockets), *DEVICES, *map(str, limits.writable)]
    return LaunchPlan(
        argv=kernel_command(python, str(PACKAGE)),
        environment=clean_environment(limits, layout.scratch),
        inside=layout,
        seal={
            "rlimits": rlimits(limits, count_processes=user is not None),
            "more_processes": None if root or limits.processes is None else limits.processes + _ROOM_FOR_OTHERS,
            "user": user,
            "drop_capabilities": root,
            "dies_with_parent": True,
            "landlock": {"read": read, "write": write, "needed": True},
            "seccomp": encoded_filter(unix_connect=False, same_user=user is None),
            "modes_refused": user is None,
            "no_new_privileges": True,
        },
        guarded_from_outside=True,
        owner=user,
    )
