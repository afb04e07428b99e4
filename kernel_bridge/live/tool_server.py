"""The tool server: the host's end of the tool channel of one kernel.

The threads that read calls and run them are shared by all kernels of the process; see `ReaderPool`. What is read
belongs to the kernel whose socket it came from, and so does what goes wrong with it. At most `Limits.calls_in_flight`
calls of one kernel run at once; more stay in the kernel's socket, which slows a flood down at its source.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kernel_bridge.live.answer_sender import AnswerSender
from kernel_bridge.live.call_runner import CallRunner, ReceivedCall
from kernel_bridge.live.calls_in_flight import CallsInFlight, CallSize
from kernel_bridge.live.cell_clock import CellClock
from kernel_bridge.live.channel_state import CLOSED, ChannelState
from kernel_bridge.live.submission import Submission
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.zmtp import ZmtpSocket
from kernel_bridge.options import Limits
from kernel_bridge.process.loopback import Endpoint
from kernel_bridge.threads.reader_pool import ReaderPool, ReaderPools
from kernel_bridge.wire import Call, Codec, Foreign, Raise, Ready, WireError, read_kernel_head
from kernel_bridge.zmtp.reader import Frame, ZmtpError
from kernel_bridge.zmtp.stream import ZmtpClosed

__all__ = ["ToolServer"]

_JOIN_SECONDS = 2.0  # for tools that still run; what they do later goes nowhere
_HEAD_BYTES = 2**20  # room for the head of a message, however small the limit of its value is
_SMALL_BYTES = 2**16  # of a call whose value is counted at once, with all kernels waiting


@dataclass(frozen=True, slots=True)
class _Served:
    """A call that was read, and whose answer is to be sent."""

    server: ToolServer
    call: ReceivedCall

    @property
    def is_brief(self) -> bool:
        return self.call.is_brief

    def run(self) -> None:
        self.server.serve(self.call)


class ToolServer:
    """Serves the tool channel of one kernel, from `start` to `close`.

    Args:
        endpoints: of the sockets for calls and for answers.
        wake: called, from any of its threads, when `state` changes.
    """

    def __init__(
        self, endpoints: tuple[Endpoint, Endpoint], dispatcher: ToolDispatcher, limits: Limits, wake: Callable[[], None]
    ) -> None:
        self.clock = CellClock(limits)
        self._submission = Submission(lambda fields: self._runner.dispatcher.submit(fields))
        self._codec = Codec(limit_bytes=limits.frame_bytes, limit_depth=limits.frame_depth)
        self._in_flight = CallsInFlight(limits.frame_bytes, self._codec.limit_parts)
        self.state = ChannelState(wake, self._in_flight.close)
        self._runner = CallRunner(dispatcher, self._codec, self.clock, self._submission, self.state)
        longest = max(limits.frame_bytes, _HEAD_BYTES)
        self._calls = ZmtpSocket(endpoints[0], "PAIR", message_bytes=longest + _HEAD_BYTES, most_frames=2)
        self._answers = AnswerSender(endpoints[1], self.state)
        self._most_calls = limits.calls_in_flight
        self._pool: ReaderPool | None = None  # None: not begun, or closed
        self._turn = threading.Lock()  # guards the socket for calls
        self._lock = threading.Lock()  # guards the next three
        self._settled = threading.Condition(self._lock)  # notified when a call has ended, once it is closed
        self._running: list[int] = []  # the threads of the calls that were read; 0: not yet on its thread
        self._waits = False  # a call was read for which there was no room
        self._paused = False  # nothing is read
        self._closed = False

    # -- called by the thread that runs cells ------------------------------------------------------------------------

    @property
    def channels(self) -> tuple[ZmtpSocket, AnswerSender]:
        """What must be connected first: the sockets for calls and for answers."""
        return self._calls, self._answers

    @property
    def fd(self) -> int:
        """The descriptor of the socket for calls."""
        return self._calls.fd

    def start(self) -> None:
        """Begin to serve, once connected. Raises: OSError when the system has no thread or descriptor left."""
        self._pool = _pools.add(self)

    def hand_over(self, dispatcher: ToolDispatcher) -> None:
        """From now on calls go to this dispatcher."""
        self._runner.dispatcher = dispatcher

    def open_cell(self) -> None:
        """A cell starts: its submission, if it makes one, is awaited."""
        self.state.fatal = None
        self._submission.open_cell()
        self.clock.open_cell()

    def close_cell(self) -> dict[str, Any] | None:
        """The cell is over. Returns what it submitted, if that was accepted."""
        return self._submission.close_cell()

    def close(self) -> None:
        """Stop serving. Tools that still run are waited for, but not for long; what they answer is dropped."""
        if self._closed:
            return
        self._closed = True
        self._in_flight.close()
        if self._pool is not None:
            self._pool.remove(self)
        with self._turn:  # nobody reads any more
            self._calls.close()
        self._answers.close()
        me = threading.get_ident()  # perhaps that of a tool
        with self._lock:
            self._settled.wait_for(lambda: all(thread == me for thread in self._running), _JOIN_SECONDS)

    def leave_to_parent(self) -> None:
        """In the child of a fork: be closed. The kernel of a tool that forked is the parent's.

        All locks are new: of those that there were, some may be held by threads that are not here.
        """
        self._closed = True
        self._pool = None
        self._turn, self._lock = threading.Lock(), threading.Lock()
        self._settled = threading.Condition(self._lock)
        for part in (self._in_flight, self.clock, self._submission, self._answers):
            part.leave_to_parent()
        self._calls.close()

    # -- called by the threads of the pool --------------------------------------------------------------------------

    def read(self) -> tuple[_Served | None, bool]:
        """Read one message, if it is all there; see `Source`. What is no call is dealt with here, in its order."""
        with self._turn:
            call = frames = None
            try:
                if not self._closed and not self.state.is_over and (frames := self._calls.receive()) is not None:
                    call = self._take(frames)
            except ZmtpClosed:
                self.state.lose(CLOSED)
            except (ZmtpError, WireError) as error:
                self.state.violate(str(error))
            except MemoryError:
                self.state.lose(_TOO_LARGE)
            except Exception as error:  # noqa: BLE001 - ours; the kernel would wait for ever
                self.state.fail(error)
                self.state.lose("its host could not read what it sent")
            over = self._closed or self.state.is_over
            # Of bytes that are no whole message, the descriptor tells when more of them come.
            more = frames is not None and not over and self._calls.has_unread
        if over and self._pool is not None:
            self._pool.remove(self)
        if call is None:
            return None, more
        with self._lock:
            self._running.append(0)
            self._waits = not call.has_begun
            if self._waits or len(self._running) >= self._most_calls:
                self._paused = True
                if self._pool is not None:
                    self._pool.pause(self)
        return _Served(self, call), more

    def serve(self, call: ReceivedCall) -> None:
        """Run a call, once there is room for it, and send its answer."""
        begun = call.has_begun
        with self._lock:
            self._running[self._running.index(0)] = threading.get_ident()
        try:
            if not begun:
                begun = self._begin(call)
            if begun:
                self._handle(call)
        except WireError as error:
            self.state.violate(str(error))
        except MemoryError:
            self.state.lose(_TOO_LARGE)
        except Exception as error:  # noqa: BLE001 - ours: without an answer the kernel would wait for ever
            self.state.fail(error)
        finally:
            if begun:
                self._in_flight.end(call.size)
            self._settle()

    def _settle(self) -> None:
        """A call has ended."""
        with self._lock:
            self._running.remove(threading.get_ident())
            if self._closed:
                self._settled.notify_all()
            self._read_on()

    def _read_on(self) -> None:
        """Go on with reading, if it was paused and need not be any more. With the lock."""
        if self._paused and not self._waits and len(self._running) < self._most_calls:
            self._paused = False
            if self._pool is not None:
                self._pool.resume(self)

    def _begin(self, call: ReceivedCall) -> bool:
        """Wait until there is room for a call. False: closing. Raises: WireError."""
        try:
            call.size.parts = self._codec.weigh(call.body, self._in_flight.room)
            return self._in_flight.begin(call.size)
        finally:
            with self._lock:
                self._waits = False
                self._read_on()

    def _handle(self, call: ReceivedCall) -> None:
        """Run a call and send its answer, or why that is not sent."""
        started = time.monotonic()
        head, data = self._runner.run(call)
        self._runner.dispatcher.note_seconds(call.size.name, time.monotonic() - started)
        if not self._in_flight.answer(call.size, len(data)):
            waiting = f"answers of {self._in_flight.answer_bytes} bytes wait to be taken already"
            said = f"the answer of {len(data)} bytes was dropped, because {waiting}; call fewer tools at once"
            head, data = Raise(head.id, "RuntimeError", said), b""
        self._answers.send(head, data)

    def _take(self, frames: list[Frame]) -> ReceivedCall | None:
        """What came: a call, or a message that is dealt with here. Raises: WireError."""
        if len(frames) != 2:
            raise WireError(f"{len(frames)} frames; a message has two")
        head = read_kernel_head(frames[0])
        if isinstance(head, Ready):
            if self.state.ready is not None:
                raise WireError("Ready comes once")
            self.state.note_ready(head)
            return None
        if isinstance(head, Foreign):
            self.clock.note_console(head.running)
            return None
        is_call = isinstance(head, Call)
        size = CallSize(head.name if is_call else "SUBMIT", len(frames[0]) + len(frames[1]), 0)
        if size.bytes > _SMALL_BYTES:  # whoever runs it looks at it
            return ReceivedCall(head, frames[1], size, is_brief=False, has_begun=False)
        size.parts = self._codec.weigh(frames[1], self._in_flight.room)
        begun = self._in_flight.begins(size)
        brief = begun and is_call and self._runner.dispatcher.is_brief(size.name)
        return ReceivedCall(head, frames[1], size, is_brief=brief, has_begun=begun)


_TOO_LARGE = "what it called a tool with took more memory than there is"


_pools = ReaderPools("kernel tools")  # of the whole process: a thread for each kernel is what it saves
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pools.leave_to_parent)
