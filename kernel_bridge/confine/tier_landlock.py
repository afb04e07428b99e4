"""Tier L: Landlock, a system call filter and limits, where namespaces are refused, as in many containers."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import PACKAGE, LaunchPlan, encoded_filter, rlimits
from kernel_bridge.confine.readable_paths import SYSTEM_FILES, extra_paths, python_paths, system_directories
from kernel_bridge.confine.seccomp import ARCHITECTURES
from kernel_bridge.confine.tier import NEEDS_NAMESPACES, Tier
from kernel_bridge.confine.tier_plain import PLAIN, plain_guarantees
from kernel_bridge.files.layout import Layout
from kernel_bridge.inside.launch_config import LandlockRules, Seal
from kernel_bridge.inside.seal import landlock_abi

__all__ = ["DEVICES", "LANDLOCK", "OLDEST_ABI", "new_user", "reaches", "unprivileged_user", "why_no_landlock"]

OLDEST_ABI = 6  # the first that keeps signals and abstract unix sockets within the domain

DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_HARMLESS = ("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/uptime", "/proc/loadavg", "/proc/version",
             "/proc/filesystems", "/proc/sys/kernel/osrelease", "/sys/devices/system/cpu", "/sys/devices/system/node",
             "/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts")  # fmt: skip

# Not all of /proc/self: its net lists the sockets of the host with their paths.
_OF_ITSELF = ("cgroup", "cmdline", "comm", "environ", "fd", "fdinfo", "io", "limits", "maps", "mountinfo", "mounts",
              "oom_score", "pagemap", "smaps", "smaps_rollup", "stat", "statm", "status")  # fmt: skip

_ROOM_FOR_OTHERS = 512  # processes and threads that the user may start elsewhere while the kernel lives


def why_no_landlock() -> str | None:
    """Why this tier is not available here, with what would mend it; None when it is."""
    abi = landlock_abi()
    if abi < OLDEST_ABI:
        have = "none" if abi < 1 else f"version {abi}"
        return f"Landlock of version {OLDEST_ABI} or newer is needed (Linux 6.12), this kernel has {have}"
    if platform.machine() not in ARCHITECTURES:
        return f"there is no system call filter for {platform.machine()}"
    return None


def _guarantees() -> Mapping[str, str]:
    processes = "a watchdog on the host; setrlimit(RLIMIT_NPROC), coarsely, for it counts all that the user has"
    if os.geteuid() == 0:
        processes = "setrlimit(RLIMIT_NPROC) for a user of its own; a watchdog on the host"
    return {
        **plain_guarantees(),
        "killed_with_host": "a guardian process outside the Landlock domain, which it cannot signal; subreaper",
        "no_network": "seccomp: only unix stream sockets, no connect; Landlock: no TCP; others on this machine may "
        "connect to an abstract unix socket that it binds",
        "filesystem_allowlist": "Landlock path rules",
        "reduced_syscalls": "seccomp",
        "scratch_capped": "a watchdog on the host over the scratch directory; seccomp: no files are sent; "
        "setrlimit(RLIMIT_FSIZE)",
        "processes_capped": processes,
    }


def new_user() -> int:
    """A user number that nobody has."""
    return 0x70000000 + secrets.randbelow(2**24)


def unprivileged_user(python: str) -> int | None:
    """A user number of its own for a kernel that root starts; None when that user could not reach the interpreter."""
    reached = all(reaches(Path(path)) for path in (*python_paths(python), str(PACKAGE)))
    return new_user() if reached else None


def reaches(path: Path) -> bool:
    """Whether every user can get at a file or directory."""
    needed = 0o001 if path.is_dir() else 0o004
    return bool(path.stat().st_mode & needed) and _passable(path)


def _passable(path: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in path.parents)


def _plan(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel that shares the host's namespaces but is fenced in by its own process."""
    root = os.geteuid() == 0
    user = unprivileged_user(python) if root and _passable(layout.session.parent) else None
    # Where that user's way is barred it is given the power to pass, and to read what Landlock lets it read. Staying
    # root would be worse: no limit of processes applies to root, and root's files and processes are its own.
    passes = root and user is None
    user = new_user() if passes else user
    shared = user is None or passes  # it may change files of the host's user
    return replace(
        PLAIN.plan(limits, layout, python),
        seal=Seal(
            rlimits(limits, count_processes=user is not None),
            more_processes=None if root or limits.processes is None else limits.processes + _ROOM_FOR_OTHERS,
            user=user,
            passes=passes,
            dies_with_parent=True,
            no_new_privileges=True,
            landlock=_rules(limits, layout, python),
            seccomp=encoded_filter(unix_connect=False, same_user=shared),
            modes_refused=shared,
        ),
        owner=user,
    )


def _rules(limits: Confinement, layout: Layout, python: str) -> LandlockRules:
    read_only, writable = extra_paths(limits)
    read = [*system_directories(), *_HARMLESS, *SYSTEM_FILES, *python_paths(python), str(PACKAGE)]
    read += [f"/proc/self/{name}" for name in _OF_ITSELF]
    read += [*read_only, str(layout.session / "path"), str(layout.sockets), str(layout.keep)]
    # Where it can neither make nor remove files, what it writes cannot be hidden from the watchdog.
    write = [str(layout.scratch), *layout.written(), *DEVICES, *writable]
    return LandlockRules(read, write, bind=[str(layout.sockets)], needed=True)


LANDLOCK = Tier(
    letter="L",
    mechanisms="Landlock, seccomp, resource limits",
    how="confined by Landlock",
    platform="linux",
    plan=_plan,
    guarantees=_guarantees,
    missing={
        "private_tmp": f"{NEEDS_NAMESPACES}; /tmp and /dev/shm are out of reach instead",
        "no_host_processes_visible": f"{NEEDS_NAMESPACES}; process numbers can be seen, nothing of the processes",
    },
    why_unavailable=why_no_landlock,
)
