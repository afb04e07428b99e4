"""The kernel: an IPython kernel whose host's cells bring their tools and take their result home. Knows IPython.

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
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from types import FrameType
from typing import Any

from ipykernel.ipkernel import IPythonKernel
from jupyter_client.session import json_packer
from traitlets import Type

from kernel_bridge.inside import DAMAGED, DAMAGED_STATUS, KEEPING, KEPT
from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.checkpoint import Checkpoint
from kernel_bridge.inside.interrupts import HELD, OPEN, Interrupts
from kernel_bridge.inside.memory import MemoryRoom
from kernel_bridge.inside.output import CellStream, DescriptorCapture, Transcript, sendable
from kernel_bridge.inside.shell import BridgeShell
from kernel_bridge.inside.stubs import Binding, Submitted
from kernel_bridge.inside.tracebacks import CELL_PREFIX, describe_failure, name_cell
from kernel_bridge.inside.unavailable import NoInput, answer_debuggers, answer_second_loops, nothing_typed
from kernel_bridge.wire import Foreign, fitting_ready

_HOST_OWNED = ("_dspy", "__dspy", "_Dspy")  # prefixes of the names that DSPy's own set-up cells make
_INPUT = builtins.input  # while a cell runs, ipykernel has its own in this place


class BridgeKernel(IPythonKernel):
    """The kernel of one session. `attach` gives it the rest of what it needs, before the first cell."""

    shell_class = Type(BridgeShell)
    _execute_sleep = 0.0
    _keep_due = False  # the checkpoint after the last host's cell is not made yet

    def __init__(self, **kwargs: Any) -> None:
        self.in_host_cell = False
        self._forked = False
        self._suspicions = 0
        self._lost: dict[str, str] = {}  # names that the last checkpoint lacks, and why
        self._told: dict[str, str] = {}  # the same of the last time, good or bad, with causes for reasons
        self._unkept: dict[str, str] = {}  # what of it is to be told
        super().__init__(**kwargs)

    @property
    def _supports_kernel_subshells(self) -> bool:
        return False

    def attach(
        self,
        config: dict[str, Any],
        channel: HostChannel,
        interrupts: Interrupts,
        transcript: Transcript,
        capture: DescriptorCapture | None,
    ) -> None:
        """Connect the kernel to its host, restore the predecessor's checkpoint, and tell the host it is ready."""
        self.channel = channel
        self.interrupts = interrupts
        self.transcript = transcript
        self.capture = capture
        self.longest_result: int = config["result_chars"]
        self.namespace: dict[str, Any] = self.shell.user_ns
        self.binding = Binding(channel, lambda: self.in_host_cell)
        self.injected: dict[str, Any] = {}
        self.checkpoint: Checkpoint | None = None
        self.hidden = set(self.namespace)
        self._main = self.shell.user_module
        self._given = dict(self.namespace)  # names that every cell finds, whatever those before it have wiped out
        self._given_modules = {"__main__": self._main}
        self._nothing_typed = NoInput()
        sys.stdin = self._nothing_typed
        answer_debuggers(lambda: self.in_host_cell)
        answer_second_loops()
        self.streams = (
            CellStream("stdout", 1, transcript, self._stream, self._drain, interrupts),
            CellStream("stderr", 2, transcript, self._stream, self._drain, interrupts),
        )
        self.memory = MemoryRoom()
        self.out_of_memory = False
        self._builtins = dict(vars(builtins))
        self._mend_process()
        self._real_stderr = config["real_stderr"]
        threading.excepthook = self._thread_failed = _without_submissions(threading.excepthook)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._become_child)
        self.restored: set[str] = set()
        restored: list[str] = []
        lost: dict[str, str] = {}
        spec = config["checkpoint"]
        if spec is not None:
            self.checkpoint = Checkpoint(
                spec["path"],
                self.namespace,
                spec["bytes"],
                spec["seconds"],
                stub_of=self.binding.stub_of,
                last_words=self._real_stderr,
            )
            self._progress = os.open(spec["progress_file"], os.O_WRONLY | getattr(os, "O_CLOEXEC", 0))
            if spec["restore"]:
                restored, lost = self.checkpoint.restore()
                self.restored = set(restored)
        channel.tell(fitting_ready(sys.version.split()[0], restored, lost))

    # -- cells ---------------------------------------------------------------------------------------------------

    def pre_handler_hook(self) -> None:
        self.interrupts.begin(0)
        self.saved_sigint_handler = signal.signal(signal.SIGINT, self.interrupts.handle)
        if hasattr(signal, "pthread_sigmask"):  # a cell before may have kept it out
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))

    def post_handler_hook(self) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    @contextlib.contextmanager
    def _cancel_on_sigint(self, future: asyncio.Future[Any]) -> Generator[None]:
        """While a cell awaits: break into its code where that runs, and cancel it where only the loop runs."""
        loop = asyncio.get_running_loop()
        interrupts = self.interrupts

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
        self._cancelled = True
        future.cancel()

    def raw_input(self, prompt: str = "") -> str:
        if not self.in_host_cell:
            return super().raw_input(prompt)
        if sys.stdin is self._nothing_typed:
            raise nothing_typed("input()")
        return _INPUT(prompt)  # from what the agent's code has put there

    def getpass(self, *args: Any, **kwargs: Any) -> str:
        if not self.in_host_cell:
            return super().getpass(*args, **kwargs)
        raise nothing_typed("getpass()")

    def _publish_status(self, status: str, channel: str, parent: Any = None) -> None:
        if self.iopub_socket.listened_to():
            super()._publish_status(status, channel, parent)

    async def shutdown_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Decline: a session is ended by its host, not by whoever looks on."""
        self.session.send(stream, "shutdown_reply", {"status": "aborted", "restart": False}, parent, ident=ident)

    def do_shutdown(self, restart: bool) -> Any:
        raise RuntimeError("this kernel is ended by its host")

    async def execute_request(self, stream: Any, ident: Any, parent: Any) -> None:
        """Run a cell.

        A host's cell has `metadata["kernel_bridge"] = {"number", "variables", "setup", "again"}`, where variables lists
        every name of the cell as `[name, index of its buffer or None when unchanged, form, whether what was restored of
        it is newer]`; buffer 0 is the binding; setup says that the cell is the host's own preparation, again that this
        is run for a successor, whose restored names it must not undo. Its reply has `content["kernel_bridge"]`: head,
        tail, omitted, result, failure, submitted, taken, unkept.
        """
        self._keep()  # if this request came while the reply before it was sent, and the event loop took it first
        spec = parent["metadata"].get("kernel_bridge")
        if spec is None:
            await self._run_console_cell(stream, ident, parent)
            return
        try:
            bridge = await self._run_host_cell(spec, parent)
            self._reply(bridge, stream, ident, parent)
        except BaseException as error:  # noqa: BLE001 - a cell without a reply would keep its host waiting
            self._give_up(error)
        if self.checkpoint is not None:
            self._keep_due = True
            self.io_loop.add_callback(self._keep)

    async def _run_console_cell(self, stream: Any, ident: Any, parent: Any) -> None:
        self.channel.tell(Foreign(True))
        try:
            self.interrupts.open()
            await super().execute_request(stream, ident, parent)
        finally:
            self.interrupts.mode = HELD
            self.channel.tell(Foreign(False))

    def _reply(self, bridge: dict[str, Any], stream: Any, ident: Any, parent: Any) -> None:
        content: dict[str, Any] = {"status": "ok", "user_expressions": {}, "payload": []}
        if bridge["failure"] is not None:
            content["status"] = "error"
            content.update(ename=bridge["failure"]["name"], evalue="", traceback=[])
        content["execution_count"] = self.shell.execution_count
        content["kernel_bridge"] = bridge
        if self.out_of_memory:
            self.session.pack = json_packer  # for good: orjson ends the process where it gets no memory
        self.session.send(stream, "execute_reply", content, parent, ident=ident)
        stream.flush()

    def _give_up(self, error: BaseException) -> None:
        """End this process: the agent's code has damaged it so that it cannot go on; the host starts another."""
        try:
            line = f"{DAMAGED} {type(error).__name__}: {error!s:.300}\n"
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            os.write(self._real_stderr, (trace + line).encode("utf-8", "replace"))
        finally:  # without memory not even this can be told
            os._exit(DAMAGED_STATUS)

    async def _run_host_cell(self, spec: dict[str, Any], parent: dict[str, Any]) -> dict[str, Any]:
        code = parent["content"]["code"]
        self.failure: dict[str, Any] | None = None
        self.result: str | None = None
        restored = self._own_names() if spec["again"] else {}
        self._mend_process()
        self._mend_namespace()
        before, modules_before = (dict(self.namespace), set(sys.modules)) if spec["setup"] else ({}, set[str]())
        self._drain()
        self.transcript.begin()
        self.in_host_cell = True
        self._number = spec["number"]
        self._cancelled = False
        self.interrupts.begin(self._number)
        taken = False
        try:
            taken = self._take_variables(spec, parent["buffers"])
            if taken:
                if self.iopub_socket.listened_to():
                    content = {"code": code, "execution_count": self.shell.execution_count}
                    self.session.send(self.iopub_socket, "execute_input", content, parent, ident=b"execute_input")
                await self._run_code(code)
                self.end_if_forked(None)
                self._suspicions = 0
        except BaseException as error:
            self.end_if_forked(error)
            self.note_failure(type(error), error, error.__traceback__)
            self._suspicions += not isinstance(error, (KeyboardInterrupt, RecursionError, MemoryError))
            if self._suspicions > _MOST_SUSPICIONS:
                raise
        finally:
            self.in_host_cell = False
            self._mend_process()  # ipykernel flushes the streams that it finds before it replies
            self._drain()
            head, tail, omitted = self.transcript.end()
            self._forget_history()
            self.out_of_memory = self.failure is not None and self.failure["name"] == "MemoryError"
            if spec["setup"]:
                self._note_given(before, modules_before)
            self.namespace.update(restored)
        submitted = self.binding.submitted
        return {
            "head": head,
            "tail": tail,
            "omitted": omitted,
            "result": self.result,
            "failure": None if submitted else self.failure,
            "submitted": submitted,
            "taken": taken,
            "unkept": {} if spec["setup"] else self._take_unkept(),
        }

    async def _run_code(self, code: str) -> None:
        shell = self.shell
        original = shell.compile.cache
        shell.compile.cache = lambda transformed, number=0, raw_code=None: name_cell(transformed, self._number)
        try:
            await self.do_execute(code, False, store_history=False, user_expressions=None, allow_stdin=False)
        finally:
            shell.compile.cache = original

    def _take_variables(self, spec: dict[str, Any], buffers: list[Any]) -> bool:
        """Bind tools and variables. False when a value could not be loaded here; that is the cell's failure."""
        load = self.channel.codec.load
        namespace = self.namespace
        for name, index, form, restored_is_newer in spec["variables"]:
            if index is None:
                if name not in namespace and name in self.injected:
                    namespace[name] = self.injected[name]  # the agent deleted it; inputs are there at every turn
                continue
            try:
                data = _view(buffers[index])
                if form == "value":
                    value = load(data, verify=False)
                else:
                    value = str(data, "utf-8") if form == "text" else bytes(data)
                self.injected[name] = value
                if not (restored_is_newer and name in self.restored):
                    namespace[name] = value
                self.restored.discard(name)
            except Exception:  # noqa: BLE001 - a pickled value runs foreign code while it loads
                self.note_failure(*sys.exc_info())
                return False
        self.binding.update(bytes(_view(buffers[0])), namespace)
        return True

    def note_failure(self, kind: Any, error: Any, tb: Any) -> None:
        """Remember why the running host's cell failed."""
        self._mend_process()
        if kind is None or isinstance(error, Submitted):
            return
        compiling = isinstance(error, SyntaxError) and (tb is None or _outside_cells(tb))
        if isinstance(error, asyncio.CancelledError) and self._cancelled:
            kind, error = KeyboardInterrupt, KeyboardInterrupt()
        name, message, text = describe_failure(kind, error, tb, self._text_of)
        self.failure = {"name": name, "message": message, "traceback": text, "compiling": compiling}

    def _text_of(self, error: BaseException) -> str:
        # The agent's own __str__ runs: it may be broken off, as the cell itself may.
        try:
            self.interrupts.mode = OPEN
            return str(error)
        finally:
            self.interrupts.mode = HELD

    def show_result(self, text: Any) -> None:
        if isinstance(text, str):
            self._drain()
            self.result = sendable(text) if len(text) <= self.longest_result else None
            self.transcript.add_result(text if text.endswith("\n") else text + "\n")

    # -- what the agent's code may have done to this process ------------------------------------------------------

    def _mend_process(self) -> None:
        """Put back what a cell cannot do without: the output streams, their descriptors and the builtins."""
        sys.stdout, sys.stderr = self.streams
        if self.capture is not None:
            self.capture.mend()
        if not callable(threading.excepthook):  # no thread could be started
            threading.excepthook = self._thread_failed
        current = builtins.__dict__
        for name, value in self._builtins.items():
            if current.get(name) is not value:
                current[name] = value

    def _mend_namespace(self) -> None:
        """Put back what a cell has wiped out of that which every cell finds: `%reset`, `globals().clear()`."""
        if self.shell.user_ns is not self.namespace or self.shell.user_module is not self._main:
            self.shell.user_module, self.shell.user_ns = self._main, self.namespace
        for name, value in self._given.items():
            self.namespace.setdefault(name, value)
        sys.modules.update(self._given_modules)

    def _note_given(self, before: dict[str, Any], modules_before: set[str]) -> None:
        """A set-up cell has run: what it made is there in every cell from now on, unless it is set anew."""
        made = {name: value for name, value in self.namespace.items() if before.get(name, before) is not value}
        self._given.update(made)
        for name in set(sys.modules) - modules_before:
            module = sys.modules[name]
            if getattr(module, "__spec__", None) is None:  # made by the cell, such as DSPy's stand-in, not imported
                self._given_modules[name] = module

    def _become_child(self) -> None:
        """In a process that the agent's code forked: nothing of the kernel's may be used there."""
        self._forked = True
        self.channel.forked = True
        for stream in self.streams:
            stream.become_child()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def end_if_forked(self, error: BaseException | None) -> None:
        """End a forked process that came to the end of the cell: only its parent is the kernel."""
        if not self._forked:
            return
        code = 0
        if isinstance(error, SystemExit) and (error.code is None or isinstance(error.code, int)):
            code = error.code or 0
        elif error is not None:
            code = 1
            self.streams[1].write(describe_failure(type(error), error, error.__traceback__)[2] + "\n")
        for stream in self.streams:
            stream.flush()
        os._exit(code & 0xFF)

    def _forget_history(self) -> None:
        """Let go of the displayed values and the exceptions that IPython keeps for its history."""
        for name in ("outputs", "exceptions"):
            getattr(self.shell.history_manager, name, {}).clear()

    def _drain(self) -> None:
        if self.capture is not None:
            self.capture.drain()

    def _stream(self, name: str, text: str) -> None:
        if self.iopub_socket.listened_to():
            self.session.send(
                self.iopub_socket,
                "stream",
                {"name": name, "text": sendable(text)},
                parent=self.get_parent("shell"),
                ident=f"stream.{name}".encode(),
            )

    # -- checkpoint ----------------------------------------------------------------------------------------------

    def _keep(self) -> None:
        """Write the checkpoint if it is due, now that the reply is on its way and the host is busy with it."""
        if self.checkpoint is None or not self._keep_due:
            return
        self._keep_due = False
        self._note_progress(KEEPING + b"%020d" % self._number)
        try:
            written = self.checkpoint.write(self._own_names())
            if written is not None:
                self._lost = written[1]
            self._note_unkept(self._lost)
        except Exception as error:  # noqa: BLE001 - a full disk, or no memory: the last good checkpoint stays
            reason = f"the checkpoint cannot be made: {type(error).__name__}: {error}"[:_LONGEST_REASON]
            self._note_unkept({"all names": reason})
        finally:
            self._note_progress(KEPT + b"%020d" % self._number)

    def _note_unkept(self, lost: dict[str, str]) -> None:
        """Remember for the next reply what the checkpoint lacks, and for what cause, if that was not told yet."""
        causes = {name: _ADDRESS.sub("0x", reason) for name, reason in lost.items()}
        news = {name: lost[name] for name, cause in causes.items() if self._told.get(name) != cause}
        self._told = causes
        self._unkept = {name: reason for name, reason in {**self._unkept, **news}.items() if name in lost}

    def _take_unkept(self) -> dict[str, str]:
        unkept, self._unkept = self._unkept, {}
        told = {name[:_LONGEST_REASON]: reason for name, reason in list(unkept.items())[:_MOST_UNKEPT]}
        if len(unkept) > _MOST_UNKEPT:
            told[f"{len(unkept) - _MOST_UNKEPT:,} more"] = "for such reasons"
        return told

    def _note_progress(self, note: bytes) -> None:
        with contextlib.suppress(OSError):  # the agent's code closed it
            os.lseek(self._progress, 0, os.SEEK_SET)
            os.write(self._progress, note)

    def _own_names(self) -> dict[str, Any]:
        """What the agent made: not IPython's names, not the stubs, not inputs that the host sends anyway."""
        stubs = self.binding.names
        hidden = self.hidden
        injected = self.injected
        return {
            name: value
            for name, value in tuple(self.namespace.items())  # a thread of the agent's may add names meanwhile
            if isinstance(name, str)  # pyright: ignore[reportUnnecessaryIsInstance] - globals() takes any key
            and name not in hidden
            and stubs.get(name) is not value
            and not name.startswith(_HOST_OWNED)
            and name != "dspy"
            and not (name in injected and injected[name] is value and isinstance(value, (str, bytes, int, float)))
            and not _is_ipython_own(name)
        }


_LONGEST_REASON = 300  # characters
_MOST_UNKEPT = 100  # names in one reply
_ADDRESS = re.compile("0x[0-9a-f]+", re.IGNORECASE)  # in the texts of objects: a new one in each cell is no new cause
_MOST_SUSPICIONS = 1  # cells in a row that IPython itself could not run


def _view(buffer: Any) -> Any:
    return getattr(buffer, "buffer", buffer)


def _outside_cells(tb: Any) -> bool:
    """Whether no frame of a cell ran: the cell itself did not compile."""
    while tb is not None:
        if tb.tb_frame.f_code.co_filename.startswith("<cell "):
            return False
        tb = tb.tb_next
    return True


def _without_submissions(hook: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The hook for what threads leave uncaught, but silent about a SUBMIT that was accepted."""

    def filtered(args: Any) -> Any:
        return None if isinstance(args.exc_value, Submitted) else hook(args)

    return filtered


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


# A debugger that was refused leaves the last, which no pickle can hold.
_IPYTHONS = {"_", "__", "___", "__pdb_convenience_variables"}


def _is_ipython_own(name: str) -> bool:
    return name in _IPYTHONS or (name[:1] == "_" and name[1:].removeprefix("i").isdigit())
