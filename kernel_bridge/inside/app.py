"""The kernel app: a slim IPKernelApp, and the start of a kernel's process.

It leaves out the debugger (whose import is the largest part of a stock kernel's start), the history database, the
sub-shell thread, the iopub thread (a lock does the same without two thread switches a message) and the TCP pipe for
forked children (which a kernel without network could not bind).
"""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker, and only that is let through.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import contextlib
import faulthandler
import gc
import logging
import os
import signal
import threading
import types
from typing import TYPE_CHECKING, Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from traitlets import Type
from traitlets.config import Config
from zmq.eventloop.zmqstream import ZMQStream

from kernel_bridge.inside import lifeline
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.inside.kernel import BridgeKernel
from kernel_bridge.inside.paged_list import PagedList
from kernel_bridge.inside.shell_stream import ShellStream
from kernel_bridge.wire import Codec

if TYPE_CHECKING:
    from kernel_bridge.inside.launch_config import LaunchConfig

_READABLE = int(zmq.POLLIN)  # the flag itself is an enum's, which is slow to calculate with
_MOST_STARTS = 1000  # of the event loop


class Publisher:
    """The iopub socket, used from any thread under a lock, with the methods of ipykernel's iopub thread."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._lock = threading.RLock()
        self._listeners = 0
        self.background_socket = self
        self.closed = False

    def listened_to(self) -> bool:
        """Whether any client, such as a console, is subscribed."""
        with self._lock:
            # Without asking first, every print would cost an exception.
            while int(self._socket.getsockopt(zmq.EVENTS)) & _READABLE:
                event = self._socket.recv(zmq.DONTWAIT)
                self._listeners += 1 if event[:1] == b"\x01" else -1
            return self._listeners > 0

    def send_multipart(self, frames: list[Any], *_: Any, copy: bool = True, **__: Any) -> None:
        with self._lock:
            if self.listened_to():
                self._socket.send_multipart(frames, copy=copy)

    def schedule(self, action: Any) -> None:
        action()

    def flush(self, *_: Any) -> None:
        return None

    def stop(self) -> None:
        return None

    def close(self) -> None:
        with self._lock:
            self.closed = True
            self._socket.close()


class _NoThread:
    """Stands where ipykernel 7 expects its sub-shell thread: it is false, and its parent is the main thread."""

    parent_thread = threading.main_thread()

    def __bool__(self) -> bool:
        return False


class BridgeApp(IPKernelApp):
    """Made by `run`, once per process."""

    real_stderr: int  # a descriptor of the host's end, while 1 and 2 are the agent's

    blocking_class = Type(klass=object, default_value=object)  # the stock one imports all of `jupyter_client`

    def _leave_out(self, *_: Any, **__: Any) -> None:
        """What is not for this kernel: the host wrote the connection file, and the guardian ends the process."""

    init_poller = close = _leave_out
    init_pdb = init_blackhole = init_gui_pylab = init_extensions = init_code = init_path = _leave_out
    configure_tornado_logger = parse_command_line = _leave_out

    def _configure_logging(self) -> None:
        self.log.setLevel(self.log_level)  # without `logging.config`

    def write_connection_file(self, **kwargs: Any) -> None:
        if self.transport == "tcp":  # else the host wrote all that there is to say
            super().write_connection_file(**kwargs)

    def log_connection_info(self) -> None:
        self.all_ports = {name: getattr(self, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}

    def init_control(self, context: zmq.Context[Any]) -> None:
        super().init_control(context)
        for name in ("debugpy_socket", "debug_shell_socket"):
            getattr(self, name).close()
        self.shell_channel_thread = None

    def init_iopub(self, context: zmq.Context[Any]) -> None:
        socket = context.socket(zmq.XPUB)
        socket.linger = 0
        self.iopub_port = self._bind_socket(socket, self.iopub_port)
        self.iopub_thread = self.iopub_socket = Publisher(socket)

    def init_io(self) -> None:
        faulthandler.enable(file=self.real_stderr)
        self.displayhook = types.SimpleNamespace(get_execution_count=None)

    def init_signal(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def init_kernel(self) -> None:
        shell_stream = ShellStream(self.shell_socket)
        control_stream = ZMQStream(self.control_socket, self.control_thread.io_loop)
        self.control_thread.start()
        self.kernel = self.kernel_class.instance(
            parent=self,
            session=self.session,
            control_stream=control_stream,
            shell_stream=shell_stream,
            control_thread=self.control_thread,
            shell_channel_thread=_NoThread(),
            iopub_thread=self.iopub_thread,
            iopub_socket=self.iopub_socket,
            stdin_socket=self.stdin_socket,
            log=self.log,
            profile_dir=self.profile_dir,
            user_ns=self.user_ns,
        )
        self.kernel.record_ports({name + "_port": port for name, port in self.all_ports.items()})


def run(config: LaunchConfig) -> None:
    """Start the kernel that the host described, and serve until it is killed."""
    real_stderr = os.dup(2)
    try:
        app = _prepared(config, real_stderr)
    except BaseException as error:  # the standard streams are the agent's already
        os.write(real_stderr, f"{type(error).__name__}: {error}\n".encode("utf-8", "replace"))
        raise
    _serve(app)


def _prepared(config: LaunchConfig, real_stderr: int) -> BridgeApp:
    """A kernel that is ready to serve."""
    logging.getLogger("tornado").setLevel(logging.CRITICAL)
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    settings = Config()
    settings.HistoryManager.enabled = False
    settings.InteractiveShell.colors = "nocolor"
    settings.InteractiveShell.cache_size = 0
    settings.IPCompleter.use_jedi = False  # the agent would wait seconds for a person's TAB
    settings.IPKernelApp.matplotlib = None
    app = BridgeApp.instance(config=settings, log_level=logging.CRITICAL)
    app.real_stderr = real_stderr
    app.kernel_class = BridgeKernel
    app.connection_file = config.connection_file
    app.initialize()
    app.shell.is_started = True
    interrupts = Interrupts(config.interrupt_file)
    codec = Codec(limit_bytes=config.frame_bytes, limit_depth=config.frame_depth, paged=PagedList)
    assert app.context is not None
    urls = config.calls_url, config.replies_url
    channel = HostChannel(app.context, urls, app.session.key, codec, interrupts)
    if os.name != "posix":
        lifeline.hold(interrupts)
    app.kernel.attach(config, channel, interrupts, real_stderr)
    gc.freeze()  # what a start has made stays, and no collection need look at it
    gc.enable()
    return app


def _serve(app: BridgeApp) -> None:
    """Run the event loop, and run it again when the agent's code stopped it or raised through it."""
    start = app.start
    for _ in range(_MOST_STARTS):
        with contextlib.suppress(KeyboardInterrupt, SystemExit, MemoryError):  # a task's, raised between two cells
            start()
        start = app.io_loop.start
        if app.io_loop.asyncio_loop.is_closed():
            return
