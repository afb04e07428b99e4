"""Hides from this project's modules what macOS or Windows lacks, on a Linux, so that their portable branches run.

`install` puts a hook into `import`: a module of the project (or one of its tests) that imports `os`, `sys`, `socket` or
another of those below gets a view of it, without the names that the system lacks and with that system's answers to
`os.name` and `sys.platform`. `/proc` is not there for it. All other modules, and the agent's code, see the real ones.
Installed by the `sitecustomize` that `portable_rig.py` makes, and by `begin.py` where a Python runs without one.
"""

from __future__ import annotations

import builtins
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

_PROJECT = Path(__file__).resolve().parents[2]
_SEES = tuple(str(_PROJECT / name) + os.sep for name in ("kernel_bridge", "tests/kernel_bridge"))
_PATHS = ("open", "listdir", "scandir", "readlink", "stat", "lstat", "statvfs", "access")  # of os, for /proc

# What is Linux's alone. macOS has the rest of POSIX.
_LINUX: Mapping[str, str] = {
    "os": (
        "O_PATH O_TMPFILE EFD_CLOEXEC eventfd getrandom memfd_create pidfd_open posix_fallocate sched_getaffinity "
        "sched_setaffinity sched_setscheduler setns setresgid setresuid setxattr splice unshare"
    ),
    "select": "epoll EPOLLIN",
    "signal": "pidfd_send_signal sigtimedwait sigwaitinfo",
    "socket": "AF_NETLINK AF_VSOCK MSG_NOSIGNAL SO_PASSCRED SO_PEERCRED",
    "time": "clock_gettime_ns pthread_getcpuclockid CLOCK_BOOTTIME",
}
# What Windows lacks besides.
_POSIX: Mapping[str, str] = {
    "os": (
        "O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK WNOHANG chown chroot fchmod fchown fork forkpty getegid geteuid "
        "getgid getpgid getpriority getsid getuid killpg lchown mkfifo mknod posix_spawn pread pwrite register_at_fork "
        "set_blocking setegid seteuid setgid setgroups setpgid setsid setuid statvfs waitid waitpid"
    ),
    "select": "poll POLLIN POLLOUT kqueue",
    "signal": (
        "ITIMER_REAL SIGALRM SIGCHLD SIGCONT SIGHUP SIGKILL SIGPIPE SIGQUIT SIGSTOP SIGSYS SIGTSTP SIGUSR1 SIGUSR2 "
        "alarm pause pthread_kill pthread_sigmask setitimer sigpending sigwait SIG_BLOCK SIG_SETMASK SIG_UNBLOCK"
    ),
    "socket": "AF_UNIX CMSG_LEN CMSG_SPACE SCM_RIGHTS send_fds recv_fds",
    "time": "clock_gettime clock_settime",
}
_NO_MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty")  # on Windows


class _View:
    """A module without some of its names and with others changed. What is set goes to the module itself."""

    def __new__(cls, real: Any, *_: Any) -> Any:
        return ModuleType(real) if isinstance(real, str) else super().__new__(cls)  # for `type(sys)("name")`

    def __init__(self, real: ModuleType, hidden: frozenset[str], changed: Mapping[str, Any]) -> None:
        vars(self).update(_real=real, _hidden=hidden, _changed=dict(changed))

    def __getattr__(self, name: str) -> Any:
        if name in self._hidden:
            raise AttributeError(f"{self._real.__name__!r} has no {name!r} on this system")
        return self._changed[name] if name in self._changed else getattr(self._real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)
        self._changed.pop(name, None)

    def __delattr__(self, name: str) -> None:
        delattr(self._real, name)


def install(system: str, python: str) -> None:
    """Hide what a system lacks: "macos" or "windows". `python`: what begins another Python that lacks the same."""
    windows = system == "windows"
    names = ("os", "sys", "select", "signal", "socket", "time", "ctypes")
    views: dict[str, Any] = {name: _view(name, python, windows=windows) for name in names}
    real_import, real_open = builtins.__import__, builtins.open

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if level == 0 and globals is not None and _is_ours(globals):
            if windows and name.partition(".")[0] in _NO_MODULES:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            if (view := views.get(name)) is not None:
                return view
        return real_import(name, globals, locals, fromlist, level)

    def open_(file: Any, *args: Any, **kwargs: Any) -> Any:
        if _is_proc(file) and _is_ours(sys._getframe(1).f_globals):
            raise FileNotFoundError(2, "No such file or directory", file)
        return real_open(file, *args, **kwargs)

    builtins.__import__ = import_  # type: ignore[assignment]
    builtins.open = open_  # type: ignore[assignment]


def _is_ours(globals: Mapping[str, Any]) -> bool:
    return str(globals.get("__file__", "")).startswith(_SEES)


def _is_proc(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and f"{os.fspath(path)}/".startswith("/proc/")


def _view(name: str, python: str, *, windows: bool) -> _View:
    hidden = frozenset((_LINUX.get(name, "") + " " + (_POSIX.get(name, "") if windows else "")).split())
    changed: dict[str, Any] = {}
    if name == "os":
        # No system has this name: a real "nt" would lead the standard library to functions that Linux has not.
        changed = {"name": "no posix"} if windows else {}
        changed |= {function: _without_proc(getattr(os, function)) for function in _PATHS}
        changed["path"] = _View(os.path, frozenset(), {n: _without_proc(getattr(os.path, n), False)
                                                       for n in ("exists", "lexists", "isdir")})  # fmt: skip
    elif name == "sys":
        changed = {"platform": "no posix" if windows else "darwin", "executable": python}
    elif name == "signal" and windows:
        changed = {"raise_signal": _signal_main_thread}
    elif name == "ctypes":
        changed = {"CDLL": _library_loader(windows=windows)}
    return _View(__import__(name), hidden, changed)


def _without_proc(function: Callable[..., Any], answer: Any = None) -> Callable[..., Any]:
    def look(path: Any = ".", *args: Any, **kwargs: Any) -> Any:
        if not _is_proc(path):
            return function(path, *args, **kwargs)
        if answer is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return answer

    return look


def _signal_main_thread(number: int) -> None:
    """As on Windows, where a signal that any thread raises ends a wait of the main one."""
    signal.pthread_kill(threading.main_thread().ident or 0, number)


def _library_loader(*, windows: bool) -> Callable[..., Any]:
    def load(name: str | None, *args: Any, **kwargs: Any) -> Any:
        if name is not None:
            return ctypes.CDLL(name, *args, **kwargs)
        if windows:
            raise TypeError("bad argument type for built-in operation")  # what it says there
        return _View(ctypes.CDLL(None, *args, **kwargs), frozenset({"capget", "capset", "prctl", "syscall"}), {})  # type: ignore[arg-type]

    return load
