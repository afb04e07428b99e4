"""The guardian: the kernel's parent process, which ends the kernel and all that it started when the host dies.

The host talks to it through its standard input, the lifeline: `i` interrupts the kernel's process group, `k` ends it,
and so does end-of-file, which comes when the host dies, however it dies. On Linux the guardian is the subreaper of the
kernel's processes, so that daemonised grandchildren come back to it and are killed too. It reports on its standard
output: `pid N`, then `exit N` or `signal N`. `spawn.py` starts it.
"""

from __future__ import annotations

# A guardian lives as long as its kernel: `typing`, `signal`, `contextlib` and `ctypes` would double what it takes of
# time and add half to its memory. What follows is written in C, or loaded already.
import _signal  # pyright: ignore[reportMissingImports] - what is in C of `signal`
import os
import select
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as _signal
    from collections.abc import Callable
    from typing import NoReturn

    from kernel_bridge.inside.launch_config import GuardianConfig

_PR_SET_CHILD_SUBREAPER = 36
_KILL_SECONDS = 10.0
_DYING_SECONDS = 5.0


def watch(kernel: int, config: GuardianConfig) -> NoReturn:
    """Guard a child until it and all its descendants have ended. Then exit."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    try:
        _guard(kernel, config)
    except BaseException:  # noqa: BLE001 - nobody else would end the kernel
        _kill_all(kernel)
    finally:
        os._exit(0)


def _prctl(option: int, value: int) -> None:
    import _ctypes

    library = _ctypes.dlopen(None, 0)  # pyright: ignore[reportArgumentType] - the process itself
    _ctypes.call_function(_ctypes.dlsym(library, "prctl"), (option, value, 0, 0, 0))


def _guard(kernel: int, config: GuardianConfig) -> None:
    for number in (_signal.SIGINT, _signal.SIGHUP, _signal.SIGTERM, _signal.SIGPIPE):
        _signal.signal(number, _signal.SIG_IGN)
    _attempt(os.setpgid, kernel, kernel)  # both sides do it, so that neither can be too early
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 2)
    _report(f"pid {kernel}")
    wake_in, wake_out = os.pipe()
    for fd in (wake_in, wake_out):
        os.set_blocking(fd, False)
    _signal.set_wakeup_fd(wake_out, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, _noticed)
    asked = False
    status = _reap(kernel)
    while status is None:
        readable, _, _ = select.select([0, wake_in], [], [], 1.0)
        if wake_in in readable:
            _attempt(os.read, wake_in, 4096)
        if 0 in readable:
            command = os.read(0, 64)
            asked = b"k" in command
            if asked or not command:
                break
            _attempt(_interrupt, kernel, config.layers)
        elif os.getppid() != config.host_pid:
            break  # a fork of the host may hold the lifeline open; the host itself is gone
        status = _reap(kernel)
    by_itself = status is not None
    found = _kill_all(kernel)
    if status is None:
        status = found
    if status is not None:
        code = os.waitstatus_to_exitcode(status)
        _report(f"signal {-code}" if code < 0 else f"exit {code}")
    # A host that asked for the end removes the directory itself. A dying one closes its lifeline before it is gone.
    if not asked and _is_gone(config.host_pid, 0.0 if by_itself else _DYING_SECONDS):
        from kernel_bridge.inside.tree_removal import remove_tree

        remove_tree(config.session_dir, last="session.json")


def _is_gone(host: int, seconds: float) -> bool:
    """Whether the host has ended, or does within some seconds."""
    deadline = time.monotonic() + seconds
    while os.getppid() == host:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.005)
    return True


def _noticed(signum: int, frame: object) -> None:
    """Only a signal that has a handler puts a byte into the wake-up pipe."""


def _report(line: str) -> None:
    # A host that was killed reads nothing; the lifeline shows its end.
    _attempt(os.write, 1, line.encode() + b"\n")


def _attempt(action: Callable[..., object], *arguments: object) -> None:
    """Do what the system may refuse."""
    try:
        action(*arguments)
    except OSError:
        return


def _reap(kernel: int) -> int | None:
    """Collect every child that ended; the kernel's status if it was among them."""
    found = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        if pid == kernel:
            found = status


def _kill_all(kernel: int) -> int | None:
    """Kill the kernel's group and all descendants; the kernel's status if it was still running."""
    found = None
    deadline = time.monotonic() + _KILL_SECONDS
    while time.monotonic() < deadline:
        _attempt(os.killpg, kernel, _signal.SIGKILL)
        children = _children(os.getpid())
        for pid in children:
            _attempt(os.kill, pid, _signal.SIGKILL)
        status = _reap(kernel)
        found = status if status is not None else found
        if not children:
            break
        # The children of a killed process come here once it is reaped: look again until none is left.
        time.sleep(0.001)
    return found


def _interrupt(kernel: int, layers: int) -> None:
    os.killpg(_innermost(kernel, layers), _signal.SIGINT)


def _innermost(process: int, layers: int) -> int:
    """The kernel behind so many wrapping processes, each of which has it as its first child."""
    for _ in range(layers):
        children = _children(process)
        if not children:
            raise ProcessLookupError(process)
        process = children[0]
    return process


def _children(me: int) -> list[int]:
    try:
        with open(f"/proc/{me}/task/{me}/children", encoding="ascii") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:
        return []
