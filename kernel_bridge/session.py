"""A session: one kernel at a time, from start to close, and across the deaths between. Knows nothing of DSPy.

One thread at a time runs a cell. The tool server's threads run beside it. `interrupt` may come from any thread.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import msgspec

from kernel_bridge.cells import Cell, CellOutcome, Death, Limits, RemoteFailure
from kernel_bridge.checks import check_session_options
from kernel_bridge.confine import Confinement, ConfinementReport, resolve
from kernel_bridge.dispatch import ToolDispatcher, describe_tool
from kernel_bridge.errors import (
    KernelDied,
    NotSendable,
    ProtocolViolation,
    SessionBusy,
    SessionClosed,
    SessionLost,
    StartupFailed,
)
from kernel_bridge.inside.output import sendable
from kernel_bridge.peer import Frame, Peer, PeerError, PeerGone, wait_for, wake_pair
from kernel_bridge.process import ExitReason, KernelProcess, SessionDirectory, result_chars
from kernel_bridge.toolserver import CLOSED, ToolServer
from kernel_bridge.variables import VariableLedger
from kernel_bridge.wire import Codec, Unsendable

__all__ = ["KernelSession"]

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.001  # between two looks whether a starting kernel listens
_GRACE_SECONDS = 2.0  # from the interrupt to the kill
_PARTING_SECONDS = 2.0  # between a kernel's sockets closing and its exit
_RUNNER_SECONDS = 60.0  # for the thread that runs a cell to notice that the session is being closed
_SWEEP_SECONDS = 0.5  # how often a platform without pidfd looks whether the kernel lives


# name, index of its frame or None when the kernel has it, form, whether what a checkpoint restored is newer
_Frame = bytes | memoryview
_Variable = tuple[str, "int | None", str, bool]


_Count = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class _Failure(msgspec.Struct):
    name: str
    message: str
    traceback: str
    compiling: bool


class _Bridge(msgspec.Struct):
    head: str
    tail: str
    omitted: _Count
    result: str | None
    failure: _Failure | None
    submitted: bool
    taken: bool


class _Reply(msgspec.Struct):
    """What a kernel claims about a cell; it is the agent's word, so its types are checked and nothing else believed."""

    kernel_bridge: _Bridge


class _Header(msgspec.Struct):
    msg_id: str = ""
    msg_type: str = ""


# Only what is asked for is ever built: a reply of many empty lists would take twenty times its size as objects.
_headers = msgspec.json.Decoder(_Header)
_replies = msgspec.json.Decoder(_Reply)
_DELIMITER = b"<IDS|MSG>"
_MOST_FRAMES = 16  # of a reply; Jupyter's have six


class KernelSession:
    """A persistent namespace in a confined kernel.

    Args:
        tools: the host tools by name; read again at the start of every cell, so it may be changed between cells.
        judge: called with the fields of every SUBMIT; raising refuses it, and the agent sees why.
        dispatcher: runs the tools; by default a plain `ToolDispatcher`.
        python: the interpreter to run; None: this one. It needs ipykernel and msgspec, nothing of ours.
        limits: bounds of time and size.
        confinement: see `kernel_bridge.confine.resolve`.
        restarts: after how many deaths in a row, with no good cell between, the session is over; 0 or 1: the first.
        checkpoint: keep the namespace for the successor of a kernel that dies.
        runtime_dir: where the session's private directory is made; None: the user's runtime directory.
    """

    def __init__(
        self,
        tools: Mapping[str, Callable[..., Any]] | None = None,
        *,
        judge: Callable[[dict[str, Any]], object] | None = None,
        dispatcher: ToolDispatcher | None = None,
        python: str | os.PathLike[str] | None = None,
        limits: Limits | None = None,
        confinement: str | Confinement | frozenset[str] | set[str] = "auto",
        restarts: int = 3,
        checkpoint: bool = True,
        runtime_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        check_session_options(
            python=python, limits=limits, confinement=confinement, restarts=restarts, checkpoint=checkpoint,
            runtime_dir=runtime_dir,
        )  # fmt: skip
        self.tools: Mapping[str, Callable[..., Any]] = {} if tools is None else tools
        self.judge = judge
        self.limits = Limits() if limits is None else limits
        self.report: ConfinementReport | None = None
        self._asked = confinement
        self._python = _interpreter(python)
        self._restarts = restarts
        self._checkpoint = checkpoint
        self._runtime_dir = None if runtime_dir is None else Path(runtime_dir)
        self._dispatcher = ToolDispatcher() if dispatcher is None else dispatcher
        self._codec = Codec(limit_bytes=self.limits.frame_bytes, limit_depth=self.limits.frame_depth)
        self._running = threading.Lock()
        self._runner: int | None = None  # the thread that runs a cell
        self._interrupted = False  # an interrupt came for the cell that is being run
        self._changing = threading.RLock()  # guards start, restart and close against each other
        self._owner = os.getpid()
        self._numbers = itertools.count(1)
        self._deaths = 0
        self._setup: list[Cell] = []
        self._closed: str | None = None
        self._directory: SessionDirectory | None = None
        self._kernel: _Kernel | None = None
        self._variables = VariableLedger(self._codec)
        self._descriptions: dict[str, tuple[Any, dict[str, Any]]] = {}

    # -- life --------------------------------------------------------------------------------------------------------

    @property
    def connection_file(self) -> Path | None:
        """What `jupyter console --existing` takes, while a kernel is there."""
        return None if self._directory is None or self._kernel is None else self._directory.connection_file

    def start(self) -> None:
        """Start the kernel, if none runs yet. Blocks until it takes cells.

        Raises:
            SessionClosed, StartupFailed, ConfinementUnavailable.
        """
        with self._changing:
            if self._closed is not None:
                raise SessionClosed(self._closed)
            if self._kernel is not None:
                return
            confinement, tier, report = resolve(self._asked)
            self._directory = SessionDirectory(self._runtime_dir)
            try:
                self._confinement, self._tier = confinement, tier
                self._kernel = self._launch(restore=False)
            except BaseException:
                self._directory.remove()
                self._directory = None
                raise
            self.report = report

    def _launch(self, *, restore: bool) -> _Kernel:
        assert self._directory is not None
        return _Kernel(
            self._directory,
            python=self._python,
            limits=self.limits,
            confinement=self._confinement,
            tier=self._tier,
            dispatcher=self._dispatcher,
            checkpoint=self._checkpoint,
            restore=restore,
        )

    def close(self, reason: str = "the session was closed") -> None:
        """Kill the kernel and remove everything it had. Idempotent; from any thread."""
        if os.getpid() != self._owner:
            return  # a fork of the host: the kernel is its parent's
        if self._closed is None:
            self._closed = reason
        if self._runner == threading.get_ident():
            self._dispose()
            return
        kernel = self._kernel
        if kernel is not None:
            kernel.process.kill()
        # The sockets belong to the thread that runs a cell; it notices that the kernel is gone and lets go of them.
        mine = self._running.acquire(timeout=_RUNNER_SECONDS)
        try:
            self._dispose()
        finally:
            if mine:
                self._running.release()

    def _dispose(self) -> None:
        with self._changing:
            kernel, self._kernel = self._kernel, None
            directory, self._directory = self._directory, None
            try:
                if kernel is not None:
                    kernel.close()
            finally:
                if directory is not None:
                    directory.remove()

    def __enter__(self) -> KernelSession:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one. From any thread; does not wait."""
        if not self._running.locked():
            return
        self._interrupted = True  # for a cell that is still on its way
        kernel = self._kernel
        if kernel is not None:
            kernel.interrupt()

    # -- cells -------------------------------------------------------------------------------------------------------

    def run(self, cell: Cell | str) -> CellOutcome:
        """Run a cell and wait for its end.

        Returns:
            The outcome; also of a cell that failed, was interrupted at its time limit, or killed its kernel while
            another could be started.

        Raises:
            SessionBusy: a cell is running.
            SessionClosed: the session is over.
            NotSendable: a variable cannot cross; nothing ran.
            SessionLost: the kernel is gone, and this session starts no other.
        """
        cell = Cell(cell) if isinstance(cell, str) else cell
        if not self._running.acquire(blocking=False):
            raise SessionBusy("a cell is already running in this session")
        try:
            self._runner = threading.get_ident()
            self._interrupted = False
            self.start()
            outcome = self._run(cell)
            if outcome.death is None:
                self._deaths = 0
                if cell.setup and outcome.failure is None:
                    self._setup.append(cell)
            return outcome
        finally:
            self._runner = None
            self._running.release()

    def _run(self, cell: Cell, *, again: bool = False) -> CellOutcome:
        kernel = self._kernel
        assert kernel is not None
        if (failure := _unreadable(cell.code)) is not None:
            return CellOutcome("", failure=failure)
        self._dispatcher.bind(dict(self.tools), self.judge)
        frames, names = self._encode(cell)
        request = kernel.request(cell.code, next(self._numbers), names, again=again)
        try:
            try:
                outcome, taken = kernel.run(request, frames, lambda: self._interrupted and not again)
            except _Gone as gone:
                return self._succeed(gone)
            except ProtocolViolation as violation:
                self.close(violation.reason)
                raise
        except SessionLost:
            raise
        except BaseException:
            self._recover(kernel)
            raise
        if taken:
            self._variables.settle()
        return outcome

    def _recover(self, kernel: _Kernel) -> None:
        """The caller was interrupted: stop the cell, so that the session can go on, or end it."""
        try:
            if self._closed is None and kernel is self._kernel and kernel.stop(_GRACE_SECONDS):
                return
            self.close("the kernel did not stop when its caller was interrupted")
        except BaseException:
            self.close("its caller was interrupted twice")
            raise

    def _encode(self, cell: Cell) -> tuple[list[_Frame], list[_Variable]]:
        binding = self._codec.dump({"tools": self._described(), "output_fields": _plain_fields(cell.output_fields)})
        frames: list[_Frame] = [binding]
        self._variables.begin()
        names: list[_Variable] = []
        for name, value in cell.variables.items():
            try:
                changed = self._variables.changed(name, value)
            except Unsendable as error:
                raise NotSendable(error.path, error.type, error.reason) from None
            if changed is None:
                names.append((name, None, "value", False))
            else:
                form, data = changed
                names.append((name, len(frames), form, self._variables.inherited(name)))
                frames.append(data)
        return frames, names

    def _described(self) -> list[dict[str, Any]]:
        """The tools as the kernel's stubs show them, made anew only for tools that changed."""
        fresh: dict[str, tuple[Any, dict[str, Any]]] = {}
        for name, tool in self.tools.items():
            known = self._descriptions.get(name)
            same = known is not None and known[0] is tool
            fresh[name] = known if known is not None and same else (tool, describe_tool(name, tool, self._codec))
        self._descriptions = fresh
        return [description for _, description in fresh.values()]

    # -- death -------------------------------------------------------------------------------------------------------

    def _succeed(self, gone: _Gone) -> CellOutcome:
        """Start a successor for a dead kernel, or end the session. A submission that was accepted stands."""
        with self._changing:
            kernel = self._kernel
            if self._closed is not None or kernel is None:
                raise SessionClosed(self._closed or "the session was closed")
            ended = kernel.process.end()
            reason = gone.reason or ended.clause()
            text = kernel.printed()
            if kernel.process.was_keeping():
                reason += ", while it kept the variables after an earlier cell; this cell had not begun"
            kernel.close()
            self._kernel = None
            self._deaths += 1
            if self._deaths >= self._restarts:
                in_a_row = f", the {_ordinal(self._deaths)} time in a row" if self._deaths > 1 else ""
                over = KernelDied(f"the kernel died{in_a_row}: {reason}", ended.code, ended.stderr_tail)
                self.close(str(over))
                if gone.submitted is None:
                    raise over
                return CellOutcome(text, submitted=gone.submitted, death=Death(reason, (), {}, False))
            lost: dict[str, str] = {}
            try:
                successor = self._kernel = self._launch_successor(lost)
                self._variables.forget()
                for cell in self._setup:
                    self._run(cell, again=True)
            except BaseException:
                self.close("no successor could be started for a kernel that died")
                raise
            ready = successor.tools.ready
            assert ready is not None
            lost.update(ready.lost)
            death = Death(reason, tuple(ready.restored), lost, self._checkpoint)
            return CellOutcome(text, submitted=gone.submitted, death=death)

    def _launch_successor(self, lost: dict[str, str]) -> _Kernel:
        """Start a kernel that restores the checkpoint, or, when the checkpoint itself kills it, one that does not."""
        if self._checkpoint:
            try:
                return self._launch(restore=True)
            except SessionLost as ended:  # restoring runs the agent's own code
                lost["all names"] = f"restoring them failed: {ended.reason}"
        return self._launch(restore=False)


class _Gone(Exception):
    """A kernel died, or had to be killed, under a cell. `reason` None: look at how it exited."""

    def __init__(self, reason: str | None) -> None:
        self.reason = reason
        self.submitted: dict[str, Any] | None = None  # what the cell had submitted and the host accepted


class _Kernel:
    """One running kernel: its process, its sockets, its tool server."""

    def __init__(
        self,
        directory: SessionDirectory,
        *,
        python: str,
        limits: Limits,
        confinement: Confinement,
        tier: str,
        dispatcher: ToolDispatcher,
        checkpoint: bool,
        restore: bool,
    ) -> None:
        from jupyter_client.session import Session

        self._directory = directory
        self._limits = limits
        self.process = KernelProcess(
            directory,
            python=python,
            limits=limits,
            confinement=confinement,
            tier=tier,
            checkpoint=checkpoint,
            restore=restore,
        )
        self._ready_by = time.monotonic() + limits.start_seconds
        connection = self.process.connection
        self._messages = Session(key=connection.info["key"], username="host")
        self._wake_in, self._wake_out = wake_pair()
        self.tools = ToolServer(*connection.urls, dispatcher=dispatcher, limits=limits, wake=self._wake)
        self._shell = Peer(
            connection.url("shell"), "DEALER", message_bytes=_reply_bytes(limits), most_frames=_MOST_FRAMES
        )
        self._cut = False  # the kernel's end of the shell socket is gone
        self._cell = 0  # the number of the cell that the kernel has not answered yet
        self._open = True
        try:
            self._open_doors()
            self._connect()
            self._wait_ready()
        except BaseException:
            self.close()
            raise

    def _open_doors(self) -> None:
        """Wait until the kernel listens."""
        doors = self.process.connection.doors
        try:
            while doors is not None and not doors.open():
                if self.process.exited_within(_LOOK_SECONDS) or time.monotonic() > self._ready_by:
                    raise self._unready()
        except OSError as error:
            raise StartupFailed(str(error)) from error

    def _connect(self) -> None:
        """Connect, once and for all: what lies at the addresses later is nothing to the host."""
        try:
            while not (self._shell.connect() and self.tools.connect()):
                if self.process.exited_within(_LOOK_SECONDS) or time.monotonic() > self._ready_by:
                    raise self._unready()
        except PeerError as error:
            raise ProtocolViolation(str(error)) from error
        except PeerGone as error:
            self.process.exits_within(_PARTING_SECONDS)
            raise self._unready() from error
        self.tools.start()

    def _unready(self) -> StartupFailed:
        in_time = self.process.exited()
        ended = self.process.end()
        late = f"the kernel was not ready within {self._limits.start_seconds:g} s"
        return StartupFailed(_stillborn(ended) if in_time else late, ended.code, ended.stderr_tail)

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_out.send(b"w")

    def _wait_ready(self) -> None:
        while self.tools.ready is None:
            left = self._ready_by - time.monotonic()
            if left <= 0:
                raise self._unready()
            self._poll(left)
            if self.tools.violation is not None:
                raise ProtocolViolation(self.tools.violation)
            if self.tools.lost is not None:
                self.process.exits_within(_PARTING_SECONDS)
                raise self._unready()
            if self.tools.ready is None and self.process.exited():
                raise self._unready()
        self._open_doors()  # those that only a console needs

    def _poll(self, seconds: float) -> None:
        """Wait for the shell socket, the process's end or a wake-up, and send what waits to be sent."""
        watched = [self._wake_in.fileno()]
        if not self._cut:
            watched.append(self._shell.fd)
        if self.process.exit_fd is not None:
            watched.append(self.process.exit_fd)
        else:
            seconds = min(seconds, _SWEEP_SECONDS)
        unsent = self._shell.unsent and not self._cut
        ready = wait_for(watched, [self._shell.fd] if unsent else (), seconds)
        if watched[0] in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake_in.recv(4096)
        if unsent:
            self._flush()

    def _flush(self) -> None:
        try:
            self._shell.flush()
        except PeerGone:
            self._cut = True

    def _receive(self) -> list[Frame] | None:
        """The next message on the shell socket, if one is there."""
        try:
            return None if self._cut else self._shell.receive()
        except PeerGone:
            self._cut = True
            return None
        except PeerError as error:
            raise ProtocolViolation(f"the kernel broke the protocol: {error}") from error

    def request(self, code: str, number: int, names: list[_Variable], *, again: bool) -> dict[str, Any]:
        """The message that runs a cell."""
        return cast("Any", self._messages).msg(
            "execute_request",
            {
                "code": code,
                "silent": False,
                "store_history": False,
                "user_expressions": {},
                "allow_stdin": False,
                "stop_on_error": False,
            },
            metadata={"kernel_bridge": {"number": number, "variables": names, "again": again}},
        )

    def run(
        self, request: dict[str, Any], frames: list[_Frame], interrupted: Callable[[], bool]
    ) -> tuple[CellOutcome, bool]:
        """Run a cell. Returns its outcome, and whether the kernel took the variables that came with it.

        Args:
            interrupted: whether it has been interrupted already, before it was sent.
        """
        while self._receive() is not None:
            pass  # the late answer to a cell that was given up
        parts = [*self._messages.serialize(request), *frames]
        self.tools.open_cell()
        self._cell = request["metadata"]["kernel_bridge"]["number"]
        try:
            try:
                self._shell.send(parts)
            except PeerGone:
                self._cut = True
            if interrupted():
                self.interrupt()
            reply, timed_out = self._await_reply(request["header"]["msg_id"])
        except _Gone as gone:
            gone.submitted = self.tools.close_cell()
            raise
        finally:
            submitted = self.tools.close_cell()
        if self.tools.fatal is not None:
            raise self.tools.fatal  # the cell had answered before we looked
        bridge = reply.kernel_bridge
        return _outcome(bridge, submitted, timed_out, self._limits.output_bytes), bridge.taken

    def interrupt(self) -> None:
        """Interrupt the running cell, if there is one."""
        if number := self._cell:
            self.process.interrupt(number)

    def _await_reply(self, id: str) -> tuple[_Reply, bool]:
        clock = _CellClock(self.tools, self._limits.cell_seconds)
        interrupted_at: float | None = None
        while True:
            left = clock.left() if interrupted_at is None else interrupted_at + _GRACE_SECONDS - time.monotonic()
            if left <= 0:
                if interrupted_at is not None:
                    self.process.end()
                    raise _Gone(
                        f"it was killed, because the cell ran longer than {self._limits.cell_seconds:g} s of its own "
                        "time and did not react to an interrupt"
                    )
                interrupted_at = time.monotonic()
                self.interrupt()
                continue
            self._poll(left)
            if self.tools.fatal is not None:  # before the answer of the cell, which it may have ended
                raise self.tools.fatal
            if (reply := self._find_reply(id)) is not None:
                return reply, interrupted_at is not None
            if self.tools.violation is not None:
                raise ProtocolViolation(f"the kernel broke the protocol: {self.tools.violation}")
            if self._cut or self.tools.lost is not None:
                self._part()
            if self.process.exited():
                if (reply := self._find_reply(id)) is not None:
                    return reply, interrupted_at is not None
                raise _Gone(None)

    def _part(self) -> None:
        """The kernel cannot be talked to any more. If it does not end by itself, end it."""
        if self.process.exits_within(_PARTING_SECONDS):
            return
        self.process.end()
        raise _Gone(self.tools.lost or CLOSED)

    def _find_reply(self, id: str) -> _Reply | None:
        """The reply to our request, if it has come; older ones are dropped.

        Its signature is not looked at: the agent's code has the key.
        """
        while (frames := self._receive()) is not None:
            try:
                at = frames.index(_DELIMITER)
                header, parent = _headers.decode(frames[at + 2]), _headers.decode(frames[at + 3])
                if parent.msg_id == id and header.msg_type == "execute_reply":
                    self._cell = 0
                    return _replies.decode(frames[at + 5])
            except (msgspec.MsgspecError, ValueError, IndexError, RecursionError) as error:
                kind = type(error).__name__
                raise ProtocolViolation(f"the kernel sent a reply that is none: {kind}: {error}") from error
        return None

    def stop(self, seconds: float) -> bool:
        """Interrupt the running cell and wait until it has answered. False: it has not, or the kernel is gone."""
        self.interrupt()
        deadline = time.monotonic() + seconds
        while self._cell and (left := deadline - time.monotonic()) > 0:
            self._poll(left)
            if self._receive() is not None:
                return True
            if self._cut or self.process.exited():
                return False
        return not self._cell

    def printed(self) -> str:
        """What the cell under which the kernel died had printed, from the file the kernel kept it in."""
        limit = self._limits.output_bytes
        data = self.process.take_transcript(limit)
        text = data.decode("utf-8", "replace")
        if len(data) < limit // 2:
            return text
        return f"{text}\n... [what it printed after this was lost with it] ..."

    def close(self) -> None:
        """Kill the process and close all sockets; idempotent."""
        self.process.end()
        self.process.forget()
        self._close_sockets()

    def _close_sockets(self) -> None:
        if not self._open:
            return
        self._open = False
        self.tools.close()
        self._shell.close()
        self._wake_in.close()
        self._wake_out.close()


def _reply_bytes(limits: Limits) -> int:
    """The largest reply that an honest kernel sends: its texts, where JSON makes at most six bytes of a character."""
    return 6 * (3 * limits.output_bytes + result_chars(limits)) + 2**20


def _stillborn(ended: ExitReason) -> str:
    reason = f"the kernel did not start: {ended.clause()}"
    if "No module named" in ended.stderr_tail:
        reason += "; its Python needs the packages ipykernel (7 or newer) and msgspec"
    return reason


class _CellClock:
    """A cell's own time: what passes while no host tool and no console's cell is running."""

    def __init__(self, tools: ToolServer, seconds: float) -> None:
        self._tools = tools
        self._seconds = seconds
        self._started = time.monotonic()
        self._before = tools.excused_seconds()

    def left(self) -> float:
        own = (time.monotonic() - self._started) - (self._tools.excused_seconds() - self._before)
        return self._seconds - own


def _outcome(bridge: _Bridge, submitted: dict[str, Any] | None, timed_out: bool, limit: int) -> CellOutcome:
    failure = None
    if bridge.failure is not None and submitted is None:
        said = bridge.failure
        failure = RemoteFailure(
            sendable(said.name)[:200],
            sendable(said.message)[:limit],
            _middle_out(sendable(said.traceback), max(limit // 4, 1000)),
            said.compiling,
        )
    text, omitted = _join(bridge, limit)
    result = None if bridge.result is None else sendable(bridge.result)
    return CellOutcome(sendable(text), omitted, result, submitted, failure, timed_out)


def _join(bridge: _Bridge, limit: int) -> tuple[str, int]:
    """Head and tail as one text that says what is missing between them, within the limit whatever the kernel sent."""
    head, tail = bridge.head[:limit], bridge.tail[-limit:]
    omitted = max(0, bridge.omitted) + len(bridge.head) - len(head) + len(bridge.tail) - len(tail)
    if not omitted:
        return _plain_text(head + tail), 0
    return _plain_text(f"{head}\n... [{omitted:,} characters left out] ...\n{tail}"), omitted


def _middle_out(text: str, most: int) -> str:
    """The text, or its head and tail when it is longer than it may be."""
    text = _plain_text(text)
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n... [{len(text) - 2 * half:,} characters left out] ...\n{text[-half:]}"


def _plain_text(text: str) -> str:
    """Without ANSI escape sequences: no model reads them, and no person's terminal should obey the agent."""
    return _ANSI.sub("", text) if "\x1b" in text else text


_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|[ -/]*[0-~])?")


def _interpreter(python: str | os.PathLike[str] | None) -> str:
    """The interpreter's path, absolute when it is a path at all: the kernel's working directory is another one."""
    if python is None:
        return sys.executable
    name = os.path.expanduser(str(python))
    return os.path.abspath(name) if os.path.dirname(name) else name


def _unreadable(code: str) -> RemoteFailure | None:
    """Why code cannot even be sent: Python source is text, and a lone surrogate is not."""
    try:
        code.encode()
    except UnicodeEncodeError as error:
        line = code.count("\n", 0, error.start) + 1
        text = f"line {line} holds {code[error.start]!r}, a lone surrogate, which is no character of Python source"
        return RemoteFailure("SyntaxError", text, f"SyntaxError: {text}", compiling=True)
    return None


def _plain_fields(fields: Any) -> list[dict[str, Any]] | None:
    return None if fields is None else [dict(field) for field in fields]


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
