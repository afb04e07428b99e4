"""The kernel: an IPython kernel whose host's cells bring their tools and take their result home.

A host's cell carries `metadata["kernel_bridge"]` and buffers; see `BridgeKernel.execute_request`. Everything else,
a console's cells above all, goes the stock way: it has the same namespace and tools, its own output and history.
"""

# IPython and ipykernel carry no types: what comes from them is unknown to the checker, and only that is let through.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownLambdaType=false, reportOptionalMemberAccess=false, reportAttributeAccessIssue=false
# pyright: reportUnknownParameterType=false, reportIncompatibleMethodOverride=false
# pyright: reportIncompatibleVariableOverride=false, reportMissingSuperCall=false

from __future__ import annotations

import asyncio
import builtins
import contextlib
import contextvars
import getpass
import os
import signal
import sys
import traceback
from collections.abc import Generator
from types import FrameType
from typing import TYPE_CHECKING, Any

from ipykernel.ipkernel import IPythonKernel
from IPython.core.interactiveshell import ExecutionResult
from jupyter_client.session import json_packer
from traitlets import Type

from kernel_bridge.inside import DAMAGED, DAMAGED_STATUS
from kernel_bridge.inside.cell import HostCell
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.checkpoint import Checkpoint, NamespaceKeeper
from kernel_bridge.inside.host_messages import Replies, read_request
from kernel_bridge.inside.interrupts import HELD, Interrupts
from kernel_bridge.inside.namespace import Namespace
from kernel_bridge.inside.paged_list import read_pages_with
from kernel_bridge.inside.pickling import Pickling
from kernel_bridge.inside.plain_cells import PlainCells
from kernel_bridge.inside.process_state import ProcessState
from kernel_bridge.inside.refused_builtins import NoInput, answer_debuggers, answer_second_loops, nothing_typed
from kernel_bridge.inside.restored_names import told_names
from kernel_bridge.inside.shell import BridgeShell
from kernel_bridge.inside.streams import StandardStreams
from kernel_bridge.inside.stubs import Binding
from kernel_bridge.inside.tracebacks import CELL_PREFIX, name_cell
from kernel_bridge.inside.transcript import Transcript, sendable
from kernel_bridge.wire import Foreign, Ready

if TYPE_CHECKING:
    from kernel_bridge.inside.launch_config import LaunchConfig

_INPUT = builtins.input  # while a cell runs, ipykernel has its own in this place
_MOST_SUSPICIONS = 1  # cells in a row that IPython itself could not run


class BridgeKernel(IPythonKernel):
    """The kernel of one session. `attach` gives it the rest of what it needs, before the first cell."""

    shell_class = Type(BridgeShell)
    _execute_sleep = 0.0
    cell: HostCell | None = None  # the host's cell that runs now
    _suspicions = 0

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    def attach(self, config: LaunchConfig, channel: HostChannel, interrupts: Interrupts, real_stderr: int) -> None:
        """Connect the kernel to its host, and tell the host it is ready."""
        self.channel = channel
        self._interrupts = interrupts
        self._real_stderr = real_stderr
        self._longest_result = config.result_chars
        self.replies = Replies(self.session, self.shell_stream)
        transcript = Transcript(config.output_bytes, config.transcript_file)
        self._process = ProcessState(StandardStreams(transcript, interrupts, self._publish_text), interrupts)
        self._binding = Binding(channel, self._runs_host_cell)
        read_pages_with(self._binding.read_page)
        self._namespace = Namespace(self.shell, self._binding)
        self._plain_cells = PlainCells(self.shell)
        sys.stdin = self._nothing_typed = NoInput()
        answer_debuggers(self._runs_host_cell)
        answer_second_loops()
        self.checkpoint: Checkpoint | None = None
        self._keeper: NamespaceKeeper | None = None
        keeping = config.checkpoint
        if keeping is not None:
            pickling = Pickling(self._namespace.names, self._binding.stub_of)
            self.checkpoint = Checkpoint(
                keeping,
                self._namespace.names,
                pickling,
                last_words=real_stderr,
                end_if_forked=lambda: self._process.end_if_forked(None),
            )
            self._keeper = NamespaceKeeper(self.checkpoint, self._namespace.own_names, keeping.progress_file)
        channel.tell(Ready())

    def start(self) -> None:
        """Begin to take messages, in one context for all: variables that a cell sets in it are there in the next."""
        super().start()
        context = contextvars.copy_context()
        receive_in_context = self.shell_stream.receive
        tasks: set[asyncio.Task[None]] = set()  # asyncio alone does not keep them

        def take(message: list[Any]) -> None:
            loop = asyncio.get_running_loop()
            if sys.version_info >= (3, 11):
                task = loop.create_task(self.shell_main(None, message), context=context)
            else:  # in ipykernel's own way, with a task more
                task = loop.create_task(receive_in_context(message))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        self.shell_stream.on_recv(take, copy=False)

    def _runs_host_cell(self) -> bool:
        return self.cell is not None

    # -- what ipykernel asks of a kernel while a cell runs -------------------------------------------------------

    def pre_handler_hook(self) -> None:
        self._interrupts.begin(0)
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self._interrupts.handle)
        if hasattr(signal, "pthread_sigmask"):  # a cell before may have kept it out
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))

    def post_handler_hook(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Generator[None]:
        """While a cell awaits: break into its code where that runs, and cancel it where only the loop runs."""
        loop = asyncio.get_running_loop()
        interrupts = self._interrupts

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
        if self.cell is None:
            return super().raw_input(prompt)
        if sys.stdin is self._nothing_typed:
            raise nothing_typed("input()")
        return _INPUT(prompt)  # from what the agent's code has put there

    def getpass(self, *args: Any, **kwargs: Any) -> str:
        if self.cell is None:
            return super().getpass(*args, **kwargs)
        raise nothing_typed("getpass()")

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        if self.iopub_socket.listened_to():
            super()._publish_status(status, channel, parent)

    def _publish_text(self, stream: str, text: str) -> bool:
        if not self.iopub_socket.listened_to():
            return False
        content = {"name": stream, "text": sendable(text)}
        parent = self.get_parent("shell")
        self.session.send(self.iopub_socket, "stream", content, parent, ident=f"stream.{stream}".encode())
        return True

    def _abort_queues(self, *_: Any) -> None:
        """What waits behind a cell that failed is run all the same: it may be the host's, behind one of a console."""

    async def shutdown_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Decline: the host ends a session, not a console."""
        self.session.send(stream, "shutdown_reply", {"status": "aborted", "restart": False}, parent, ident=ident)

    def do_shutdown(self, restart: bool) -> Any:
        raise RuntimeError("this kernel is ended by its host")

    # -- cells ---------------------------------------------------------------------------------------------------

    async def dispatch_shell(self, msg: Any, /, *args: Any, **kwargs: Any) -> None:
        """Handle a message: the host's requests at once, all others as Jupyter does."""
        found = read_request(msg, self.session.sign)
        if found is None:
            await super().dispatch_shell(msg, *args, **kwargs)
            return
        ident, parent = found
        self.set_parent(ident, parent, channel="shell")
        self._publish_status("busy", "shell")
        self.pre_handler_hook()
        try:
            await self._serve_host(ident, parent)
        finally:
            self.post_handler_hook()
        self._publish_status("idle", "shell")

    async def _serve_host(self, ident: list[bytes], parent: dict[str, Any]) -> None:
        """Run a cell of the host, or restore the checkpoint, and send the reply.

        A cell's `metadata["kernel_bridge"]` is `{"number", "variables", "setup", "again"}`: for the variables see
        `Namespace.take`; setup says that the cell is the host's own preparation, again that this is run for a
        successor. Its buffer 0 is the binding, see `stubs.py`. Its reply has `content["kernel_bridge"]`: head, tail,
        omitted, result, failure, submitted, taken, unkept.

        Before its first cell the host may ask once, with `metadata["kernel_bridge"] = {"restore": true}`, that the
        namespace of the checkpoint be restored; see `_restore`.
        """
        keeper = self._keeper
        if keeper is not None:  # the event loop may have had no time for it since the last reply
            keeper.keep()
        spec = parent["metadata"]["kernel_bridge"]
        if "restore" in spec:
            self._restore(ident, parent)
            return
        try:
            bridge = await self._run_host_cell(spec, parent)
            bridge["unkept"] = {} if keeper is None or spec["setup"] else keeper.take_unkept()
            self._reply_to_cell(bridge, ident, parent)
        except BaseException as error:  # noqa: BLE001 - the host would wait for a reply
            self._give_up(error)
        if keeper is not None:
            keeper.expect(spec["number"])
            asyncio.get_running_loop().call_soon(keeper.keep)

    def _restore(self, ident: list[bytes], parent: dict[str, Any]) -> None:
        """Load what a predecessor has left. The reply has `content["kernel_bridge"]`: see `told_names`."""
        try:
            restored, lost = ([], {}) if self.checkpoint is None else self.checkpoint.restore()
            self._process.end_if_forked(None)
            self._namespace.restored.update(restored)
            self._reply({"status": "ok", "kernel_bridge": told_names(restored, lost)}, ident, parent)
        except BaseException as error:  # noqa: BLE001 - the host would wait for a reply
            self._give_up(error)

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a cell of a console."""
        if self._keeper is not None:
            self._keeper.keep()
        self.channel.tell(Foreign(True))
        try:
            self._interrupts.open()
            await super().execute_request(stream, ident, parent)
        finally:
            self._interrupts.mode = HELD
            self.channel.tell(Foreign(False))

    async def _run_host_cell(self, spec: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
        cell = HostCell(spec["number"], self._process, self._longest_result)
        self._namespace.restore()
        setup = self._namespace.prepared(again=spec["again"]) if spec["setup"] else contextlib.nullcontext()
        taken = False
        with setup:
            self.cell = cell
            try:
                taken = self._take(cell, spec["variables"], parent["buffers"])
                if taken:
                    await self._run_code(cell, parent)
                    self._process.end_if_forked(None)
                    self._suspicions = 0
            except BaseException as error:
                self._process.end_if_forked(error)
                cell.note_failure(type(error), error, error.__traceback__)
                self._suspicions += not isinstance(error, (KeyboardInterrupt, RecursionError, MemoryError))
                if self._suspicions > _MOST_SUSPICIONS:
                    raise
            finally:
                self.cell = None
                reply = cell.end(submitted=self._binding.submitted, taken=taken)
                for name in ("outputs", "exceptions"):  # which IPython would keep for its history
                    getattr(self.shell.history_manager, name, {}).clear()
        return reply

    def _take(self, cell: HostCell, variables: list[Any], buffers: list[Any]) -> bool:
        """Bind tools and variables. False when a value could not be loaded here; that is the cell's failure."""
        views = [getattr(buffer, "buffer", buffer) for buffer in buffers]
        try:
            self._namespace.take(variables, views, lambda data: self.channel.codec.load(data, verify=False))
        except Exception:  # noqa: BLE001 - a pickled value runs foreign code while it loads
            cell.note_failure(*sys.exc_info())
            return False
        self._binding.update(bytes(views[0]), self._namespace.names)
        return True

    async def _run_code(self, cell: HostCell, parent: dict[str, Any]) -> None:
        code = parent["content"]["code"]
        if self.iopub_socket.listened_to():
            content = {"code": code, "execution_count": self.shell.execution_count}
            self.session.send(self.iopub_socket, "execute_input", content, parent, ident=b"execute_input")
        name = name_cell(code if code.endswith("\n") else code + "\n", cell.number)
        parts = self._plain_cells.compiled(code, name)
        if parts is None:
            await self._run_with_ipython(cell, code)
            return
        shell = self.shell
        shell.last_execution_result = shell.displayhook.exec_result = ExecutionResult(None)  # its `result` is shown
        inputs = builtins.input, getpass.getpass
        builtins.input, getpass.getpass = self.raw_input, self.getpass
        try:
            shell.events.trigger("pre_execute")
            with shell.builtin_trap, shell.display_trap:
                for part in parts:
                    if await cell.run(part, self._namespace.names, awaits=False):
                        break
        finally:
            builtins.input, getpass.getpass = inputs
            shell.displayhook.exec_result = None

    async def _run_with_ipython(self, cell: HostCell, code: str) -> None:
        compiler = self.shell.compile
        original = compiler.cache
        compiler.cache = lambda transformed, number=0, raw_code=None: name_cell(transformed, cell.number)
        try:
            await self.do_execute(code, False, store_history=False, user_expressions=None, allow_stdin=False)
        finally:
            compiler.cache = original

    def _reply_to_cell(self, bridge: dict[str, Any], ident: list[bytes], parent: dict[str, Any]) -> None:
        content: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
        if bridge["failure"] is not None:
            content["status"] = "error"
            content.update(ename=bridge["failure"]["name"], evalue="", traceback=[])
        content["execution_count"] = self.shell.execution_count
        content["kernel_bridge"] = bridge
        self._reply(content, ident, parent)

    def _reply(self, content: dict[str, Any], ident: list[bytes], parent: dict[str, Any]) -> None:
        if self._process.memory.was_used_up:
            self.session.pack = json_packer  # for good: orjson ends the process where it gets no memory
        self.replies.send(content, parent, ident)

    def _give_up(self, error: BaseException) -> None:
        """End this process: the agent's code has damaged it so that it cannot go on; the host starts another."""
        try:
            line = f"{DAMAGED} {type(error).__name__}: {error!s:.300}\n"
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            os.write(self._real_stderr, (trace + line).encode("utf-8", "replace"))
        finally:  # without memory not even this can be written
            os._exit(DAMAGED_STATUS)


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
