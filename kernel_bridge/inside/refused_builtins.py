"""Errors that say why a cell cannot read input, use a debugger or start an event loop, and what to do instead.

Nobody sits at the other side of a kernel that a host drives, so nothing can be typed in. And a cell runs in an event
loop already.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "NoInput",
    "answer_breakpoints",
    "answer_prompts",
    "answer_second_loops",
    "answer_traces",
    "nothing_typed",
]


def nothing_typed(what: str) -> EOFError:
    """The error for code that waits for what somebody types."""
    return EOFError(
        f"{what} gets nothing here: nobody can type into this session. Write the value into the code, or into a "
        "variable; for code that reads its input, set sys.stdin = io.StringIO('...') first"
    )


class NoInput(io.TextIOBase):
    """`sys.stdin` of the kernel. Processes that it starts inherit the descriptor, which is empty."""

    encoding = "utf-8"
    name = "<stdin>"

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def read(self, size: int | None = -1, /) -> str:
        raise nothing_typed("sys.stdin")

    def readline(self, size: int = -1, /) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        raise nothing_typed("sys.stdin")

    def __next__(self) -> str:
        raise nothing_typed("sys.stdin")

    def close(self) -> None:
        return None  # a cell that closes it must not change the errors of later ones

    @property
    def buffer(self) -> Any:
        return _NoBytes()  # libraries look whether there is one


class _NoBytes(io.RawIOBase):
    """`sys.stdin.buffer` of the kernel."""

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return 0

    def readinto(self, buffer: Any, /) -> int:
        raise nothing_typed("sys.stdin.buffer")

    def readall(self) -> bytes:
        raise nothing_typed("sys.stdin.buffer")


def answer_breakpoints(applies: Callable[[], bool]) -> None:
    """Have `breakpoint()` fail at once while this `applies`."""
    sys.breakpointhook = _unless_refused(sys.breakpointhook, applies)


def answer_traces(applies: Callable[[], bool]) -> None:
    """Have every debugger that would trace from here on fail at once while this `applies`."""
    import bdb

    bdb.Bdb.set_trace = _unless_refused(bdb.Bdb.set_trace, applies)


def answer_prompts(applies: Callable[[], bool]) -> None:
    """Have every program that would ask for commands fail at once while this `applies`."""
    import cmd

    cmd.Cmd.cmdloop = _unless_refused(cmd.Cmd.cmdloop, applies)


def _unless_refused(original: Callable[..., Any], applies: Callable[[], bool]) -> Callable[..., Any]:
    @functools.wraps(original)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not applies():
            return original(*args, **kwargs)
        sys.settrace(None)
        raise RuntimeError(
            "a debugger cannot work here: nobody can type commands into this session. Print what you want to see, or "
            "put the code in `try` and look at the exception"
        )

    return call


def answer_second_loops() -> None:
    """Have `asyncio.run` and the like say what to write instead, where a loop runs already."""
    import asyncio

    asyncio.run = asyncio.runners.run = _unless_in_loop(asyncio.run, "asyncio.run()")
    if sys.version_info >= (3, 11):
        asyncio.Runner.run = _unless_in_loop(asyncio.Runner.run, "asyncio.Runner.run()")
    for name in ("run_until_complete", "run_forever"):
        original = getattr(asyncio.BaseEventLoop, name)
        setattr(asyncio.BaseEventLoop, name, _unless_in_loop(original, f"loop.{name}()"))


def _unless_in_loop(original: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not _in_loop():  # not in an `except`: all that runs in the loop would have its error as context
            return original(*args, **kwargs)
        _close_coroutines((*args, *kwargs.values()))
        raise RuntimeError(
            f"{name} cannot work here, because code runs in an event loop already. Use await: `result = await main()` "
            "works at the top level of a cell and in every async function"
        )

    return run


def _in_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _close_coroutines(values: Iterable[Any]) -> None:
    import asyncio

    for value in values:
        if asyncio.iscoroutine(value):
            value.close()  # nobody will await it, which Python would warn of
