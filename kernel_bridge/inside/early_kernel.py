"""The kernel as it begins: it serves its host with next to nothing imported, until something needs IPython."""

from __future__ import annotations

import contextlib
import contextvars
import faulthandler
import gc
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any

import zmq

from kernel_bridge.inside import lifeline
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.deferred_imports import deferred, slow_modules
from kernel_bridge.inside.early_control import EarlyControl
from kernel_bridge.inside.host_messages import Messages, Publisher, Replies
from kernel_bridge.inside.host_requests import HostRequests
from kernel_bridge.inside.import_path import own_path
from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.kernel_sockets import KernelSockets
from kernel_bridge.inside.late_ipython import PACKAGES, LateIPython, without_logs
from kernel_bridge.inside.paged_list import PagedList
from kernel_bridge.inside.process_state import ProcessState
from kernel_bridge.inside.refused_builtins import answer_breakpoints, answer_prompts, answer_second_loops, answer_traces
from kernel_bridge.wire import Codec, Ready

if TYPE_CHECKING:
    from kernel_bridge.inside.app import BridgeApp
    from kernel_bridge.inside.launch_config import LaunchConfig

__all__ = ["run"]

_poll = zmq.zmq_poll  # the agent's code may replace the module's


def run(config: LaunchConfig) -> None:
    """Start the kernel that the host described, and serve until it is killed."""
    real_stderr = os.dup(2)
    try:
        kernel = EarlyKernel(config, real_stderr)
    except BaseException as error:  # the standard streams are the agent's already
        os.write(real_stderr, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        raise
    kernel.serve()


class EarlyKernel:
    """Says that it is ready, and serves. One per process."""

    def __init__(self, config: LaunchConfig, real_stderr: int) -> None:
        faulthandler.enable(file=real_stderr)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
        self.config = config
        self.sockets = sockets = KernelSockets(config.connection_file)
        self.messages = Messages(sockets.key)
        self.control = EarlyControl(sockets.context, sockets.control, self.messages)
        publisher = Publisher(sockets.iopub, self.messages)
        interrupts = Interrupts(config.interrupt_file)
        codec = Codec(limit_bytes=config.frame_bytes, limit_depth=config.frame_depth, paged=PagedList)
        urls = config.calls_url, config.replies_url
        channel = HostChannel(urls, sockets.key, codec, interrupts)
        mend: dict[str, Callable[[], object]] = {
            "asyncio": self._mend_asyncio,
            "bdb": lambda: answer_traces(self.requests.runs_cell),
            "cmd": lambda: answer_prompts(self.requests.runs_cell),
        }
        self.ipython = LateIPython(self._start_ipython, self._give_up, interrupts, mend)
        replies = Replies(self.messages, sockets.shell)
        self.requests = HostRequests(
            config, channel, interrupts, self.messages, replies, publisher, self.ipython, real_stderr
        )
        answer_breakpoints(self.requests.runs_cell)
        if os.name != "posix":
            lifeline.hold(interrupts)
        for name in mend.keys() & sys.modules.keys():  # which the start of this Python has imported
            mend.pop(name)()
        gc.freeze()  # what a start has made stays, and no collection need look at it
        gc.enable()
        channel.open()
        channel.tell(Ready())

    def serve(self) -> None:
        """Serve until the process is killed."""
        # One context for all cells: variables that one sets in it are there in the next.
        context = contextvars.copy_context()
        rest: Any = None
        while rest is None and not self.ipython.is_wanted:
            with contextlib.suppress(KeyboardInterrupt, SystemExit, MemoryError):  # a signal handler's, between cells
                rest = context.run(self._serve_one)
        try:
            app = context.run(self.ipython.begin, -1)  # a thread of the agent's may be starting it
            self.ipython.leave_loop()
            self.ipython.serves = True
            app.serve(context, rest, self.control.stop())
        except BaseException as error:  # noqa: BLE001 - the standard streams are the agent's
            self._give_up(error)

    def _serve_one(self) -> Any:
        """Wait for a message and serve it.

        Returns: None when it was served; else what IPython is needed for: a message of the shell channel, a request
        that has begun, or an empty list for a message that the control channel's thread has kept.
        """
        shell, control = self.sockets.shell, self.control.needs_ipython
        try:
            ready = _poll([(shell, zmq.POLLIN), (control, zmq.POLLIN)], -1)
        except zmq.ZMQError:
            raise
        except Exception:  # noqa: BLE001 - of a signal handler that a cell has left behind
            return None
        if any(socket is control for socket, _ in ready):
            return []
        message = shell.recv_multipart(zmq.DONTWAIT, copy=False)
        if self.ipython.is_wanted:
            return message  # a thread of the agent's has used it meanwhile
        found = self.messages.read_request(message)
        if found is None:
            return message
        request = self.requests.serve(*found)
        try:
            request.send(None)
        except StopIteration:
            self.requests.keep()
            self.ipython.leave_loop()
            return None
        return request

    def _give_up(self, error: BaseException) -> None:
        self.requests.give_up(error)

    def _mend_asyncio(self) -> None:
        answer_second_loops()
        self.ipython.enter_loop()

    def _start_ipython(self) -> BridgeApp:
        requests = self.requests
        with (
            _undisturbed(requests.process),
            _in_directory(self.config.working_directory),
            _under_its_name(self.ipython.main),
            requests.namespace.taken_over(self.ipython.names),
        ):
            # An empty module where ipykernel looks for its debugger: debugpy takes longer to import than all else.
            debugger: Any = ModuleType("ipykernel.debugger")
            debugger._is_debugpy_available, debugger.Debugger = False, object
            sys.modules["ipykernel.debugger"] = debugger
            with deferred(slow_modules()):
                for package in PACKAGES:  # before their parts, as they expect it
                    vars(importlib.import_module(package))
                from kernel_bridge.inside.app import make_app
            app = make_app(self.sockets, requests, self.ipython.main, self.config.connection_file)
        requests.watch(app.shell)
        return app


@contextlib.contextmanager
def _undisturbed(process: ProcessState) -> Generator[None]:
    """A block of imports, which has nothing to do with what cells have set for themselves."""
    collects = gc.isenabled()
    with process.memory.lent(), _no_warnings(), without_logs(), own_path():
        gc.disable()  # imports make much and leave no garbage
        try:
            yield
        finally:
            if collects:
                gc.enable()


@contextlib.contextmanager
def _no_warnings() -> Generator[None]:
    """A block without warnings. In a thread of the agent's it changes nothing: the filters are everybody's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextlib.contextmanager
def _in_directory(path: str) -> Generator[None]:
    """A block in this directory, where the working directory is gone: IPython would end the process."""
    with contextlib.suppress(OSError):
        os.getcwd()
        path = ""
    if not path:
        yield
        return
    gone = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
        yield
    finally:
        os.fchdir(gone)
        os.close(gone)


@contextlib.contextmanager
def _under_its_name(main: ModuleType) -> Generator[None]:
    """A block in which the cells' module has its name, by which IPython puts it into `sys.modules`."""
    names = vars(main)
    is_there, own = "__name__" in names, names.get("__name__")  # a cell may have changed or deleted it
    names["__name__"] = "__main__"
    try:
        yield
    finally:
        names["__name__"] = own
        if not is_there:
            del names["__name__"]
