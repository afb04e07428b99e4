"""The kernel app: a slim IPKernelApp, made in a process that serves its host already.

It takes over the sockets that are bound. It leaves out the debugger (whose import is the largest part of a stock
kernel's start), the history database, the sub-shell thread, the iopub thread (a lock does the same without two thread
switches a message) and the TCP pipe for forked children (which a kernel without network could not bind).
"""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker, and only that is let through.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import shutil
import threading
import types
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from ipykernel.control import ControlThread
from ipykernel.kernelapp import IPKernelApp
from IPython.core.profiledir import ProfileDir
from jupyter_client.session import json_packer
from tornado.ioloop import IOLoop
from traitlets import Type
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream

from kernel_bridge.inside.host_requests import HostRequests
from kernel_bridge.inside.kernel import BridgeKernel
from kernel_bridge.inside.kernel_sockets import KernelSockets
from kernel_bridge.inside.shell_stream import ShellStream

__all__ = ["BridgeApp", "make_app"]

_MOST_STARTS = 1000  # of the event loop
_IMPORTED_LATER = shutil  # by IPython, when a cell may have changed the path


class _NoThread:
    """Stands where ipykernel 7 expects its sub-shell thread: it is false, and its parent is the main thread."""

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class _NoProfile(ProfileDir):
    """Stands where IPython has the directory of its settings."""

    def _mkdir(self, path: str, mode: int | None = None) -> bool:
        return False

    def check_startup_dir(self, change: Any = None) -> None:
        return None


class BridgeApp(IPKernelApp):
    """Made by `make_app`, once per process."""

    sockets: KernelSockets
    requests: HostRequests

    blocking_class = Type(klass=object, default_value=object)  # the stock one imports all of `jupyter_client`

    def _leave_out(self, *_: Any, **__: Any) -> None:
        """What is not for this kernel: the host wrote the connection file, and the guardian ends the process."""

    def init_profile_dir(self) -> None:
        """A profile that has no files: nothing is read from one, and there may be no room for it."""
        self.profile_dir = _NoProfile(location=os.path.dirname(self.abs_connection_file))

    init_poller = close = _leave_out
    init_pdb = init_blackhole = init_gui_pylab = init_extensions = init_code = init_path = _leave_out
    init_heartbeat = write_connection_file = init_crash_handler = init_signal = _leave_out
    configure_tornado_logger = parse_command_line = _leave_out

    def _configure_logging(self) -> None:
        self.log.setLevel(self.log_level)  # without `logging.config`

    def log_connection_info(self) -> None:
        self.all_ports = {name: getattr(self, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}

    def init_sockets(self) -> None:
        """They are there."""
        sockets = self.sockets
        self.context = sockets.context
        self.shell_socket, self.stdin_socket, self.control_socket = sockets.shell, sockets.stdin, sockets.control
        self.iopub_thread = self.iopub_socket = self.requests.publisher
        self.control_thread = ControlThread(daemon=True)
        self.shell_channel_thread = None

    def init_io(self) -> None:
        self.displayhook = types.SimpleNamespace(get_execution_count=None)

    def init_kernel(self) -> None:
        self.kernel = self.kernel_class.instance(
            parent=self,
            session=self.session,
            control_thread=self.control_thread,
            shell_channel_thread=_NoThread(),
            iopub_thread=self.iopub_thread,
            iopub_socket=self.iopub_socket,
            stdin_socket=self.stdin_socket,
            log=self.log,
            profile_dir=self.profile_dir,
            user_module=self.user_module,
            user_ns=self.user_ns,
            requests=self.requests,
        )
        self.kernel.record_ports({name + "_port": port for name, port in self.all_ports.items()})

    def serve(self, context: contextvars.Context, rest: Any, kept: Iterable[Any]) -> None:
        """Run the event loop in the main thread, again when the agent's code has stopped it or raised through it.

        Args:
            context: of all cells.
            rest: a message of the shell channel or a begun request, to be served first; empty when there is none.
            kept: messages of the control channel, to be served first.
        """
        kernel, loop = self.kernel, IOLoop.current()
        kernel.shell_stream = self.requests.replies.shell = ShellStream(self.shell_socket)
        kernel.control_stream = ZMQStream(self.control_socket, self.control_thread.io_loop)
        self.control_thread.start()
        context.run(kernel.start)
        for message in kept:
            self.control_thread.io_loop.add_callback(kernel.dispatch_control, message)
        kernel.take_messages(context, rest)
        for _ in range(_MOST_STARTS):
            # A task's or a signal handler's, raised between two cells.
            with contextlib.suppress(KeyboardInterrupt, SystemExit, Exception):
                loop.start()
            if loop.asyncio_loop.is_closed():
                return


def make_app(sockets: KernelSockets, requests: HostRequests, main: ModuleType, connection_file: str) -> BridgeApp:
    """A kernel that is ready to serve, and runs cells in this module."""
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    settings = Config()
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "nocolor"
    settings.InteractiveShell.cache_size = 0
    settings.IPCompleter.use_jedi = False  # the agent would wait seconds for a person's TAB
    settings.IPKernelApp.matplotlib = None
    app = BridgeApp.instance(config=settings, log_level=logging.CRITICAL)
    app.sockets, app.requests, app.user_module = sockets, requests, main
    app.kernel_class = BridgeKernel
    app.connection_file = connection_file
    app.initialize()
    app.session.pack = json_packer
    app.shell.is_started = True
    return app
