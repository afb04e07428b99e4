"""The listener on the loopback interface, against libzmq's own sockets and against strangers."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq

from kernel_bridge.process.connection import Connection
from kernel_bridge.process.loopback import LoopbackListener

KEY = b"0123456789abcdef" * 4


@pytest.fixture
def listener() -> Iterator[LoopbackListener]:
    made = LoopbackListener(KEY, "PAIR")
    yield made
    made.close()


@pytest.fixture
def kernel() -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(zmq.PAIR) as made:
        made.linger = 0
        yield made


def connect(kernel: zmq.Socket[bytes], listener: LoopbackListener, key: bytes) -> None:
    kernel.plain_username, kernel.plain_password = b"kernel", key
    kernel.connect(listener.url)


def accepted(listener: LoopbackListener, wait_until: Callable[..., None]) -> socket.socket:
    found: list[socket.socket] = []

    def one_came() -> bool:
        found.extend(filter(None, [listener.accept()]))
        return bool(found)

    wait_until(one_came, "a connection")
    return found[0]


def test_a_kernel_that_says_the_key_is_taken_and_talked_to(
    listener: LoopbackListener, kernel: zmq.Socket[bytes], wait_until: Callable[..., None]
) -> None:
    connect(kernel, listener, KEY)
    with accepted(listener, wait_until) as host:
        kernel.send_multipart([b"head", b"body"])
        assert host.recv(100) == b"\x01\x04head\x00\x04body"
        host.sendall(b"\x00\x02hi")
        assert kernel.recv() == b"hi"


def greeting(mechanism: bytes) -> bytes:
    return b"\xff" + bytes(8) + b"\x7f\x03\x00" + mechanism.ljust(20, b"\0") + bytes(32)


def hello(key: bytes) -> bytes:
    body = b"\x05HELLO\x06kernel" + bytes([len(key)]) + key
    return greeting(b"PLAIN") + bytes([4, len(body)]) + body


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b" " * 64,
        greeting(b"NULL") + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x04PAIR",
        greeting(b"PLAIN") + b"\x04\x06\x05HELLO",
        greeting(b"PLAIN") + b"\x04\x07\x05HELLO\xff",
        greeting(b"PLAIN") + b"\x00\x05hello",
        *(hello(key) for key in (b"", b"x", KEY[:-1], KEY + b"x", b"\0" * 64, b"x" * 200)),
    ],
)
def test_strangers_are_told_nothing_and_the_kernel_still_comes_in(
    listener: LoopbackListener, kernel: zmq.Socket[bytes], wait_until: Callable[..., None], said: bytes
) -> None:
    port = int(listener.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as stranger:
        stranger.sendall(said)
        stranger.shutdown(socket.SHUT_WR)
        connect(kernel, listener, KEY)
        with accepted(listener, wait_until):
            kernel.send(b"here")
        told = b""
        with contextlib.suppress(ConnectionResetError):
            while more := stranger.recv(4096):
                told += more
    assert told in (b"", hello(b"")[:32] + b"\x01" + bytes(31))  # the listener's own greeting, and no more


def test_a_stranger_who_goes_on_saying_a_little_is_not_waited_for_longer_than_any_other(
    listener: LoopbackListener,
) -> None:
    over = threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not over.wait(0.3):
                stranger.send(b"\xff")

    with socket.create_connection(("127.0.0.1", int(listener.url.rpartition(":")[2]))) as stranger:
        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        assert listener.accept() is None
        took = time.monotonic() - began
        over.set()
        thread.join()
    assert 1.0 < took < 10.0


@pytest.mark.parametrize(
    "said", ["[]", "{}", "null", "[" * 10_000, '{"shell_port": true}', "1" * 5000, "\0"], ids=lambda said: said[:12]
)
def test_a_connection_file_that_does_not_say_the_ports_is_refused(tmp_path: Path, said: str) -> None:
    files = tmp_path / "hosts", tmp_path / "kernels"
    urls = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"
    connection = Connection({"transport": "tcp"}, "", urls, urls, None, files)
    files[1].write_text(said)
    with pytest.raises(ValueError, match="does not say which ports"):
        connection.learn_ports()
    assert not files[0].exists()
