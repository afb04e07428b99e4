"""The command that serves the live page."""

from __future__ import annotations

import contextlib
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.output import write_lines
from rlmoptimizer.command_line.parameters import Directory, Number
from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.errors import InvalidSetup

if TYPE_CHECKING:
    from rlmoptimizer.show.live_page.server import LiveServer

__all__ = ["view"]

_Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, metavar="P", help="The port on 127.0.0.1; without it, a free one.")
]
_NoBrowser = Annotated[bool, typer.Option("--no-browser", help="Only print the address.")]


def view(directory: Directory, number: Number = None, port: _Port = 0, no_browser: _NoBrowser = False) -> None:
    """Follow an optimization in a browser, on a page with buttons to pause, note, stop and branch."""
    with open_target(directory, number) as store:  # raises what is wrong with it before anything is served
        path = store.path
    with contextlib.suppress(KeyboardInterrupt), _server(path, port) as server, contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            _stop_at(server, "SIGTERM", "SIGHUP")
        write_lines(
            [
                f"The page of {printable_line(str(path))}:",
                f"  {server.address}",
                "Whoever has this address can steer the optimization. Ctrl-C ends the page; the optimization goes on.",
            ]
        )
        if not no_browser:
            _open_browser(server.address, stack)
        server.run()


def _stop_at(server: LiveServer, *names: str) -> None:
    """Let these signals leave nothing behind. What is ignored stays so: `nohup` ignores the end of the terminal."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        server.stop()  # an exception could come anywhere in the event loop, and not every place lets it through

    for number in (getattr(signal, name) for name in names if hasattr(signal, name)):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, stop)


def _server(path: Path, port: int) -> LiveServer:
    try:
        from rlmoptimizer.show.live_page.optimizations import Optimizations
        from rlmoptimizer.show.live_page.server import LiveServer
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] == "rlmoptimizer":
            raise
        text = f"the live page needs {error.name}, which is not installed: pip install starlette uvicorn"
        raise InvalidSetup(text) from error
    return LiveServer(Optimizations(path), port=port)


def _open_browser(address: str, stack: contextlib.ExitStack) -> None:
    from rlmoptimizer.show.live_page.browser import has_browser, opened

    if has_browser():
        with contextlib.suppress(OSError):  # no temporary file can be made; the address was printed
            stack.enter_context(opened(address))
