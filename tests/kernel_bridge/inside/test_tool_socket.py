"""The kernel's end of a connection of the tool channel, against the host's."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kernel_bridge import KernelInterpreter, Limits
from kernel_bridge.inside.tool_socket import ToolSocket
from kernel_bridge.live.zmtp import ZmtpSocket
from kernel_bridge.process.loopback import Endpoint, LoopbackListener
from kernel_bridge.threads.waiting import wait_for
from kernel_bridge.zmtp.stream import ZmtpClosed, ZmtpStream

KEY = b"0123456789abcdef" * 4
MOST = 4_000_000  # bytes of a message

unix = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix sockets")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)  # a short path, whatever pytest's directories are called
    return "ipc://s"


def until(done: Callable[[], Any], *ends: ZmtpStream) -> Any:
    """Ask again and again, waiting for the connections in between."""
    while not (found := done()):
        wait_for([end.fd for end in ends if end.fd >= 0], [end.fd for end in ends if end.unsent], 0.01)
        for end in ends:
            if end.unsent:
                end.flush()
    return found


@contextmanager
def connected(url: str, endpoint: Endpoint) -> Iterator[tuple[ToolSocket, ZmtpSocket]]:
    """The kernel's end and the host's."""
    with (
        closing(ToolSocket(url, KEY)) as kernel,
        closing(ZmtpSocket(endpoint, "PAIR", message_bytes=MOST, most_frames=2)) as host,
        ThreadPoolExecutor(1) as pool,
    ):
        opening = pool.submit(kernel.open)
        until(host.connect, host)
        opening.result(60)
        yield kernel, host


@contextmanager
def by(transport: str, place: str) -> Iterator[tuple[ToolSocket, ZmtpSocket]]:
    if transport == "ipc":
        with connected(place, place) as ends:
            yield ends
        return
    with closing(LoopbackListener(KEY, "PAIR")) as listener, connected(listener.url, listener) as ends:
        yield ends


transports = pytest.mark.parametrize("transport", [pytest.param("ipc", marks=unix), "tcp"])


@transports
@pytest.mark.parametrize("size", [0, 255, 256, 65_536, 3_000_000])
def test_messages_of_any_length_go_both_ways(transport: str, place: str, size: int) -> None:
    body = os.urandom(size)
    with by(transport, place) as (kernel, host):
        for sender, receiver in ((kernel, host), (host, kernel)):
            sender.send([b"head", body])
            assert until(receiver.receive, receiver, sender) == [b"head", body]
        for number in range(300):
            host.send([b"%d" % number, b"x" * number])
        assert [until(kernel.receive, kernel, host)[0] for _ in range(300)] == [b"%d" % number for number in range(300)]
        assert kernel.receive() is None


@transports
def test_the_end_of_the_host_is_told(transport: str, place: str) -> None:
    with by(transport, place) as (kernel, host):
        host.close()
        with pytest.raises(ZmtpClosed):
            until(kernel.receive, kernel)


@unix
def test_what_an_earlier_kernel_has_left_at_the_address_is_in_nobodys_way(place: str) -> None:
    with socket.socket(socket.AF_UNIX) as before:
        before.bind("s")
    with by("ipc", place) as (kernel, host):
        kernel.send([b"head", b"body"])
        assert until(host.receive, host) == [b"head", b"body"]


@unix
def test_it_listens_before_it_is_opened_and_to_one_host_only(place: str) -> None:
    with closing(ToolSocket(place, KEY)) as kernel:
        host = ZmtpSocket(place, "PAIR", message_bytes=MOST, most_frames=2)
        assert not host.connect()
        kernel.open()
        until(host.connect, host)
        host.send([b"head", b"body"])
        assert until(kernel.receive, kernel) == [b"head", b"body"]
        other = ZmtpSocket(place, "PAIR", message_bytes=MOST, most_frames=2)
        assert not other.connect()
        assert other.fd == -1
        host.close()


def test_the_host_does_not_take_another_key() -> None:
    with (
        closing(LoopbackListener(b"another", "PAIR")) as listener,
        closing(ToolSocket(listener.url, KEY)) as kernel,
        ThreadPoolExecutor(1) as pool,
    ):
        opening = pool.submit(kernel.open)
        while not opening.done():
            assert listener.accept() is None
        with pytest.raises(ConnectionError):
            opening.result(60)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="timers of POSIX")
def test_calls_that_a_timer_of_the_agents_breaks_off_leave_the_channel_whole() -> None:
    code = """
import signal
class Late(Exception): pass
def late(*_): raise Late
signal.signal(signal.SIGALRM, late)
broken = 0
for number in range(300):
    text = str(number) * (number * 300)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.0002 * (number % 20 + 1))
            same = echo(text)
        finally: signal.setitimer(signal.ITIMER_REAL, 0)
    except Late: broken += 1
    else: assert same == text
    assert echo(number) == number
print(broken > 0)
"""
    with KernelInterpreter({"echo": lambda value: value}, confinement="off") as interpreter:
        assert interpreter.execute(code) == "True"


@pytest.mark.parametrize("work", ["echo(points)", "sys.stdout.write('x' * 5000)"])
def test_what_is_broken_off_at_any_point_leaves_calls_and_interrupts_as_they_were(work: str) -> None:
    # A profiler may raise at the same points as the handler of a signal: where a function begins, and after one of C.
    code = """
import os, signal, sys
class Late(Exception): pass
def break_off(left):
    def count(frame, event, arg):
        nonlocal left
        if event in ("call", "c_return"):
            left -= 1
            if not left: raise Late
    return count
points, broken = 0, True
while broken:
    points += 1
    broken = False
    sys.setprofile(break_off(points))
    try: WORK
    except Late: broken = True
    finally: sys.setprofile(None)
    assert echo(-points) == -points
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
    except KeyboardInterrupt: pass
    else: raise AssertionError(points)
enough = points > 30
"""
    with KernelInterpreter({"echo": lambda value: value}, confinement="off") as interpreter:
        interpreter.execute(code.replace("WORK", work))
        assert interpreter.execute("print(enough)") == "True"


@unix
def test_a_call_that_waits_for_another_threads_to_be_sent_is_interrupted(tmp_path: Path) -> None:
    begun, leave = tmp_path / "begun", threading.Event()

    def hold(_: Any) -> None:
        begun.touch()
        assert leave.wait(60)

    code = """
import os, signal, threading, time
channel = get_ipython().kernel.channel
def in_a_thread(value): threading.Thread(target=hold, args=(value,), daemon=True).start()
in_a_thread(1)
while not os.path.exists(begun): time.sleep(0.001)
in_a_thread(bytes(10_000_000))
while not channel._out.unsent: time.sleep(0.001)
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try: hold(2)
except KeyboardInterrupt: print("interrupted")
del channel
"""
    limits = Limits(calls_in_flight=1, cell_seconds=10)
    with KernelInterpreter({"hold": hold}, confinement="off", limits=limits) as interpreter:
        try:
            assert interpreter.execute(code, {"begun": str(begun)}) == "interrupted"
        finally:
            leave.set()
        assert interpreter.execute("print(hold(3))") == "None"
