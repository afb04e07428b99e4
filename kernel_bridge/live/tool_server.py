"""The tool server: the socket loop of the host's end of the tool channel.

A few threads take turns at reading. The one that reads a call runs it and sends the answer itself, while the next
takes over the reading, so that a call costs one wake-up and slow tools never hold up others. At most
`Limits.calls_in_flight` run at once; more stay in the kernel's socket, which slows a flood down at its source.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from kernel_bridge.live.answer_sender import AnswerSender
from kernel_bridge.live.call_runner import CallRunner, ReceivedCall
from kernel_bridge.live.calls_in_flight import CallsInFlight, CallSize
from kernel_bridge.live.cell_clock import CellClock
from kernel_bridge.live.channel_state import CLOSED, ChannelState
from kernel_bridge.live.submission import Submission
from kernel_bridge.live.tool_dispatch import ToolDispatcher
from kernel_bridge.live.zmtp import ZmtpClosed, ZmtpSocket
from kernel_bridge.live.zmtp_reader import Frame, ZmtpError
from kernel_bridge.options import Limits
from kernel_bridge.process.loopback import Endpoint
from kernel_bridge.threads.starting import start_thread
from kernel_bridge.threads.waiting import Wakeup, wait_for
from kernel_bridge.wire import Call, Codec, Foreign, Raise, Ready, WireError, read_kernel_head

__all__ = ["ToolServer"]

_JOIN_SECONDS = 2.0  # for tools that still run; what they do later goes nowhere
_HEAD_BYTES = 2**20  # room for the head of a message, however small the limit of its value is


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
        self._stopped = Wakeup()  # set once, at the end: every wait from then on ends at once
        longest = max(limits.frame_bytes, _HEAD_BYTES)
        self._calls = ZmtpSocket(endpoints[0], "PAIR", message_bytes=longest + _HEAD_BYTES, most_frames=2)
        self._answers = AnswerSender(endpoints[1], self.state, self._stopped)
        self._most_threads = limits.calls_in_flight
        self._threads: list[threading.Thread] = []  # guarded, as the reading is, by the turn
        self._turn = threading.Lock()
        self._idle = threading.Semaphore(0)  # counts the threads that wait for their turn
        self._closed = False

    # -- called by the thread that runs cells ------------------------------------------------------------------------

    def connect(self) -> bool:
        """Go on with connecting. True: it is done. Raises: ZmtpClosed, ZmtpError."""
        return self._calls.connect() and self._answers.connect()

    def start(self) -> None:
        """Begin to serve, once connected."""
        with self._turn:
            self._add_thread()

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
        self._stopped.set()
        deadline = time.monotonic() + _JOIN_SECONDS
        with self._turn:  # nobody reads any more
            self._calls.close()
        self._answers.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        self._stopped.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: be closed. The kernel of a tool that forked is the parent's.

        All locks are new: of those that there were, some may be held by threads that are not here.
        """
        self._closed = True
        self._turn, self._idle = threading.Lock(), threading.Semaphore(0)
        for part in (self._in_flight, self.clock, self._submission, self._answers):
            part.leave_to_parent()
        self._calls.close()
        self._stopped.close()

    # -- threads -----------------------------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._serve, name=f"kernel tools {len(self._threads) + 1}", daemon=True)
        start_thread(thread)
        self._threads.append(thread)
        self._idle.release()

    def _serve(self) -> None:
        while True:
            with self._turn:
                self._idle.acquire()
                call = self._receive()
                if call is None or not self._admit(call.size):
                    return
            try:
                self._handle(call)
            except WireError as error:
                self.state.violate(str(error))
                return
            except MemoryError:
                self.state.lose("what it called a tool with took more memory than there is")
                return
            except Exception as error:  # noqa: BLE001 - ours: without this thread the kernel would wait for ever
                self.state.fail(error)
                return
            finally:
                self._in_flight.end(call.size)
                self._idle.release()
                del call

    def _admit(self, size: CallSize) -> bool:
        """Wait, with the turn, until so much more may be in flight; see to the next reader. False: closing."""
        if not self._in_flight.begin(size) or self._closed:
            return False
        if self._idle.acquire(blocking=False):
            self._idle.release()  # whoever takes the turn next counts itself
        elif len(self._threads) < self._most_threads:
            with suppress(OSError):  # the system has no thread left: this one reads on when it has run its call
                self._add_thread()
        return True

    def _handle(self, call: ReceivedCall) -> None:
        """Run a call and send its answer, or why that is not sent."""
        head, data = self._runner.run(call)
        if not self._in_flight.answer(call.size, len(data)):
            waiting = f"answers of {self._in_flight.answer_bytes} bytes wait to be taken already"
            said = f"the answer of {len(data)} bytes was dropped, because {waiting}; call fewer tools at once"
            head, data = Raise(head.id, "RuntimeError", said), b""
        self._answers.send(head, data)

    def _receive(self) -> ReceivedCall | None:
        """The next call, or None when there will be none. Other messages are dealt with here, in their order."""
        try:
            while not self._closed and not self.state.is_over:
                frames = self._calls.receive()
                if frames is None:
                    wait_for((self._stopped.fd, self._calls.fd), (), None)
                elif (call := self._take(frames)) is not None:
                    return call
        except ZmtpClosed:
            self.state.lose(CLOSED)
        except (ZmtpError, WireError) as error:
            self.state.violate(str(error))
        return None

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
        name = head.name if isinstance(head, Call) else "SUBMIT"
        parts = self._codec.weigh(frames[1], self._in_flight.room)
        return ReceivedCall(head, frames[1], CallSize(name, len(frames[0]) + len(frames[1]), parts))
