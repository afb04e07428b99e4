"""The host's own end of a ZeroMQ connection: it talks with libzmq, and takes nothing beyond its bounds from anybody."""

from __future__ import annotations

import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import zmq

from kernel_bridge.live.zmtp import ZmtpSocket
from kernel_bridge.threads.waiting import Wakeup, wait_for
from kernel_bridge.zmtp.reader import ZmtpError, ZmtpReader
from kernel_bridge.zmtp.stream import ZmtpClosed

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x1a\x05READY\x0bSocket-Type\x00\x00\x00\x04PAIR"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a short path, whatever pytest's directories are called
    return "s"


def peer(place: str, *, kind: str = "PAIR", message_bytes: int = 2**20, most_frames: int = 2) -> ZmtpSocket:
    return ZmtpSocket(f"ipc://{place}", kind, message_bytes=message_bytes, most_frames=most_frames)


def until(done: Callable[[], Any], one: ZmtpSocket) -> Any:
    """Ask again and again, waiting for the connection in between."""
    while not (found := done()):
        wait_for([one.fd] if one.fd >= 0 else [], [one.fd] if one.unsent else [], 0.01)
        if one.unsent:
            one.flush()
    return found


@contextmanager
def libzmq(place: str, kind: int) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[Any] = zmq.Context()
    with context.socket(kind) as made:
        made.linger = 0
        made.rcvtimeo = 60_000
        made.bind(f"ipc://{place}")
        yield made
    context.term()


@contextmanager
def anybody(place: str) -> Iterator[tuple[ZmtpSocket, socket.socket]]:
    """A connection to a socket that is no libzmq's: our peer, and the other end of it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        one = peer(place)
        assert not one.connect()  # nobody has answered yet
        other, _ = listener.accept()
        with other:
            try:
                yield one, other
            finally:
                one.close()


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_535, 65_536, 200_000, 3_000_000])
def test_messages_of_any_length_go_both_ways(place: str, size: int) -> None:
    body = os.urandom(size)
    with libzmq(place, zmq.PAIR) as theirs:
        ours = peer(place, message_bytes=4_000_000)
        until(ours.connect, ours)
        ours.send([b"head", body])
        until(lambda: not ours.unsent, ours)
        assert theirs.recv_multipart() == [b"head", body]
        theirs.send_multipart([b"head", body])
        assert until(ours.receive, ours) == [b"head", body]
        ours.close()


def test_many_messages_that_came_at_once_are_all_there(place: str) -> None:
    with libzmq(place, zmq.PAIR) as theirs:
        ours = peer(place)
        until(ours.connect, ours)
        for number in range(500):
            theirs.send_multipart([str(number).encode(), b"x" * number])
        found = [until(ours.receive, ours)[0] for _ in range(500)]
        assert found == [str(number).encode() for number in range(500)]
        assert ours.receive() is None
        ours.close()


def test_a_router_takes_it_for_a_dealer(place: str) -> None:
    with libzmq(place, zmq.ROUTER) as theirs:
        ours = peer(place, kind="DEALER", most_frames=5)
        until(ours.connect, ours)
        ours.send([b"a", b"", b"c"])
        identity, *frames = theirs.recv_multipart()
        assert frames == [b"a", b"", b"c"]
        theirs.send_multipart([identity, *frames])
        assert until(ours.receive, ours) == frames
        ours.close()


def test_it_waits_for_a_socket_that_is_not_there_yet(place: str) -> None:
    ours = peer(place)
    assert not ours.connect()
    with libzmq(place, zmq.PAIR):
        assert until(ours.connect, ours)
        ours.close()


def test_the_end_of_the_other_side_is_told_once_all_that_came_was_read(place: str) -> None:
    with anybody(place) as (ours, other):
        other.sendall(GREETING + READY + b"\x01\x01a\x00\x01b")
        other.close()
        until(ours.connect, ours)
        assert ours.receive() == [b"a", b"b"]
        with pytest.raises(ZmtpClosed):
            ours.receive()


def test_what_cannot_be_sent_at_once_waits(place: str) -> None:
    with anybody(place) as (ours, other):
        other.sendall(GREETING + READY)
        until(ours.connect, ours)
        with socket.socket(fileno=os.dup(ours.fd)) as same:
            held = [end.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) for end in (same, other)]
        size = 5_000_000 + 4 * max(held)  # more than a connection holds
        ours.send([b"x" * size])
        assert ours.unsent

        def read() -> None:
            left = size
            while left > 0:
                left -= len(other.recv(2**20))

        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: not ours.unsent, ours)
        reader.join(20)


class _Interrupted(BaseException):
    """What the handler of a signal raises."""


class _Interrupts:
    """Interrupts this thread, in the block, once after each time that it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self._over, self._main = threading.Event(), threading.get_ident()
        self._presser = threading.Thread(target=self._press)

    def __enter__(self) -> _Interrupts:
        self._before = signal.signal(signal.SIGUSR1, self._interrupt)
        self._presser.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._presser.join()
        signal.signal(signal.SIGUSR1, self._before)

    def _press(self) -> None:
        while not self._over.wait(0):
            if self.armed:
                signal.pthread_kill(self._main, signal.SIGUSR1)

    def _interrupt(self, *_: object) -> None:
        if self.armed:
            self.armed = False
            raise _Interrupted


can_interrupt = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="signals to a thread")


@can_interrupt
def test_whoever_is_interrupted_while_sending_sends_no_message_twice_and_no_half_of_one(place: str) -> None:
    message = b"\x01\x04text" + b"\x02" + struct.pack(">Q", 1000) + bytes(1000)
    with _Interrupts() as interrupts, anybody(place) as (ours, other):
        other.sendall(GREETING + READY)
        until(ours.connect, ours)
        _all_there(other)
        for _ in range(100):
            whole = False
            with suppress(_Interrupted):
                interrupts.armed = True
                ours.send([b"text", bytes(1000)])
                interrupts.armed, whole = False, True
            until(ours.flush, ours)
            got = _all_there(other)
            assert got == message or (not whole and not got)


@can_interrupt
@pytest.mark.parametrize("size", [1000, 100_000])
def test_whoever_is_interrupted_while_reading_loses_nothing_of_what_came(size: int) -> None:
    """In pieces, one for each read: a short frame into the reader's buffer, a long one into its own."""
    body = os.urandom(size)
    message = b"\x02" + struct.pack(">Q", size) + body
    piece = len(message) // 1000
    reader = ZmtpReader(size, 1, after_handshake=True)
    ours, theirs = socket.socketpair()
    with _Interrupts() as interrupts, ours, theirs:
        ours.setblocking(False)
        while len(message) > piece:
            assert reader.next_message() is None
            theirs.sendall(message[:piece])
            message = message[piece:]
            with suppress(_Interrupted):
                with suppress(BlockingIOError):
                    while True:
                        interrupts.armed = True
                        reader.fill(ours.recv_into)
                interrupts.armed = False
        theirs.sendall(message)
        while (found := reader.next_message()) is None:
            reader.fill(ours.recv_into)  # fails when nothing is left to be read
        assert found == [body]


def test_what_an_interrupt_left_uncounted_is_where_it_was_put_when_a_long_frame_begins() -> None:
    body = os.urandom(100_000)
    message = b"\x02" + struct.pack(">Q", len(body)) + body
    reader = ZmtpReader(len(body), 1, after_handshake=True)

    def interrupt(frame: object, event: str, function: object) -> None:
        if event == "c_return" and getattr(function, "__name__", "") == "extend":
            raise _Interrupted

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(message[:20])
        reader.fill(ours.recv_into)
        theirs.sendall(message[20:50])
        before = sys.getprofile()
        sys.setprofile(interrupt)
        try:
            with pytest.raises(_Interrupted):
                reader.fill(ours.recv_into)
        finally:
            sys.setprofile(before)
        assert reader.next_message() is None
        theirs.sendall(message[50:])
        while (found := reader.next_message()) is None:
            reader.fill(ours.recv_into)
        assert found == [body]


def _all_there(end: socket.socket) -> bytes:
    got = bytearray()
    with suppress(BlockingIOError):
        while data := end.recv(2**20, socket.MSG_DONTWAIT):
            got += data
    return bytes(got)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n".ljust(64), "greeting"),
        (GREETING.replace(b"NULL\0", b"PLAIN") + READY, "greeting"),
        (GREETING[:10] + b"\x02" + GREETING[11:] + READY, "greeting"),
        (GREETING + b"\x04\x06\x05ERROR", "handshake"),
        (GREETING + b"\x00\x05hello", "before the handshake"),
        (GREETING + b"\x04\xff" + bytes(255), "handshake"),
        (GREETING + b"\x06" + struct.pack(">Q", 2**40), "command"),
    ],
)
def test_a_handshake_that_is_none_is_refused(place: str, sent: bytes, why: str) -> None:
    with anybody(place) as (ours, other):
        other.sendall(sent)
        with pytest.raises(ZmtpError, match=why):
            until(ours.connect, ours)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"\x02" + struct.pack(">Q", 2**20 + 1), "bytes"),
        (b"\x02" + struct.pack(">Q", 2**63 + 1), "bytes"),
        (b"\x03" + struct.pack(">Q", 2**20) + bytes(2**20) + b"\x00\x01x", "bytes"),
        (b"\x01\x01a\x01\x01b\x01\x01c", "frames"),
        (b"\x01\x00" * 50, "frames"),
        (b"\x04\x04PING", "command"),
        (READY, "command"),
        (b"\xf8\x00", "flags"),
    ],
)
def test_what_is_beyond_the_bounds_is_refused_as_soon_as_it_is_announced(place: str, sent: bytes, why: str) -> None:
    with anybody(place) as (ours, other):
        other.sendall(GREETING + READY)
        until(ours.connect, ours)
        sending = threading.Thread(target=other.sendall, args=(sent,))
        sending.start()
        with pytest.raises(ZmtpError, match=why):
            until(ours.receive, ours)
        sending.join(20)


def test_a_length_is_only_a_claim_until_the_bytes_have_come(place: str) -> None:
    with anybody(place) as (ours, other):
        ours = peer(place, message_bytes=2**50)
        other.close()
        ours.close()
    with socket.socket(socket.AF_UNIX) as listener:
        os.unlink(place)
        listener.bind(place)
        listener.listen()
        one = peer(place, message_bytes=2**50)
        one.connect()
        other, _ = listener.accept()
        with other:
            other.sendall(GREETING + READY + b"\x02" + struct.pack(">Q", 2**49) + b"x" * 100_000)
            until(one.connect, one)
            assert one.receive() is None  # half a petabyte was announced, and no room was made for it
        one.close()


class Dribble:
    """A connection at whose other end somebody always keeps up: each read gives one byte, each write takes one."""

    def recv_into(self, target: memoryview) -> int:
        target[:1] = b"x"
        return 1

    def sendmsg(self, *_: object) -> int:
        return 1

    send = sendmsg

    def close(self) -> None:
        return None


def test_reading_and_writing_come_back_however_long_the_other_end_keeps_up(place: str) -> None:
    with anybody(place) as (ours, other):
        other.sendall(GREETING + READY + b"\x02" + struct.pack(">Q", 2**20))
        until(ours.connect, ours)
        assert ours._socket is not None
        ours._socket.close()
        ours._socket = Dribble()  # type: ignore[assignment]
        for _ in range(3):
            assert ours.receive() is None
        ours.send([bytes(2**20)])
        assert not ours.flush()


@pytest.mark.parametrize("hidden", ["link", "file"])
def test_it_connects_to_a_socket_only_and_follows_no_link(place: str, hidden: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("real")
        listener.listen()
        if hidden == "link":
            os.symlink("real", place)
        else:
            Path(place).write_bytes(b"")
        ours = peer(place)
        with pytest.raises((ZmtpError, OSError)):
            ours.connect()
        ours.close()


def test_waiting_ends_when_it_is_woken() -> None:
    wakeup = Wakeup()
    try:
        assert wait_for([wakeup.fd], [], 0) == set()
        threading.Timer(0.01, wakeup.set).start()
        assert wait_for([wakeup.fd], [], None) == {wakeup.fd}
        assert wait_for([], [wakeup.fd], 5) == {wakeup.fd}  # nothing keeps anybody from writing to it
        wakeup.clear()
        assert wait_for([wakeup.fd], [], 0) == set()
    finally:
        wakeup.close()
