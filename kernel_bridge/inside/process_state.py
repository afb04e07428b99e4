"""The process's state that every cell relies on: what an earlier cell did to it is undone."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
from collections.abc import Callable
from operator import is_
from typing import Any

from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.memory_reserve import MemoryReserve
from kernel_bridge.inside.streams import StandardStreams
from kernel_bridge.inside.stubs import Submitted
from kernel_bridge.inside.tracebacks import describe_failure

__all__ = ["ProcessState"]


class ProcessState:
    """The streams, the builtins, the room in memory and the forks of this process."""

    def __init__(self, streams: StandardStreams, interrupts: Interrupts) -> None:
        self.streams = streams
        self.interrupts = interrupts
        self.memory = MemoryReserve()
        self._forked = False
        self._builtins = dict(vars(builtins))
        self._sys = sys.modules["sys"]
        threading.excepthook = self._thread_failed = _without_submissions(threading.excepthook)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._become_child)
        self.restore()

    def restore(self) -> None:
        """Put back what a cell cannot do without: the output streams, their descriptors and the builtins.

        Raises: RuntimeError, when modules are gone that cannot be imported a second time.
        """
        if sys.modules.get("sys") is not self._sys:
            raise RuntimeError("the module sys was removed from sys.modules")
        self.streams.restore()
        if not callable(threading.excepthook):  # no thread could be started
            threading.excepthook = self._thread_failed
        if not callable(getattr(sys, "excepthook", None)):  # the same
            sys.excepthook = sys.__excepthook__
        current = builtins.__dict__
        if all(map(is_, map(current.get, self._builtins), self._builtins.values())):
            return
        for name, value in self._builtins.items():
            if current.get(name) is not value:
                current[name] = value

    def expect_builtins(self, *names: str) -> None:
        """What these are now, they are to be in every cell."""
        self._builtins.update({name: getattr(builtins, name) for name in names})

    def _become_child(self) -> None:
        self._forked = True
        self.streams.become_child()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_if_forked(self, error: BaseException | None) -> None:
        """At the end of a cell, end a process that the agent's code forked: only the kernel itself goes on."""
        if not self._forked:
            return
        code = 0
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
        elif error is not None:
            code = 1
            self.streams.error.write(describe_failure(type(error), error, error.__traceback__)[2] + "\n")
        self.streams.flush()
        os._exit(code & 0xFF)


def _without_submissions(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook for what threads leave uncaught, but silent about a SUBMIT that was accepted."""

    def filtered(args: Any) -> Any:
        return None if isinstance(args.exc_value, Submitted) else hook(args)

    return filtered
