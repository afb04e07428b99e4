"""An executor for event loops whose threads are daemons, so that work that hangs in one never keeps a process alive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

from kernel_bridge.threads.daemon_pool import DaemonPool

__all__ = ["DaemonExecutor"]

_SHUTDOWN_SECONDS: Final = 1.0  # how long a shutdown that waits does wait; nobody awaits the work any more

_P = ParamSpec("_P")
_T = TypeVar("_T")


class DaemonExecutor(ThreadPoolExecutor):
    """At most `threads` threads. A `ThreadPoolExecutor` by type only, because asyncio takes no other.

    Python joins the threads of those at its exit, however long they hang.
    """

    def __init__(self, threads: int, name: str) -> None:
        super().__init__(threads)  # it starts no thread before its own `submit`
        self._daemons = DaemonPool(threads, name)

    def submit(self, fn: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
        future: Future[_T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(fn(*args, **kwargs))
            except BaseException as error:  # noqa: BLE001 - for whoever awaits it
                future.set_exception(error)

        self._daemons.submit(work)
        return future

    def shutdown(self, wait: bool = True, **_: Any) -> None:
        """Take no more work. With `wait`, wait for what is under way, but not for ever."""
        self._daemons.close()
        if wait:
            self._daemons.join(_SHUTDOWN_SECONDS)
