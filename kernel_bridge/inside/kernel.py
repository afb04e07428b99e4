"""The kernel for consoles, and for the host's cells that need IPython: an IPython kernel that serves a host too.

A host's request is served by `HostRequests`, in one queue with all others. Everything else, a console's cells above
all, goes the stock way: it has the same namespace and tools, its own output and history.
"""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker, and only that is let through.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import signal
import sys
from collections.abc import Coroutine, Generator
from types import CoroutineType, FrameType
from typing import Any

import traitlets
from ipykernel.ipkernel import IPythonKernel
from traitlets import Type

from kernel_bridge.inside.cell import HostCell
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.checkpoint import Checkpoint
from kernel_bridge.inside.host_messages import Replies
from kernel_bridge.inside.interrupts import HELD
from kernel_bridge.inside.shell import BridgeShell
from kernel_bridge.inside.tracebacks import CELL_PREFIX, name_cell
from kernel_bridge.wire import Foreign


class BridgeKernel(IPythonKernel):
    """The kernel of one session, from when something needs IPython."""

    shell_class = Type(BridgeShell)
    requests: Any = traitlets.Any()  # HostRequests
    _execute_sleep = 0.0

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    @property
    def cell(self) -> HostCell | None:
        """The host's cell that runs now."""
        return self.requests.cell

    @property
    def channel(self) -> HostChannel:
        """To the host."""
        return self.requests.channel

    @property
    def replies(self) -> Replies:
        """To the host's requests."""
        return self.requests.replies

    @property
    def checkpoint(self) -> Checkpoint | None:
        """Of the namespace."""
        return self.requests.checkpoint

    # -- messages ------------------------------------------------------------------------------------------------

    def take_messages(self, context: contextvars.Context, rest: Any) -> None:
        """Take messages, in one context for all: variables that a cell sets in it are there in the next.

        Args:
            rest: a request that has begun, or a message, to be served first.
        """
        loop = self.io_loop.asyncio_loop
        tasks: set[asyncio.Task[None]] = set()  # asyncio alone does not keep them

        def begin(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
            if sys.version_info >= (3, 11):
                task = loop.create_task(coroutine, context=context)
            else:  # each task has a copy of it

                async def keeping_context(coroutine: Coroutine[Any, Any, None]) -> None:
                    nonlocal context
                    try:
                        await coroutine
                    finally:
                        context = contextvars.copy_context()

                begun = coroutine is rest  # which cannot be awaited; what its cell sets in the context is lost
                task = context.run(loop.create_task, coroutine if begun else keeping_context(coroutine))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            return task

        async def finish(request: CoroutineType[Any, Any, None]) -> None:
            async with self._main_asyncio_lock:
                await begin(request)
                loop.call_soon(self.requests.keep)

        if isinstance(rest, CoroutineType):
            begin(finish(rest))
        elif rest:
            begin(self.shell_main(None, rest))
        self.shell_stream.on_recv(lambda message: begin(self.shell_main(None, message)), copy=False)

    async def dispatch_shell(self, msg: Any, /, *args: Any, **kwargs: Any) -> None:
        """Handle a message: the host's requests at once, all others as Jupyter does."""
        found = self.requests.messages.read_request(msg)
        if found is None:
            await super().dispatch_shell(msg, *args, **kwargs)
            return
        self.set_parent(*found, channel="shell")
        await self.requests.serve(*found)
        asyncio.get_running_loop().call_soon(self.requests.keep)

    def set_parent(self, ident: Any, parent: Any, channel: str = "shell") -> None:
        """Note what is served now: messages that follow from it name it."""
        super().set_parent(ident, parent, channel)
        if channel == "shell":
            self.requests.parent = parent

    def pre_handler_hook(self) -> None:
        self.requests.listen_for_interrupts()

    def post_handler_hook(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        if self.iopub_socket.listened_to():
            super()._publish_status(status, channel, parent)

    def _abort_queues(self, *_: Any) -> None:
        """What waits behind a cell that failed is run all the same: it may be the host's, behind one of a console."""

    async def shutdown_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Decline: the host ends a session, not a console."""
        self.session.send(stream, "shutdown_reply", {"status": "aborted", "restart": False}, parent, ident=ident)

    def do_shutdown(self, restart: bool) -> Any:
        raise RuntimeError("this kernel is ended by its host")

    # -- cells ---------------------------------------------------------------------------------------------------

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a cell of a console."""
        self.requests.keep()
        self.channel.tell(Foreign(True))
        try:
            self.requests.interrupts.open()
            await super().execute_request(stream, ident, parent)
        finally:
            self.requests.interrupts.mode = HELD
            self.channel.tell(Foreign(False))

    async def run_host_cell(self, cell: HostCell, code: str) -> None:
        """Run a cell of the host that is more than plain Python."""
        compiler = self.shell.compile
        original = compiler.cache
        compiler.cache = lambda transformed, number=0, raw_code=None: name_cell(transformed, cell.number)
        try:
            await self.do_execute(code, False, store_history=False, user_expressions=None, allow_stdin=False)
        finally:
            compiler.cache = original
            self.shell.forget_results()

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Generator[None]:
        """While a cell awaits: break into its code where that runs, and cancel it where only the loop runs."""
        loop = asyncio.get_running_loop()
        interrupts = self.requests.interrupts

        def handle(signum: int, frame: FrameType | None) -> None:
            in_cell, in_agent_code = _whose_frames(frame)
            if in_cell or in_agent_code:
                if not in_cell:  # a task beside the cell: that one is broken off, and the cell is cancelled
                    loop.call_soon_threadsafe(self._cancel, future)
                interrupts.handle(signum, frame)
            elif interrupts.concerns_this_cell():
                loop.call_soon_threadsafe(self._cancel, future)

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _cancel(self, future: asyncio.Future[Any]) -> None:
        if self.cell is not None:
            self.cell.cancelled = True
        future.cancel()

    def raw_input(self, prompt: str = "") -> str:
        return super().raw_input(prompt) if self.cell is None else self.requests.raw_input(prompt)

    def getpass(self, *args: Any, **kwargs: Any) -> str:
        return super().getpass(*args, **kwargs) if self.cell is None else self.requests.getpass()


def _whose_frames(frame: FrameType | None) -> tuple[bool, bool]:
    """Whether the running cell's own code is on the stack, and whether any code of a cell is."""
    in_agent_code = False
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(CELL_PREFIX):
            in_agent_code = True
            if code.co_name == "<module>":
                return True, True
        frame = frame.f_back
    return False, in_agent_code
