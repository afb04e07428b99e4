"""The pool of threads that read: who does what was read, who waits for whom, and what is left at the end."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from kernel_bridge.threads.reader_pool import ReaderPool

Wait = Callable[..., None]


@dataclass
class Told:
    """Work: to call the function of its source with what was read."""

    source: Line
    text: bytes

    @property
    def is_brief(self) -> bool:
        return self.source.is_brief

    def run(self) -> None:
        self.source.work(self.text)


@dataclass(eq=False)
class Line:
    """A source: each byte that arrives is one piece of work."""

    work: Callable[[bytes], object]
    is_brief: bool = False
    ends: tuple[socket.socket, socket.socket] = field(default_factory=socket.socketpair)

    def __post_init__(self) -> None:
        self.ends[0].setblocking(False)

    @property
    def fd(self) -> int:
        return self.ends[0].fileno()

    def read(self) -> tuple[Told | None, bool]:
        try:
            return Told(self, self.ends[0].recv(1)), True
        except BlockingIOError:
            return None, False

    def say(self, text: bytes) -> None:
        self.ends[1].sendall(text)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("a pool ")]


@pytest.fixture
def line() -> Iterator[Callable[..., Line]]:
    """Makes sources, and closes them."""
    made: list[Line] = []

    def make(work: Callable[[bytes], object], **options: Any) -> Line:
        made.append(Line(work, **options))
        return made[-1]

    yield make
    for one in made:
        for end in one.ends:
            end.close()


@pytest.fixture
def pool(wait_until: Wait) -> Iterator[Callable[..., ReaderPool]]:
    """Makes a pool of these sources. At the end nothing is left of it."""
    made: list[tuple[ReaderPool, tuple[Line, ...]]] = []

    def make(*lines: Line) -> ReaderPool:
        pool = ReaderPool("a pool")
        made.append((pool, lines))
        for one in lines:
            assert pool.add(one)
        return pool

    yield make
    for pool, lines in made:
        for one in lines:
            pool.remove(one)
    wait_until(lambda: not threads(), "the end of all threads")


def test_work_that_waits_holds_up_neither_its_own_source_nor_another(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    met = threading.Barrier(6)
    lines = [line(lambda _: met.wait(60)), line(lambda _: met.wait(60))]
    pool(*lines)
    lines[0].say(b"abc")
    lines[1].say(b"de")
    met.wait(60)


def test_brief_work_takes_few_threads_and_what_was_thought_to_be_brief_holds_up_nobody(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    gate, met = threading.Event(), threading.Barrier(3)

    def work(text: bytes) -> None:
        if text == b"w":
            met.wait(60)
        gate.set()

    one = line(work, is_brief=True)
    pool(one)
    for _ in range(50):
        gate.clear()
        one.say(b"x")
        assert gate.wait(60)
    assert len(threads()) <= 3  # one piece of work at once, and two more
    one.say(b"ww")
    met.wait(60)


def test_a_source_that_never_ends_keeps_no_other_from_its_turn(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    heard, flooding = threading.Event(), threading.Event()
    stopped = threading.Event()

    def answer(text: bytes) -> None:
        flooding.set()
        if not stopped.is_set():
            flood.say(text)

    flood = line(answer, is_brief=True)
    other = line(lambda _: heard.set(), is_brief=True)
    pool(flood, other)
    flood.say(b"ffff")
    assert flooding.wait(60)
    other.say(b"x")
    assert heard.wait(60)
    stopped.set()


def test_a_source_that_pauses_is_read_when_it_goes_on(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    heard: list[bytes] = []
    first, last = threading.Event(), threading.Event()

    def work(text: bytes) -> None:
        heard.append(text)
        (first if text == b"a" else last).set()

    paused, other = line(work), line(work)
    readers = pool(paused, other)
    readers.pause(paused)
    paused.say(b"z")
    other.say(b"a")
    assert first.wait(60)
    assert heard == [b"a"]
    readers.resume(paused)
    assert last.wait(60)


def test_a_failure_is_logged_and_the_reading_goes_on(
    line: Callable[..., Line], pool: Callable[..., ReaderPool], caplog: pytest.LogCaptureFixture, wait_until: Wait
) -> None:
    done = threading.Event()

    def work(text: bytes) -> None:
        if text == b"!":
            raise ValueError("a bug")
        done.set()

    one = line(work)
    pool(one)
    one.say(b"!.")
    assert done.wait(60)
    wait_until(lambda: "a bug" in caplog.text, "the log")


def test_a_pool_without_sources_is_used_up_and_keeps_no_descriptor(line: Callable[..., Line]) -> None:
    one = line(lambda _: None)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    readers = ReaderPool("a pool")
    assert readers.add(one)
    readers.remove(one)
    readers.remove(one)
    for thread in threads():
        thread.join(60)
    assert not readers.add(one)
    if before:
        assert len(os.listdir("/proc/self/fd")) == before


def test_work_may_remove_its_own_source_and_add_to_another_pool(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    done = threading.Event()
    second = line(lambda _: done.set())

    def work(_: bytes) -> None:
        readers.remove(first)
        pool(second)
        second.say(b"x")

    first = line(work)
    readers = pool(first)
    first.say(b"x")
    assert done.wait(60)


def test_where_no_thread_can_be_started_one_does_all_until_others_can_be(
    line: Callable[..., Line], pool: Callable[..., ReaderPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[bytes] = []
    done, met = threading.Event(), threading.Barrier(3)

    def work(text: bytes) -> None:
        if text == b"m":
            met.wait(60)
        did.append(text)
        if len(did) == 3:
            done.set()

    one = line(work)
    pool(one)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        one.say(b"abc")
        assert done.wait(60)
        with pytest.raises(OSError, match="can't start new thread"):
            ReaderPool("a pool").add(line(work))
    assert did == [b"a", b"b", b"c"]
    one.say(b"mm")
    met.wait(60)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_child_of_a_fork_leaves_the_pool_to_its_parent(
    line: Callable[..., Line], pool: Callable[..., ReaderPool]
) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def work(text: bytes) -> None:
        heard.append(text)
        done.set()

    one = line(work)
    readers = pool(one)
    child = os.fork()
    if not child:
        readers.leave_to_parent()
        os._exit(0 if not readers.add(one) else 1)
    assert os.waitpid(child, 0)[1] == 0
    one.say(b"x")
    assert done.wait(60)
    assert heard == [b"x"]
