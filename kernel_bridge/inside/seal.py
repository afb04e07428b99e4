"""The seal: restrictions that a process puts on itself before it becomes a kernel, and can never undo. Linux only.

Resource limits, another user, Landlock rules, a system call filter, in this order. A step that fails raises: an
unsealed kernel does not start.
"""

from __future__ import annotations

import base64
import contextlib
import ctypes
import functools
import os
import signal
import struct
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kernel_bridge.inside.launch_config import LandlockRules, Seal

_libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None  # Windows has no such library
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 24, 38
_PR_SET_KEEPCAPS, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 8, 47, 2
_CAPABILITY_VERSION = 0x20080522  # the third
_CAP_DAC_OVERRIDE, _CAP_DAC_READ_SEARCH = 1, 2
_SECCOMP_MODE_FILTER = 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_RULE_PATH_BENEATH = 1

# Landlock access rights to files, by the ABI that brought them.
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1 << 6, 1 << 9, 1 << 11
_ALL_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 5: (1 << 16) - 1}
_READING = _EXECUTE | _READ_FILE | _READ_DIR
_FILE_ONLY = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14 | 1 << 15  # truncate, ioctl_dev
_NET_ALL = 0b11  # bind and connect of TCP, from ABI 4
_SCOPE_ALL = 0b11  # abstract unix sockets and signals, from ABI 6


def seal(spec: Seal) -> None:
    """Apply a plan's seal.

    Raises:
        OSError: naming the step that the system refused.
    """
    _set_limits(spec.rlimits)
    if spec.more_processes:
        _limit_processes(spec.more_processes)
    if spec.user is not None:
        kept = _reading_capability() if spec.passes else None
        _keep_through_change(kept)
        _shed_capabilities()
        _become(spec.user)
        _clear_capabilities(kept)
    if spec.dies_with_parent:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, what="death with the guardian")  # a change of user would undo it
    if spec.no_new_privileges:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, what="no new privileges")
    if spec.landlock is not None and (spec.landlock.needed or landlock_abi() > 0):
        _landlock(spec.landlock)
    if spec.seccomp is not None:
        _filter(base64.b64decode(spec.seccomp))
    if spec.modes_refused:
        _forgive_modes()


def _set_limits(limits: Mapping[str, Sequence[int]]) -> None:
    import resource

    for name, (soft, hard) in limits.items():
        which = getattr(resource, name)
        ceiling = resource.getrlimit(which)[1]
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(which, (soft, hard))


def _limit_processes(more: int) -> None:
    """Bound the processes and threads of this user, as this process and its children see them.

    The system counts them for the user, in other containers too; how many there are shows only in what it refuses.
    """
    import resource

    present = 64
    ceiling = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    while present < _MOST_PROCESSES and not _may_fork_under(present, ceiling):
        present *= 2
    limit = present + more if ceiling < 0 else min(present + more, ceiling)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def _may_fork_under(limit: int, ceiling: int) -> bool:
    import resource

    resource.setrlimit(resource.RLIMIT_NPROC, (limit if ceiling < 0 else min(limit, ceiling), ceiling))
    try:
        child = os.fork()
    except BlockingIOError:
        return False
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    return True


_MOST_PROCESSES = 2**20


def _shed_capabilities() -> None:
    """Make sure that running a program can never give a capability again."""
    for capability in range(64):
        if _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0):
            break  # the first that this system does not know


def _reading_capability() -> int:
    """The weaker one of the two by which a root here passes directories. Raises: OSError when it has neither."""
    effective = struct.unpack("=6I", _capabilities())[0]
    for capability in (_CAP_DAC_READ_SEARCH, _CAP_DAC_OVERRIDE):
        if effective & 1 << capability:
            return capability
    raise OSError("this root may not read what others own, so that no kernel can be made another user here")


def _capabilities() -> bytes:
    found = ctypes.create_string_buffer(24)
    _check(_libc.capget(struct.pack("=Ii", _CAPABILITY_VERSION, 0), found), "reading capabilities")
    return found.raw


def _keep_through_change(kept: int | None) -> None:
    """Have one capability stay through the change of user; it must be inheritable before it leaves the bounding set."""
    if kept is None:
        return
    effective, permitted, _, *upper = struct.unpack("=6I", _capabilities())
    wanted = struct.pack("=6I", effective, permitted, 1 << kept, upper[0], upper[1], 0)
    _check(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), wanted), "an inheritable capability")
    _prctl(_PR_SET_KEEPCAPS, 1, what="keeping capabilities")


def _clear_capabilities(kept: int | None) -> None:
    """Give up all capabilities, those that programs would inherit too, but for the one that is kept."""
    bits = 0 if kept is None else 1 << kept
    wanted = struct.pack("=6I", bits, bits, bits, 0, 0, 0)
    _check(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION, 0), wanted), "giving up capabilities")
    if kept is not None:
        _check(_libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, kept, 0, 0), "a capability for programs")


def _become(user: int) -> None:
    """Another user with no groups; the change of user takes all capabilities away."""
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    _prctl(_PR_SET_DUMPABLE, 1, what="readable by itself")  # else its own /proc/self belongs to root


def _forgive_modes() -> None:
    """Let shutil copy files where modes and times cannot be set: the content is what matters."""
    import shutil

    def forgiving(copy: Any) -> Any:
        @functools.wraps(copy)
        def copied(*args: Any, **kwargs: Any) -> None:
            with contextlib.suppress(PermissionError):
                copy(*args, **kwargs)

        return copied

    shutil.copymode, shutil.copystat = forgiving(shutil.copymode), forgiving(shutil.copystat)


def landlock_abi() -> int:
    """The version of Landlock here; 0: none."""
    if sys.platform != "linux":
        return 0
    return max(0, _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)))


def _landlock(rules: LandlockRules) -> None:
    abi = landlock_abi()
    if abi < 1:
        raise OSError("Landlock is not available")
    handled = _ALL_FILES[max(version for version in _ALL_FILES if version <= abi)]
    attributes = struct.pack("=QQQ", handled, _NET_ALL if abi >= 4 else 0, _SCOPE_ALL if abi >= 6 else 0)
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0))
    _check(ruleset, "Landlock ruleset")
    try:
        for path in rules.read:
            _allow(ruleset, path, _READING & handled)
        for path in rules.write:
            _allow(ruleset, path, handled & ~_MAKE_CHAR & ~_MAKE_BLOCK)
        for path in rules.bind:
            _allow(ruleset, path, (_READING | _MAKE_SOCK) & handled)
        _check(_libc.syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)), "Landlock restriction")
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # what is not there needs no rule
    try:
        if not os.path.isdir(path):
            rights &= _FILE_ONLY
        rule = struct.pack("=Qi", rights, fd)
        _check(_libc.syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)), f"rule for {path}")
    finally:
        os.close(fd)


def _filter(program: bytes) -> None:
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(described), what="system call filter")


def _prctl(option: int, value: int, pointer: int = 0, *, what: str) -> None:
    _check(_libc.prctl(option, value, ctypes.c_void_p(pointer), 0, 0), what)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
