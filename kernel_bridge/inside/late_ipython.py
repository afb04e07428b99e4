"""IPython, which a kernel imports when something first needs it: a cell, a library, a console.

Until then there are stand-ins for all by which code can find it. Whoever uses one of them finds the whole of IPython
and of ipykernel, as if they had been there from the beginning.
"""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportOptionalMemberAccess=false

from __future__ import annotations

import builtins
import contextlib
import functools
import importlib
import io
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Generator, Iterable, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any, cast

from kernel_bridge.inside.deferred_imports import deferred
from kernel_bridge.inside.interrupts import Interrupts

if TYPE_CHECKING:
    from kernel_bridge.inside.app import BridgeApp

__all__ = ["PACKAGES", "LateIPython", "StandInOpen", "can_see_ipython", "without_logs"]

PACKAGES = ("IPython", "ipykernel")
_STANDARD_LIBRARY = os.path.dirname(os.__file__)
_HIDDEN_BUILTINS = ("exit", "quit")  # which IPython's own in the namespace stand for

_MORE_DEPTH = 1000  # frames, for imports in the middle of a recursion
_WAIT_SECONDS = 10.0  # for another thread that starts it

# Names in code that looks at what no stand-in can hide. It finds IPython there.
_REVEALING_NAMES = {
    *PACKAGES, "asyncio", "get_ipython", "display", "exit", "quit", "In", "Out", "_ih", "_oh", "_dh", "displayhook",
    "modules", "meta_path", "globals", "locals", "vars", "dir", "builtins", "__builtin__", "__builtins__", "__main__",
}  # fmt: skip


class LateIPython:
    """Starts IPython, once.

    Args:
        start: makes it, with all that belongs to it in this process.
        failed: is told why that failed, and ends the process.
        mend: for each module, what to do once it has been imported. Loses what has been done.

    Attributes:
        main: the module in which cells run.
        has_begun: whether it has started, or is starting.
        serves: whether its event loop takes the messages.
        is_wanted: whether its event loop must run before the next cell.
        app: the kernel app; None until IPython has started.
    """

    def __init__(
        self,
        start: Callable[[], BridgeApp],
        failed: Callable[[BaseException], object],
        interrupts: Interrupts,
        mend: dict[str, Callable[[], object]],
    ) -> None:
        self.main = ModuleType("__main__", "Automatically created module for IPython interactive environment")
        self.serves = False
        self.has_begun = False
        self.is_wanted = False
        self.app: BridgeApp | None = None
        self._loop: Any = None
        self._process = os.getpid()
        self._start = start
        self._failed = failed
        self._interrupts = interrupts
        self._lock = threading.RLock()
        self.names = self._stand_ins()
        self.main.__dict__.update(self.names, __builtin__=builtins, __builtins__=builtins)
        sys.modules["__main__"] = self.main
        builtins.__dict__.update(__IPYTHON__=True, display=self._stand_in_for("display", lambda _: _display()))
        with deferred({package: {} for package in PACKAGES}, first=self.begin):
            for package in PACKAGES:
                importlib.import_module(package)
        # As its shell sets them. Libraries take a Python that has them for one in which a person types.
        sys.ps1, sys.ps2, sys.ps3 = "In : ", "...: ", "Out: "  # pyright: ignore[reportAttributeAccessIssue]
        sys.meta_path.insert(0, _Finder(self, mend))

    def _stand_ins(self) -> dict[str, Any]:
        """The names that IPython gives to the namespace."""
        leave = self._stand_in_for("exit", lambda shell: shell.exiter)
        entered: list[str] = [""]
        shown: dict[int, Any] = {}
        return {
            "get_ipython": self._stand_in_for("get_ipython", lambda shell: shell.get_ipython),
            "exit": leave,
            "quit": leave,
            "open": StandInOpen(self),
            **{"In": entered, "_ih": entered, "Out": shown, "_oh": shown, "_dh": []},
            **{"_": "", "__": "", "___": ""},
        }

    def _stand_in_for(self, name: str, find: Callable[[Any], Callable[..., Any]]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return find(self.begin().shell)(*args, **kwargs)

        call.__name__ = call.__qualname__ = name
        return call

    def begin(self, wait_seconds: float = _WAIT_SECONDS) -> BridgeApp:
        """Start it, if it has not been. From any thread, also in the middle of a cell.

        Args:
            wait_seconds: for another thread that starts it. That one may itself wait for a module whose import has
                come here, and get no further before this returns. -1: as long as it takes.
        """
        if self._lock.acquire(timeout=wait_seconds):
            with contextlib.ExitStack() as undo:
                undo.callback(self._lock.release)
                if not self.has_begun:
                    undo.enter_context(_no_alarm())
                    # One that comes meanwhile is raised when all of it is there.
                    undo.enter_context(self._interrupts.held())
                    self._begin()
        return self.app  # pyright: ignore[reportReturnType] - None only for those that run while it is made

    def _begin(self) -> None:
        depth = sys.getrecursionlimit()
        raised = depth + _MORE_DEPTH
        sys.setrecursionlimit(raised)
        self.has_begun = True
        try:
            self.app = self._start()
            self.enter_loop()
        except BaseException as error:  # noqa: BLE001 - half of it is there: nothing can go on
            self._failed(error)
        if sys.getrecursionlimit() == raised:  # no other thread has set one meanwhile
            sys.setrecursionlimit(depth)

    def enter_loop(self) -> None:
        """From now on code in the main thread runs as if an event loop called it: the one that is to run later."""
        self.is_wanted = True
        if self.serves or threading.current_thread() is not threading.main_thread():
            return
        if os.getpid() != self._process:
            return  # the child of a fork runs loops of its own
        import asyncio

        if self._loop is None:
            with without_logs():
                self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
        asyncio._set_running_loop(self._loop)
        self._loop._thread_id = threading.get_ident()  # `is_running()` looks at it

    def leave_loop(self) -> None:
        """The end of that, in the main thread, between cells."""
        if self._loop is not None and not self.serves:
            import asyncio

            asyncio._set_running_loop(None)
            self._loop._thread_id = None

    @types.coroutine
    def there(self) -> Generator[None]:
        """Wait until its event loop runs."""
        if not self.serves:
            yield

    @property
    def execution_count(self) -> Any:
        """The number of a console's next cell."""
        return 1 if self.app is None else self.app.kernel.execution_count

    @contextlib.contextmanager
    def around_cell(self, show: Callable[[Any], None]) -> Generator[None]:
        """A block in which a cell of plain Python runs.

        Args:
            show: takes the values of its last expression while there is no IPython.
        """
        if self.serves:
            with self.app.shell.around_plain_cell():  # pyright: ignore[reportOptionalMemberAccess]
                yield
            return
        names, before = builtins.__dict__, sys.displayhook
        hidden = {name: names.pop(name) for name in _HIDDEN_BUILTINS if name in names}
        names["get_ipython"] = self.names["get_ipython"]
        sys.displayhook = show
        try:
            yield
        finally:
            sys.displayhook = before
            names.pop("get_ipython", None)
            names.update(hidden)
            if self.app is not None:
                self.app.shell.events.trigger("post_execute")


class StandInOpen:
    """Stands for IPython's `open`. Where it is pickled, it becomes Python's own."""

    def __init__(self, ipython: LateIPython) -> None:
        functools.update_wrapper(self, io.open)
        self._ipython = ipython

    def __call__(self, file: Any, *args: Any, **kwargs: Any) -> Any:
        if file in {0, 1, 2}:
            return self._ipython.begin().shell.user_ns["open"](file, *args, **kwargs)  # IPython's, which refuses
        return open(file, *args, **kwargs)

    def __reduce__(self) -> Any:
        return functools.partial, (io.open,)


@contextlib.contextmanager
def without_logs() -> Generator[None]:
    """A block in which nothing is logged: what the kernel does is not for the agent's logs."""
    import logging

    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _no_alarm() -> Generator[None]:
    """A block without the timer of the main thread, whose handler may raise; it goes on afterwards."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return
    left, every = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, left, every)


def can_see_ipython(parts: Iterable[CodeType]) -> bool:
    """Whether this code names what lets it see whether IPython is there."""
    for part in parts:
        if not _REVEALING_NAMES.isdisjoint(name.partition(".")[0] for name in part.co_names):
            return True
        if can_see_ipython(const for const in part.co_consts if isinstance(const, CodeType)):
            return True
    return False


def _display() -> Callable[..., Any]:
    from IPython.display import display

    return display


class _Finder:
    """Finds the modules that need more than an import: parts of IPython, and those to be mended."""

    def __init__(self, ipython: LateIPython, mend: dict[str, Callable[[], object]]) -> None:
        self._ipython = ipython
        self._mend = mend

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name in self._mend:
            # Python's own, as if it had been imported at the start, whatever lies in the working directory.
            found = PathFinder.find_spec(name, [_STANDARD_LIBRARY])
            if found is not None and type(found.loader) is SourceFileLoader:
                found.loader = _MendingLoader(name, found.loader.path, self._mend)
            return found
        if name.partition(".")[0] not in PACKAGES or self._ipython.has_begun:  # or it is being made
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        found = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if found is not None:
            found.loader = cast("Any", _StartingLoader(self._ipython))
        return found


class _MendingLoader(SourceFileLoader):
    """Imports a module and does what belongs to it."""

    def __init__(self, name: str, path: str, mend: dict[str, Callable[[], object]]) -> None:
        super().__init__(name, path)
        self._mend = mend

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        mend = self._mend.pop(module.__name__, None)
        if mend is not None:
            mend()


class _StartingLoader:
    """Imports a part of IPython, with the whole of it. `find_spec` cannot: no other thread can import while it runs."""

    def __init__(self, ipython: LateIPython) -> None:
        self._ipython = ipython
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._ipython.begin(wait_seconds=0)  # others may need this module meanwhile
        module = importlib.import_module(spec.name)
        self._spec = module.__spec__
        self._ipython.begin()
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # it has run
