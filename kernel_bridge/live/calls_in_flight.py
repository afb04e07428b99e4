"""The calls in flight on a tool channel, and the bytes that they and their answers take."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CallSize", "CallsInFlight"]

_LEAST_BYTES = 64 * 2**20  # for answers, however small the limit of one value is
_SMALL_BYTES = 2**16  # of an answer that need not wait: all that can be made at once are few bytes
_FREELY = 8  # calls that begin at once, though nothing is known of how large their answers are
_KNOWN_SECONDS = 0.01  # that further ones wait for one of these answers
_MOST_NAMES = 1000  # of tools whose answers are remembered


@dataclass(slots=True)
class CallSize:
    """What one call takes."""

    name: str  # of its tool
    bytes: int  # of the call
    parts: int  # that its value has, at most
    answer: int = 0  # bytes; what is expected, until it is made
    sending: int = 0  # bytes of a large answer that may be sent


class CallsInFlight:
    """Adds up what is in flight, and lets calls wait for room. Thread-safe.

    Each call goes through `begins` or `begin`, then at most once through `answer`, then through `end`. It begins when
    there is room for its bytes, its parts, and the bytes of its answer, which is expected to be as long as the last one
    of its tool. An answer waits until there is room to send it. As many bytes as may be sent at once may wait; an
    answer beyond that is refused. A call that is alone always fits, and so does an answer.

    Args:
        limit_bytes: of one value, and of all calls.
        limit_parts: of all calls.
    """

    def __init__(self, limit_bytes: int, limit_parts: int) -> None:
        self.answer_bytes = max(limit_bytes, _LEAST_BYTES)  # of all answers, as many again may wait
        self._limit_bytes = limit_bytes
        self._limit_parts = limit_parts
        self._lock = threading.Lock()  # guards all below
        self._changed = threading.Condition(self._lock)  # notified when any of it changes
        self._sleepers = 0  # that wait for that
        self._bytes = self._parts = 0  # of calls
        self._expected = 0  # bytes of answers that are expected or were made
        self._sending = self._waiting = 0  # bytes of large answers that are being sent, that wait for that
        self._running = 0
        self._answers: dict[str, int] = {}  # name of a tool -> bytes of its last answer
        self._closed = False

    @property
    def room(self) -> int:
        """Parts that there is room for."""
        with self._lock:
            return self._limit_parts - self._parts

    def begins(self, call: CallSize) -> bool:
        """Whether a call begins at once. False: it must wait, in `begin`."""
        with self._lock:
            unknown = self._running >= _FREELY and call.name not in self._answers
            if self._closed or unknown or (self._running and not self._fits(call)):
                return False
            self._add_call(call)
            return True

    def begin(self, call: CallSize) -> bool:
        """Wait until there is room for a call. False: closed."""
        with self._lock:
            if self._running >= _FREELY:
                self._wait_for(lambda: self._closed or call.name in self._answers, _KNOWN_SECONDS)
            self._wait_for(lambda: self._closed or not self._running or self._fits(call))
            if self._closed:
                return False
            self._add_call(call)
            return True

    def _add_call(self, call: CallSize) -> None:
        call.answer = self._answers.get(call.name, 0)
        self._running += 1
        self._add(call, 1)

    def answer(self, call: CallSize, size: int) -> bool:
        """Wait until an answer may be sent. False: refused, too many bytes wait already."""
        with self._lock:
            if len(self._answers) >= _MOST_NAMES:
                self._answers.clear()
            self._answers[call.name] = size
            self._expected += size - call.answer
            call.answer = size
            self._tell()
            if size <= _SMALL_BYTES:
                return True
            if not self._may_send(size):
                if self._waiting and self._waiting + size > self.answer_bytes:
                    self._expected -= size
                    call.answer = 0
                    return False
                self._waiting += size
                self._wait_for(lambda: self._may_send(size))
                self._waiting -= size
            self._sending += size
            call.sending = size
            return True

    def end(self, call: CallSize) -> None:
        """A call is done."""
        with self._lock:
            self._running -= 1
            self._add(call, -1)
            self._sending -= call.sending
            self._tell()

    def close(self) -> None:
        """End every wait, now and from now on."""
        with self._lock:
            self._closed = True
            self._tell()

    def leave_to_parent(self) -> None:
        """In the child of a fork: closed. A thread that is not here may have held the lock."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = True

    def _wait_for(self, what: Callable[[], bool], seconds: float | None = None) -> None:
        self._sleepers += 1
        try:
            self._changed.wait_for(what, seconds)
        finally:
            self._sleepers -= 1

    def _tell(self) -> None:
        if self._sleepers:
            self._changed.notify_all()

    def _add(self, call: CallSize, sign: int) -> None:
        self._bytes += sign * call.bytes
        self._parts += sign * call.parts
        self._expected += sign * call.answer

    def _fits(self, call: CallSize) -> bool:
        answer = self._answers.get(call.name, 0)
        return (
            self._bytes + call.bytes <= self._limit_bytes
            and self._parts + call.parts <= self._limit_parts
            and (answer <= _SMALL_BYTES or self._bytes + call.bytes + self._expected + answer <= self.answer_bytes)
        )

    def _may_send(self, size: int) -> bool:
        return self._closed or not self._sending or self._sending + size <= self.answer_bytes
