"""What the parts cost with nothing around them: sockets, the codec, pickle. Each gives the seconds of one use."""

from __future__ import annotations

import pickle
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import zmq
from _rows import seconds

__all__ = ["RawSockets", "codec", "pickled", "raw_receiver", "raw_sockets", "received"]

_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder()


def codec(value: Any) -> float:
    """Encode with msgspec and decode again."""
    return seconds(lambda: _DECODER.decode(_ENCODER.encode(value)))


def pickled(value: Any) -> float:
    """`pickle.dumps`."""
    return seconds(lambda: pickle.dumps(value, protocol=5))


def received(value: Any) -> Any:
    """The value as it is after it has crossed: equal, and sharing nothing."""
    return _DECODER.decode(_ENCODER.encode(value))


_RECEIVER = """
import sys, zmq
socket = zmq.Context().socket(zmq.PAIR)
socket.bind(sys.argv[1])
while True:
    text = str(socket.recv(copy=False).buffer, "utf-8")
    socket.send(b"%d" % len(text))
    if text == "stop":
        break
"""


@contextmanager
def raw_receiver() -> Iterator[Callable[[str], float]]:
    """A process that makes a text of what comes over a PAIR socket, and says so; gives the seconds of one text."""
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder:
        url = f"ipc://{Path(folder) / 's'}"
        with subprocess.Popen([sys.executable, "-c", _RECEIVER, url]), context.socket(zmq.PAIR) as socket:
            socket.connect(url)

            def send(text: str) -> float:
                def there_and_back() -> None:
                    socket.send(text.encode(), copy=False)
                    socket.recv()

                return seconds(there_and_back)

            send("first")
            try:
                yield send
            finally:
                send("stop")
    context.term()


class RawSockets:
    """A ROUTER that sends back what comes, over ipc, and clients of it in threads of this process."""

    def __init__(self, context: zmq.Context[Any], url: str) -> None:
        self._context = context
        self._url = url

    @contextmanager
    def _dealer(self) -> Iterator[zmq.Socket[bytes]]:
        dealer = self._context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.connect(self._url)
        try:
            yield dealer
        finally:
            dealer.close()

    def trip(self, count: int, body: bytes = b"body") -> float:
        """One round trip, of `count` one after the other."""
        with self._dealer() as dealer:
            _round_trips(dealer, 1, body)
            return seconds(lambda: _round_trips(dealer, count, body)) / count

    def trips_at_once(self, threads: int, count: int) -> float:
        """One round trip, where so many threads make `count` of them together, each on a socket of its own."""
        ready, go = threading.Barrier(threads + 1), threading.Event()

        def client() -> None:
            with self._dealer() as dealer:
                _round_trips(dealer, 1, b"body")
                ready.wait()
                go.wait()
                _round_trips(dealer, count // threads, b"body")

        clients = [threading.Thread(target=client) for _ in range(threads)]
        for one in clients:
            one.start()
        ready.wait()

        def all_of_them() -> None:
            go.set()
            for one in clients:
                one.join()

        return seconds(all_of_them) / (count // threads * threads)


def _round_trips(dealer: zmq.Socket[bytes], count: int, body: bytes) -> None:
    for _ in range(count):
        dealer.send_multipart([b"head", body], copy=len(body) < 65536)
        dealer.recv_multipart(copy=False)


@contextmanager
def raw_sockets() -> Iterator[RawSockets]:
    """The router runs until the end of the block."""
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder:
        url = f"ipc://{Path(folder) / 's'}"
        router, ender = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        router.bind(url)
        ender.connect(url)

        def serve() -> None:
            while True:
                frames = router.recv_multipart(copy=False)
                if frames[-1].bytes[:4] == b"stop":
                    return
                router.send_multipart(frames, copy=False)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield RawSockets(context, url)
        finally:
            ender.send(b"stop")
            thread.join()
            router.close(0)
            ender.close(0)
            context.term()
