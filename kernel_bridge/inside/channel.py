"""The kernel's end of the tool channel: it asks the host and waits for the answer.

Two PAIR sockets: one carries messages out, one carries replies in. Any thread may ask. One of the waiting threads at a
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
from kernel_bridge.inside.interrupts import Interrupts
from kernel_bridge.wire import (
    LONGEST_NAME,
    Call,
    Codec,
    HostMessage,
    KernelMessage,
    Raise,
    Return,
    Submit,
    Unsendable,
    WireError,
    read_host_head,
    write_head,
)

_poll = zmq.zmq_poll  # the agent's code may replace the module's
_ZERO_COPY_BYTES = 65536
_POLL_MS = 1000  # a poll that lasts for ever could miss a signal that another thread was given
_PAIR = b"\x92"  # the head of a msgpack array of two, whose parts are encoded apart for the sake of their error paths


class _Waiter:
    __slots__ = ("reply", "turn")

    def __init__(self) -> None:
        self.reply: tuple[HostMessage, Any] | None = None
        self.turn: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        self.turn.put(None)


class HostChannel:
    """Ask the host. Thread-safe; one per kernel.

    Args:
        urls: of the two sockets. They are bound there; on TCP, where others can connect too, the host listens.
        key: what the host wants to be told then.
    """

    def __init__(
        self, context: zmq.Context[Any], urls: tuple[str, str], key: bytes, codec: Codec, interrupts: Interrupts
    ) -> None:
        self.codec = codec
        self._interrupts = interrupts
        self._out: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        self._in: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        for socket, url in ((self._out, urls[0]), (self._in, urls[1])):
            socket.linger = 0
            if url.startswith("tcp:"):
                socket.plain_username, socket.plain_password = b"kernel", key
                socket.connect(url)
            else:
                socket.bind(url)
        self._sending = threading.Lock()
        self._reading = threading.Lock()
        self._ids = itertools.count(1)
        self._waiters: dict[int, _Waiter] = {}
        self._forked = False  # True in a process that the agent's code forked: the sockets are its parent's
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._become_child)

    def _become_child(self) -> None:
        self._forked = True

    def tell(self, message: KernelMessage) -> None:
        """Send a message that has no answer."""
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
        with self._interrupts.held():
            id = next(self._ids)
            waiter = self._waiters[id] = _Waiter()
            try:
                self._send(message(id), body)
                head, value = self._wait(waiter)
            finally:
                del self._waiters[id]
                if self._waiters and not self._reading.locked():
                    self._promote()  # an interrupted thread may have been the one that was to read next
        if isinstance(head, Return):
            return value
        raise host_exception(head.kind, head.message)

    def _send(self, message: KernelMessage, body: bytes) -> None:
        frames = [write_head(message), body]
        with self._sending:
            while True:
                try:
                    self._out.send_multipart(frames, zmq.DONTWAIT, copy=len(body) < _ZERO_COPY_BYTES)
                    return
                except zmq.Again:  # the host takes no more for now: this is how a flood of calls is slowed
                    with self._interrupts.allowed():
                        _poll([(self._out, zmq.POLLOUT)], _POLL_MS)

    def _wait(self, waiter: _Waiter) -> tuple[HostMessage, Any]:
        while waiter.reply is None:
            if not self._reading.acquire(blocking=False):
                # Woken with its reply, or to become the reader. Not without end: of a signal that comes just before the
                # wait, Python would hear only after it.
                with self._interrupts.allowed(), contextlib.suppress(Empty):
                    waiter.turn.get(timeout=_POLL_MS / 1000)
                continue
            try:
                while waiter.reply is None:
                    with self._interrupts.allowed():
                        _poll([(self._in, zmq.POLLIN)], _POLL_MS)
                    self._read_one()
            finally:
                self._reading.release()
                self._promote()
        return waiter.reply

    def _promote(self) -> None:
        for other in tuple(self._waiters.values()):
            if other.reply is None:
                other.wake()
                return

    def _read_one(self) -> None:
        receive = self._in.recv
        try:
            first = receive(zmq.DONTWAIT)  # a copy: a frame of zmq's own takes longer to make than all else here
        except zmq.Again:
            return
        # All frames of a message come at once.
        body = receive(zmq.DONTWAIT, copy=False) if self._in.getsockopt(zmq.RCVMORE) else None
        if body is None or body.more:
            raise WireError("a message from the host that has not two frames")
        head = read_host_head(first)
        waiter = self._waiters.get(head.id)
        if waiter is None:
            return  # its caller was interrupted
        value = None
        if isinstance(head, Return):
            try:
                value = self.codec.load(body.buffer, verify=False)
            except Exception as error:  # noqa: BLE001 - a pickled value runs foreign code while it loads
                head = Raise(head.id, type(error).__name__, f"the result cannot be loaded here: {error}")
        waiter.reply = (head, value)
        waiter.wake()
