"""Many kernels in one process: the threads that they share serve each, whatever another one does, and end with them."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from dspy.primitives.code_interpreter import CodeInterpreterError

from kernel_bridge import KernelInterpreter, KernelSession, Limits, ProtocolViolation
from kernel_bridge.live.tool_server import ToolServer

Wait = Callable[..., None]
SHARED = ("kernel tools ", "kernel watchdog ", "kernel checkpoints ")

CALLS_AT_ONCE = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor({threads}) as pool: answers = list(pool.map({tool}, range({calls})))
del pool  # no checkpoint has it, which would be told
"""


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(SHARED)]


@pytest.fixture(autouse=True)
def _leaves_no_thread(wait_until: Wait) -> Iterator[None]:
    yield
    wait_until(lambda: not threads(), "the end of the shared threads")


def plain(tools: dict[str, Callable[..., Any]] | None = None, **options: Any) -> KernelInterpreter:
    return KernelInterpreter(tools, confinement="off", **options)


def test_ten_kernels_share_a_few_threads_and_each_gets_its_own_answers() -> None:
    def work(number: int) -> str:
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(plain({"whose": lambda call: [number, call]}))
            one.execute(CALLS_AT_ONCE.format(threads=4, tool="whose", calls=100))
            ready.wait(120)
            if number == 0:
                shared.extend(threads())
            ready.wait(120)
            return str(one.execute(f"answers == [[{number}, call] for call in range(100)]"))

    shared: list[str] = []
    ready = threading.Barrier(10)
    with ThreadPoolExecutor(10) as pool:
        assert set(pool.map(work, range(10))) == {"True"}
    assert sum(name.startswith("kernel watchdog") for name in shared) < 10  # two, where no look takes long
    assert sum(name.startswith("kernel tools") for name in shared) >= 1


def test_a_kernel_whose_calls_never_return_keeps_no_other_waiting() -> None:
    entered, gate = threading.Semaphore(0), threading.Event()

    def hang(_: int) -> bool:
        entered.release()
        return gate.wait(120)

    flooding = CALLS_AT_ONCE.format(threads=40, tool="hang", calls=40)
    with (
        plain({"hang": hang}, limits=Limits(calls_in_flight=8)) as one,
        plain({"double": lambda number: 2 * number}) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        flooded = pool.submit(one.execute, flooding)
        for _ in range(8):
            assert entered.acquire(timeout=120)
        assert not entered.acquire(blocking=False)
        assert other.execute("sum(double(number=i) for i in range(50))") == "2450"
        gate.set()
        flooded.result(120)
        assert one.execute("answers == [True] * 40") == "True"


def test_a_tool_that_was_brief_and_hangs_keeps_no_other_kernel_waiting() -> None:
    gate, entered = threading.Event(), threading.Event()

    def sometimes(hang: bool) -> bool:
        if hang:
            entered.set()
            return gate.wait(120)
        return False

    with (
        plain({"sometimes": sometimes}) as one,
        plain({"double": lambda number: 2 * number}) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        one.execute("for _ in range(50): sometimes(hang=False)")
        hung = pool.submit(one.execute, "sometimes(hang=True)")
        assert entered.wait(120)
        assert other.execute("[double(number=i) for i in range(3)]") == "[0, 2, 4]"
        gate.set()
        assert hung.result(120) == "True"


def test_a_kernel_that_breaks_the_protocol_ends_only_its_own_session() -> None:
    called: list[Any] = []
    forged = "get_ipython().kernel.channel._out.send([b'junk', b''])\nimport time; time.sleep(60)"
    with (
        KernelSession({"f": called.append}, confinement="off") as liar,
        plain({"double": lambda number: 2 * number}) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        served = pool.submit(other.execute, "sum(double(number=i) for i in range(300))")
        with pytest.raises(ProtocolViolation):
            liar.run(forged)
        assert served.result(120) == "89700"
        assert other.execute("double(number=4)") == "8"
        assert called == []


def test_messages_without_end_keep_no_other_kernel_from_its_turn() -> None:
    # What is no call has no answer, so nothing slows it down.
    flood = """
import msgspec, zmq
heads = [msgspec.msgpack.encode(["foreign", running]) for running in (True, False)]
sending = get_ipython().kernel.channel._out
begun()
while not over():
    for _ in range(200):
        for head in heads: sending.send([head, b""])
        while not sending.flush(): zmq.zmq_poll([(sending.fd, zmq.POLLOUT)], 1000)
"""
    begun, over = threading.Event(), threading.Event()
    with (
        plain({"begun": begun.set, "over": over.is_set}) as one,
        plain({"double": lambda number: 2 * number}) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        flooded = pool.submit(one.execute, flood)
        assert begun.wait(120)
        assert other.execute("sum(double(number=i) for i in range(100))") == "9900"
        over.set()
        flooded.result(120)


@pytest.mark.parametrize("sent", [b"\0", b"\1\x10abc", b"\2" + bytes(7)])
def test_a_part_of_a_message_keeps_no_thread_busy(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[ToolServer] = []

    def counted(server: ToolServer) -> Any:
        reads.append(server)
        return read(server)

    read = ToolServer.read
    monkeypatch.setattr(ToolServer, "read", counted)
    with plain() as kernel:
        kernel.execute("import os, time")
        before = len(reads)
        kernel.execute("os.write(get_ipython().kernel.channel._out.fd, sent)\ntime.sleep(0.5)", {"sent": sent})
        assert len(reads) - before < 10


def test_tools_run_kernels_whose_tools_run_kernels_all_at_once() -> None:
    def deeper(level: int) -> int:
        if not level:
            return 1
        with plain({"deeper": deeper}) as inner:
            return int(inner.execute(f"deeper({level - 1}) + deeper({level - 1})"))

    with plain({"deeper": deeper}) as outer:
        outer.execute(CALLS_AT_ONCE.format(threads=3, tool="lambda _: deeper(2)", calls=3))
        assert outer.execute("answers") == "[4, 4, 4]"


def test_a_tool_may_end_the_session_it_belongs_to_or_another_one() -> None:
    with plain() as own, plain() as other:
        own.tools = {"end": lambda which: (own if which == "own" else other).shutdown()}
        assert other.execute("1") == "1"
        assert own.execute("for _ in range(20): end(which='other')") is None
        with pytest.raises(CodeInterpreterError, match="shut down"):
            other.execute("1")
        with contextlib.suppress(CodeInterpreterError):  # unless the kernel has answered before it was killed
            own.execute("end(which='own')")
        with pytest.raises(CodeInterpreterError, match="shut down"):
            own.execute("1")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_child_of_a_fork_has_kernels_of_its_own_beside_its_parents() -> None:
    gate, entered = threading.Event(), threading.Event()
    with plain({"wait": lambda: (entered.set(), gate.wait(120))[1]}) as parents, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(parents.execute, "wait()")
        assert entered.wait(120)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            said = b"failed"
            with contextlib.suppress(BaseException), plain({"double": lambda number: 2 * number}) as own:
                said = str(own.execute("sum(double(number=i) for i in range(4))")).encode()
            os.write(writing, said + str(threads()).encode() if threads() else said)
            os._exit(0)
        os.close(writing)
        with open(reading, "rb") as answer:
            assert answer.read().startswith(b"12")
        assert os.waitpid(child, 0)[1] == 0
        gate.set()
        assert waiting.result(120) == "True"
        assert parents.execute("6 * 7") == "42"


def _usage(runtime: Path) -> dict[str, Any]:
    gc.collect()
    me = psutil.Process()
    return {
        "descriptors": me.num_fds() if hasattr(me, "num_fds") else 0,
        "children": len(me.children(recursive=True)),
        "sessions": len(list(runtime.iterdir())),
        "threads": threads(),
    }


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts descriptors and descendants as Linux has them")
def test_a_storm_of_kernels_that_end_in_every_way_leaves_nothing(wait_until: Wait) -> None:
    ways = ["shutdown", "killed", "exits", "dropped"] * 3
    random.Random(1).shuffle(ways)

    def live(way: str) -> None:
        one = plain({"double": lambda number: 2 * number}, runtime_dir=runtime, restarts=0)
        assert one.execute("double(number=1)") == "2"
        if way == "killed":
            psutil.Process(one._session._kernel.process.pid).kill()  # type: ignore[union-attr]
        elif way == "exits":
            with pytest.raises(CodeInterpreterError):
                one.execute("import os; os._exit(3)")
        elif way == "dropped":
            del one
            return
        one.shutdown()

    with tempfile.TemporaryDirectory() as place:
        runtime = Path(place)
        live("shutdown")  # what is loaded and made at the first time stays
        wait_until(lambda: not threads(), "the end of the shared threads")
        before = _usage(runtime)
        for wave in range(4):
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(live, ways[3 * wave : 3 * wave + 3]))
        wait_until(lambda: _usage(runtime) == before, "the end of all that there was of them")
