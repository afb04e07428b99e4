"""The tool server: the host's end of the tool channel. Knows sockets and threads; what a tool is, the dispatcher does.

A few threads take turns at reading. The one that reads a call runs it and sends the answer itself, while the next
takes over the reading, so that a call costs one wake-up and slow tools never hold up others. At most
`Limits.calls_in_flight` run at once; more stay in the kernel's socket, which slows a flood down at its source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from kernel_bridge.cells import Limits
from kernel_bridge.dispatch import ToolDispatcher
from kernel_bridge.peer import Frame, Peer, PeerError, PeerGone, wait_for, wake_pair
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
_CONSOLE_SECONDS = 600.0
_HEAD_BYTES = 2**20  # a small limit for values is none for the messages around them
_LONGEST_TEXT = 100_000  # characters of a tool's error


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A call that was read and is not yet run."""

    head: Call | Submit
    body: Frame  # not yet decoded
    size: int  # bytes of both
    parts: int  # that the body has, at most


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
        self._codec = Codec(limit_bytes=limits.frame_bytes, limit_depth=limits.frame_depth)
        self._most = limits.calls_in_flight
        self._most_bytes = limits.frame_bytes
        longest = max(limits.frame_bytes, _HEAD_BYTES)
        self._calls = Peer(calls_url, "PAIR", message_bytes=longest + _HEAD_BYTES, most_frames=2)
        self._replies = Peer(replies_url, "PAIR", message_bytes=0, most_frames=0)
        self._turn = threading.Lock()
        self._replying = threading.Lock()
        self._state = threading.Lock()
        self._room = threading.Condition(self._state)  # notified when a message has been handled
        self._bytes = self._parts = 0  # of the messages being handled
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._in_flight = 0
        self._busy_since = self._busy_cpu = 0.0  # when the first call now in flight came, on both clocks
        self._busy_seconds = 0.0
        self._cpu: Callable[[], float] = lambda: 0.0
        self._foreign_cpu = 0.0
        self._foreign_since: float | None = None
        self._foreign_credit = _CONSOLE_SECONDS
        self._accepting = False
        self._cells = 0
        self._closed = False
        self._wake_in, self._wake_out = wake_pair()
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
        self._add_thread()

    def measure(self, cpu_seconds: Callable[[], float]) -> None:
        """From now on, do not excuse the CPU time that the kernel uses while its calls are running."""
        self._cpu = cpu_seconds

    def open_cell(self) -> None:
        """A cell starts: its submission, if it makes one, is awaited."""
        with self._state:
            self.submitted = None
            self.fatal = None
            self._accepting = True
            self._cells += 1
            self._foreign_credit = _CONSOLE_SECONDS

    def close_cell(self) -> dict[str, Any] | None:
        """The cell is over. Returns what it submitted, if that was accepted."""
        with self._state:
            self._accepting = False
            return self.submitted

    def excused_seconds(self) -> float:
        """Seconds so far during which a host tool was running, or a person's cell on a console.

        Without the CPU time that the kernel used while tools were running: code that computes beside its calls does
        not wait for them. A kernel's word that a console is at work is believed for ten minutes in each cell.
        """
        since = self._foreign_since
        if since is not None and time.monotonic() - since > self._foreign_credit:
            self._note_foreign(False)
        with self._state:
            return self._busy_seconds + (self._excused_now() if self._in_flight else 0.0)

    def _excused_now(self) -> float:
        """What of the time since the first call now in flight is not the cell's own."""
        cpu = self._cpu() if self._foreign_since is None else self._foreign_cpu
        return max(0.0, time.monotonic() - self._busy_since - max(0.0, cpu - self._busy_cpu))

    def close(self) -> None:
        """Stop serving. Tools that still run are waited for, but not for long; their answers are dropped."""
        with self._state:
            if self._closed:
                return
            self._closed = True
            self._room.notify_all()
        self._wake_out.send(b"x")  # never taken out again: every wait from now on ends at once
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

    # -- threads -----------------------------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"kernel tools {len(self._threads) + 1}", daemon=True)
        self._threads.append(thread)
        self._idle += 1
        thread.start()

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
                self._release(call)
                del call

    def _admit(self, call: _Waiting) -> bool:
        """Wait, with the turn, until so much more may be held; see to the next reader. False: closing."""
        with self._state:
            while self._bytes and not self._closed and not self._fits(call):
                self._room.wait()
            self._bytes += call.size
            self._parts += call.parts
            self._idle -= 1
            if not self._idle and len(self._threads) < self._most and not self._closed:
                self._add_thread()
            return not self._closed

    def _fits(self, call: _Waiting) -> bool:
        return self._bytes + call.size <= self._most_bytes and self._parts + call.parts <= self._codec.limit_parts

    def _release(self, call: _Waiting) -> None:
        with self._state:
            self._bytes -= call.size
            self._parts -= call.parts
            self._idle += 1
            self._room.notify_all()

    def _lose(self, why: str) -> None:
        if not self._closed:
            self.lost = why
            self._wake()

    def _break(self, why: str) -> None:
        self.violation = why
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
        head = read_kernel_head(frames[0])
        if isinstance(head, Ready):
            if self.ready is not None:
                raise WireError("Ready comes once")
            self.ready = head
            self._wake()
        elif isinstance(head, Foreign):
            self._note_foreign(head.running)
        else:
            parts = self._codec.weigh(frames[1], self._codec.limit_parts - self._parts)
            return _Waiting(head, frames[1], len(frames[0]) + len(frames[1]), parts)
        return None

    def _handle(self, call: _Waiting) -> None:
        head = call.head
        body = self._codec.load(call.body, verify=True, weighed=True)
        if isinstance(head, Call):
            args, kwargs = _arguments(body)
            self._answer(head, lambda: self._dispatcher.call(head.name, args, kwargs), f"{head.name}()")
        elif isinstance(body, dict):
            self._answer(head, lambda: self._accept(cast("dict[str, Any]", body)), "SUBMIT")
        else:
            raise WireError("a submission is a dict")

    def _answer(self, head: Call | Submit, ask: Callable[[], Any], path: str) -> None:
        self._count(1)
        data = b""
        answer: HostMessage = Return(head.id)
        try:
            data = self._codec.dump(ask(), path)
        except Unsendable as error:
            answer = Raise(head.id, "NotSendable", f"the host's answer does not fit the border: {error}")
        except Exception as error:  # noqa: BLE001 - foreign code: whatever a tool raises is the agent's to read
            answer = Raise(head.id, type(error).__name__, _text_of(error))
        except BaseException as error:  # noqa: BLE001 - an interrupt or an exit belongs to the caller of the cell
            self.fatal = error
            self._wake()
            answer = Raise(head.id, type(error).__name__, _text_of(error))
        finally:
            self._count(-1)
        self._send(answer, data)

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

    def _note_foreign(self, running: bool) -> None:
        since = self._foreign_since
        if running == (since is not None) or (running and self._foreign_credit <= 0):
            return
        cpu = self._cpu()
        if since is not None:
            self._foreign_credit -= time.monotonic() - since
            self._busy_cpu += cpu - self._foreign_cpu  # that was the person's
        self._foreign_cpu = cpu
        if running:
            self._count(1)
            self._foreign_since = time.monotonic()
        else:
            self._foreign_since = None
            self._count(-1)

    def _count(self, by: int) -> None:
        with self._state:
            if by > 0 and not self._in_flight:
                self._busy_since = time.monotonic()
                self._busy_cpu = self._cpu()
            self._in_flight += by
            if by < 0 and not self._in_flight:
                self._busy_seconds += self._excused_now()

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


def _text_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - the tool's own __str__
        return "<its text cannot be made>"
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT]}... [{len(text) - _LONGEST_TEXT:,} characters left out]"
