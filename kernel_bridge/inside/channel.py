"""The kernel's end of the tool channel: it asks the host and waits for the answer.

Two connections: one carries messages out, one carries replies in. Any thread may ask. One of the waiting threads at a
time reads the replies and hands each to the thread it belongs to, so a lone caller pays for no thread switch. A reply
whose caller was interrupted is dropped by its id.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

import zmq

from kernel_bridge.inside.host_exceptions import NotSendable, host_exception
from kernel_bridge.inside.interrupts import HELD, Interrupts
from kernel_bridge.inside.tool_socket import ToolSocket
from kernel_bridge.wire import (
    LONGEST_NAME,
    Call,
    Codec,
    HostMessage,
    KernelMessage,
    Return,
    Submit,
    Unsendable,
    WireError,
    read_host_head,
    write_head,
)
from kernel_bridge.zmtp.reader import Frame

_poll = zmq.zmq_poll  # the agent's code may replace the module's
_POLL_MS = 1000  # a poll that lasts for ever could miss a signal that another thread was given
_TURN = "turn"
_PAIR = b"\x92"  # the head of a msgpack array of two, whose parts are encoded apart for the sake of their error paths


class _Waiter:
    __slots__ = ("reply", "turn")

    def __init__(self) -> None:
        self.reply: tuple[HostMessage, Frame] | None = None
        self.turn: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        self.turn.put(None)


class HostChannel:
    """Ask the host. Thread-safe; one per kernel.

    Args:
        urls: of the two connections; see `ToolSocket`.
        key: what the host wants to be told on TCP.
    """

    def __init__(self, urls: tuple[str, str], key: bytes, codec: Codec, interrupts: Interrupts) -> None:
        self.codec = codec
        self._interrupts = interrupts
        self._out, self._in = (ToolSocket(url, key) for url in urls)
        self._sending = threading.Lock()
        # Under _TURN the waiter that reads. `setdefault` takes the turn and tells whose it is in one step. A lock that
        # a call has taken would stay shut when a signal handler of the agent's raises right after it.
        self._reader: dict[str, _Waiter] = {}
        self._ids = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._forked = False  # True in a process that the agent's code forked: the sockets are its parent's
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._become_child)

    def open(self) -> None:
        """Wait until both are connected with the host. Raises: OSError."""
        self._out.open()
        self._in.open()

    def _become_child(self) -> None:
        self._forked = True

    def tell(self, message: KernelMessage) -> None:
        """Send a message that has no answer."""
        with self._sending:
            self._send(message, b"")

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a host tool and return its result. Raises: what the tool raised, under the same class name."""
        if len(name) > LONGEST_NAME:
            raise NameError(f"there is no tool named {name[:50]!r}..., a name of {len(name)} characters")
        body = _PAIR + self._dump(list(args), f"{name}() argument") + self._dump(kwargs, f"{name}()")
        if len(body) > self.codec.limit_bytes:
            reason = f"{len(body)} bytes encoded, all together; at most {self.codec.limit_bytes}"
            raise NotSendable(f"{name}() arguments", "list and dict", reason)
        return self._ask(lambda id: Call(id, name), body)

    def submit(self, fields: dict[str, Any]) -> None:
        """Offer the final output. Raises: the host's refusal."""
        self._ask(Submit, self._dump(fields, "SUBMIT"))

    def _dump(self, value: Any, path: str) -> bytes:
        try:
            return self.codec.dump(value, path)
        except Unsendable as error:
            raise NotSendable(error.path, error.type, error.reason) from None

    def _ask(self, message: Callable[[int], KernelMessage], body: bytes) -> Any:
        if self._forked:
            raise RuntimeError("host tools cannot be called from a forked process; use threads to call several at once")
        interrupts = self._interrupts
        is_main, before = interrupts.on_main_thread(), interrupts.mode
        try:
            if is_main:
                interrupts.mode = HELD
            id = next(self._ids)
            waiter = self._waiters[id] = _Waiter()
            try:
                # For as long as the host takes no more, it is another thread's turn to send.
                with interrupts.allowed(), self._sending:
                    if is_main:
                        interrupts.mode = HELD
                    self._send(message(id), body)
                head, data = self._wait(waiter)
            finally:
                # Nothing is called before the turn is given back: after a call an agent's own signal handler may raise.
                del self._waiters[id]
                if _TURN in self._reader and self._reader[_TURN] is waiter:
                    del self._reader[_TURN]
                if self._waiters and _TURN not in self._reader:
                    self._promote()  # this one has read, or was interrupted when it was to read next
            if isinstance(head, Return):
                return self.codec.load(data, verify=False)
        finally:
            if is_main:
                interrupts.mode = before  # by no call, for the same reason
                if before != HELD:
                    interrupts.deliver()
        raise host_exception(head.kind, head.message)

    def _send(self, message: KernelMessage, body: bytes) -> None:
        if self._out.unsent:  # an interrupt has left it
            self._flush()
        if not self._out.send([write_head(message), body]):
            self._flush()

    def _flush(self) -> None:
        while not self._out.flush():  # the host takes no more for now: this is how a flood of calls is slowed
            with self._interrupts.allowed():
                _poll([(self._out.fd, zmq.POLLOUT)], _POLL_MS)

    def _wait(self, waiter: _Waiter) -> tuple[HostMessage, Frame]:
        while waiter.reply is None:
            if self._reader.setdefault(_TURN, waiter) is not waiter:
                # Woken with its reply, or to become the reader. Not without end: of a signal that comes just before the
                # wait, Python would hear only after it.
                with self._interrupts.allowed(), contextlib.suppress(Empty):
                    waiter.turn.get(timeout=_POLL_MS / 1000)
            elif not (self._in.has_unread and self._read_one()):
                with self._interrupts.allowed():
                    _poll([(self._in.fd, zmq.POLLIN)], _POLL_MS)
                self._read_one()
        return waiter.reply

    def _promote(self) -> None:
        for other in tuple(self._waiters.values()):
            if other.reply is None:
                other.wake()
                return

    def _read_one(self) -> bool:
        """Read a message, and hand it on. False: there is none, or not all of it."""
        frames = self._in.look()
        if frames is None:
            return False
        if len(frames) != 2:
            raise WireError("a message from the host that has not two frames")
        head = read_host_head(frames[0])
        waiter = self._waiters.get(head.id)
        if waiter is not None:  # else its caller was interrupted
            waiter.reply = (head, frames[1])
            waiter.wake()
        self._in.drop()
        return True
