"""The tool server: the host's end of the tool channel. Knows sockets and threads; what a tool is, the dispatcher does.

A few threads take turns at reading. The one that reads a call runs it and sends the answer itself, while the next
takes over the reading, so that a call costs one wake-up and slow tools never hold up others. At most
`Limits.calls_in_flight` run at once; more stay in the kernel's socket, which slows a flood down at its source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from kernel_bridge.cells import Limits
from kernel_bridge.errors import SubAgentError
from kernel_bridge.live.calls_in_flight import CallSize, InFlight
from kernel_bridge.live.cell_clock import CellClock
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.zmtp import NO_SIGNAL, Frame, Peer, PeerError, PeerGone, wait_for, wake_pair
from kernel_bridge.threads.starting import begin
from kernel_bridge.wire import (
    Call,
    Codec,
    Foreign,
    HostMessage,
    Raise,
    Ready,
    Return,
    Submit,
    Unsendable,
    WireError,
    read_kernel_head,
    write_head,
)

__all__ = ["CLOSED", "ToolServer"]

_SEND_SECONDS = 30.0  # a kernel that does not take its answers for so long is given up
_JOIN_SECONDS = 2.0  # for tools that still run; what they do later goes nowhere
_HEAD_BYTES = 2**20  # a small limit for values is none for the messages around them
_LONGEST_TEXT = 100_000  # characters of a tool's error
_LONGEST_NAME = 200  # characters of its class


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that was read and is not yet run."""

    head: Call | Submit
    body: Frame  # not yet decoded
    size: CallSize


class ToolServer:
    """Serves the tool channel of one kernel, from `start` to `close`.

    Args:
        wake: called, from any of its threads, when `ready`, `violation`, `lost` or `fatal` changes.
    """

    def __init__(
        self,
        calls_url: str,
        replies_url: str,
        *,
        dispatcher: ToolDispatcher,
        limits: Limits,
        wake: Callable[[], None],
    ) -> None:
        self._dispatcher = dispatcher
        self._wake = wake
        self._limits = limits
        self._codec = Codec(limit_bytes=limits.frame_bytes, limit_depth=limits.frame_depth)
        self._most = limits.calls_in_flight
        self._sizes = InFlight(limits.frame_bytes, self._codec.limit_parts)
        longest = max(limits.frame_bytes, _HEAD_BYTES)
        self._calls = Peer(calls_url, "PAIR", message_bytes=longest + _HEAD_BYTES, most_frames=2)
        self._replies = Peer(replies_url, "PAIR", message_bytes=0, most_frames=0)
        self._turn = threading.Lock()
        self._replying = threading.Lock()
        self._state = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._accepting = False
        self._cells = 0
        self._closed = False
        self._wake_in, self._wake_out = wake_pair()
        self.clock = CellClock(limits)
        self.ready: Ready | None = None
        self.submitted: dict[str, Any] | None = None
        self.violation: str | None = None
        self.lost: str | None = None  # why this kernel cannot be talked to any more, as a clause
        self.fatal: BaseException | None = None

    # -- called by the session ---------------------------------------------------------------------------------------

    def connect(self) -> bool:
        """Go on with connecting to a kernel that may not listen yet. True: it is done. Raises: PeerGone, PeerError."""
        return self._calls.connect() and self._replies.connect()

    def start(self) -> None:
        """Begin to serve, once connected."""
        with self._state:
            self._add_thread()

    def open_cell(self) -> None:
        """A cell starts: its submission, if it makes one, is awaited."""
        with self._state:
            self.submitted = None
            self.fatal = None
            self._accepting = True
            self._cells += 1
        self.clock.open_cell()

    def close_cell(self) -> dict[str, Any] | None:
        """The cell is over. Returns what it submitted, if that was accepted."""
        with self._state:
            self._accepting = False
            return self.submitted

    def close(self) -> None:
        """Stop serving. Tools that still run are waited for, but not for long; their answers are dropped."""
        with self._state:
            if self._closed:
                return
            self._closed = True
        self._sizes.close()
        self._wake_out.send(b"x", NO_SIGNAL)  # never taken out again: every wait from now on ends at once
        deadline = time.monotonic() + _JOIN_SECONDS
        mine = threading.current_thread()
        with self._turn:  # nobody reads any more
            self._calls.close()
        with self._replying:
            self._replies.close()
        for thread in list(self._threads):
            if thread is not mine:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._wake_in.close()
        self._wake_out.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: be closed. A tool that forked has nobody here to answer to.

        All locks are new: of those that there were, some may be held by threads that are not here.
        """
        self._closed = True
        self._turn, self._replying, self._state = threading.Lock(), threading.Lock(), threading.Lock()
        self._sizes = InFlight(self._limits.frame_bytes, self._codec.limit_parts)
        self.clock = CellClock(self._limits)
        for end in (self._calls, self._replies, self._wake_in, self._wake_out):
            end.close()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        """Add a reader; under `_state`, so that it is counted before it counts itself as busy."""
        thread = threading.Thread(target=self._serve, name=f"kernel tools {len(self._threads) + 1}", daemon=True)
        begin(thread)
        self._threads.append(thread)
        self._idle += 1

    def _serve(self) -> None:
        while True:
            with self._turn:
                call = self._receive()
                if call is None or not self._admit(call):
                    return
            try:
                self._handle(call)
            except WireError as error:
                self._break(str(error))
                return
            except MemoryError:
                self._lose("what it called a tool with took more memory than there is")
                return
            except Exception as error:  # noqa: BLE001 - ours: without this thread the kernel would wait for ever
                self.fatal = error
                self._wake()
                return
            finally:
                self._sizes.end(call.size)
                with self._state:
                    self._idle += 1
                del call

    def _admit(self, call: _Waiting) -> bool:
        """Wait, with the turn, until so much more may be in flight; see to the next reader. False: closing."""
        if not self._sizes.begin(call.size):
            return False
        with self._state:
            self._idle -= 1
            if not self._idle and len(self._threads) < self._most and not self._closed:
                with suppress(OSError):  # no thread is to be had: this one reads on when it has run its call
                    self._add_thread()
            return not self._closed

    def _lose(self, why: str) -> None:
        if not self._closed:
            self.lost = why
            self._sizes.close()
            self._wake()

    def _break(self, why: str) -> None:
        self.violation = why
        self._sizes.close()
        self._wake()

    def _receive(self) -> _Waiting | None:
        """The next call, or None when there will be none. Other messages are dealt with here, in their order."""
        try:
            while not self._closed and self.violation is None and self.lost is None:
                frames = self._calls.receive()
                if frames is None:
                    wait_for((self._calls.fd, self._wake_in.fileno()), (), None)
                elif (call := self._sort(frames)) is not None:
                    return call
        except (PeerError, WireError) as error:
            self._break(str(error))
        except PeerGone:
            self._lose(CLOSED)
        return None

    def _sort(self, frames: list[Frame]) -> _Waiting | None:
        if len(frames) != 2:
            raise WireError(f"{len(frames)} frames; a message has two")
        head = read_kernel_head(frames[0], ready=self.ready is None)
        if isinstance(head, Ready):
            if self.ready is not None:
                raise WireError("Ready comes once")
            self.ready = head
            self._wake()
        elif isinstance(head, Foreign):
            self.clock.note_console(head.running)
        else:
            name = head.name if isinstance(head, Call) else "SUBMIT"
            parts = self._codec.weigh(frames[1], self._sizes.room)
            return _Waiting(head, frames[1], CallSize(name, len(frames[0]) + len(frames[1]), parts))
        return None

    def _handle(self, call: _Waiting) -> None:
        """Run a call and send its answer, or why that is not sent."""
        head = call.head
        if isinstance(head, Call) and (why := self._dispatcher.too_long(head.name, len(call.body))) is not None:
            answer, data = Raise(head.id, SubAgentError.__name__, why), b""
        else:
            answer, data = self._dispatch(head, self._codec.load(call.body, verify=True, weighed=True))
        if not self._sizes.answer(call.size, len(data)):
            waiting = f"answers of {self._sizes.answer_bytes} bytes wait to be taken already"
            said = f"the answer of {len(data)} bytes was dropped, because {waiting}; call fewer tools at once"
            answer, data = Raise(head.id, "RuntimeError", said), b""
        self._send(answer, data)

    def _dispatch(self, head: Call | Submit, body: Any) -> tuple[HostMessage, bytes]:
        if isinstance(head, Call):
            args, kwargs = _arguments(body)
            return self._run(head, lambda: self._dispatcher.call(head.name, args, kwargs), f"{head.name}()")
        if not isinstance(body, dict):
            raise WireError("a submission is a dict")
        return self._run(head, lambda: self._accept(cast("dict[str, Any]", body)), "SUBMIT")

    def _run(self, head: Call | Submit, ask: Callable[[], Any], path: str) -> tuple[HostMessage, bytes]:
        """The answer: its head and its body."""
        excused = not (isinstance(head, Call) and self._dispatcher.takes_own_time(head.name))
        if excused:
            self.clock.begin_call()
        try:
            return Return(head.id), self._codec.dump(ask(), path)
        except Unsendable as error:
            return Raise(head.id, "NotSendable", f"the host's answer does not fit the border: {error}"), b""
        except Exception as error:  # noqa: BLE001 - foreign code: whatever a tool raises is the agent's to read
            return Raise(head.id, _name_of(error), _text_of(error)), b""
        except BaseException as error:  # noqa: BLE001 - an interrupt or an exit belongs to the caller of the cell
            self.fatal = error
            self._wake()
            return Raise(head.id, _name_of(error), "it ends this cell"), b""  # its text is for that caller alone
        finally:
            if excused:
                self.clock.end_call()

    def _accept(self, fields: dict[str, Any]) -> None:
        with self._state:
            if not self._accepting:
                raise RuntimeError("no cell is running that could submit")
            if self.submitted is not None:
                raise RuntimeError("this cell has submitted already")
            cell = self._cells
        self._dispatcher.submit(fields)
        with self._state:
            if not self._accepting or self._cells != cell or self.submitted is not None:
                raise RuntimeError("the cell that submitted has ended, or has submitted something else")
            self.submitted = fields

    def _send(self, head: HostMessage, body: bytes) -> None:
        with self._replying:
            if self._closed or self.lost is not None:
                return
            try:
                self._replies.send([write_head(head), body])
                deadline = time.monotonic() + _SEND_SECONDS
                while not self._replies.flush():
                    left = deadline - time.monotonic()
                    if self._closed:
                        return
                    if left <= 0:
                        self._lose(f"it took no answer to its calls for {_SEND_SECONDS:g} s")
                        return
                    wait_for((self._wake_in.fileno(),), (self._replies.fd,), left)
            except PeerGone:
                self._lose(CLOSED)


CLOSED = "it closed its connection to its host"
"""Why a kernel is lost whose end of a socket is gone."""


def _arguments(body: Any) -> tuple[list[Any], dict[str, Any]]:
    parts = cast("list[Any]", body) if isinstance(body, list) else []
    if len(parts) != 2 or not isinstance(parts[0], list) or not isinstance(parts[1], dict):
        raise WireError("a call's body is [positional arguments, keyword arguments]")
    return cast("list[Any]", parts[0]), cast("dict[str, Any]", parts[1])


def _name_of(error: BaseException) -> str:
    return type(error).__name__[:_LONGEST_NAME]


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the tool's own __str__
        return "<its text cannot be made>"
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}... [{len(text) - _LONGEST_TEXT:,} characters left out]"
