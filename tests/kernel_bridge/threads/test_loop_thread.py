"""The loop thread: awaitables of many threads on one loop, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from kernel_bridge.threads import daemon_executor, loop_thread
from kernel_bridge.threads.loop_thread import LoopThread

TIMEOUT = 30


@pytest.fixture
def loop() -> LoopThread:
    loop = LoopThread()
    yield loop
    loop.close()


def test_threads_share_one_loop_and_wait_at_the_same_time(loop: LoopThread) -> None:
    arrived: list[asyncio.AbstractEventLoop] = []
    everyone = asyncio.Event()

    async def meet(number: int) -> int:
        arrived.append(asyncio.get_running_loop())
        if len(arrived) == 4:
            everyone.set()
        await asyncio.wait_for(everyone.wait(), TIMEOUT)
        return number

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda number: loop.run(meet(number)), range(4))) == [0, 1, 2, 3]
    assert len(set(arrived)) == 1


def test_context_variables_of_the_caller_are_seen(loop: LoopThread) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def look() -> str:
        await asyncio.sleep(0)
        return variable.get()

    variable.set("set")
    assert loop.run(look()) == "set"


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(2), asyncio.CancelledError(), KeyboardInterrupt()])
def test_what_is_raised_reaches_the_caller_and_the_loop_lives_on(loop: LoopThread, error: BaseException) -> None:
    async def fail() -> None:
        raise error

    async def succeed() -> str:
        return "fine"

    with pytest.raises(type(error)):
        loop.run(fail())
    assert loop.run(succeed()) == "fine"


def test_closing_cancels_what_still_waits(loop: LoopThread) -> None:
    waiting = threading.Event()

    async def wait_for_ever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(loop.run, wait_for_ever())
        assert waiting.wait(TIMEOUT)
        loop.close()
        with pytest.raises(asyncio.CancelledError):
            stuck.result(TIMEOUT)


def test_closing_does_not_wait_for_ever_for_what_blocks_the_loop(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_thread, "_CLOSE_SECONDS", 0.01)
    blocked, go_on = threading.Event(), threading.Event()

    async def block() -> str:
        blocked.set()
        assert go_on.wait(TIMEOUT)
        return "done"

    with ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(loop.run, block())
        assert blocked.wait(TIMEOUT)
        loop.close()
        assert "its thread is abandoned" in caplog.text
        with pytest.raises(RuntimeError, match="closed"):
            stuck.result(TIMEOUT)
        go_on.set()


def test_a_closed_loop_runs_nothing_more(loop: LoopThread) -> None:
    loop.close()
    loop.close()

    async def nothing() -> None: ...

    with pytest.raises(RuntimeError, match="closed"):
        loop.run(nothing())


def test_a_loop_that_gets_no_thread_is_started_by_the_next_call(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> int:
        return 1

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            loop.run(nothing())
        loop.close()
    other = LoopThread()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            other.run(nothing())
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(other.run, nothing()).result(TIMEOUT) == 1
    other.close()


def test_a_copy_in_another_process_is_a_loop_of_its_own(loop: LoopThread) -> None:
    async def nothing() -> int:
        return 1

    loop.run(nothing())
    copy = pickle.loads(pickle.dumps(loop))
    assert copy.run(nothing()) == 1
    copy.close()


# cancelling


def test_what_one_thread_waits_for_is_cancelled_and_nothing_else(loop: LoopThread) -> None:
    begun, go_on, ended = threading.Semaphore(0), asyncio.Event(), dict[str, object]()

    async def work() -> str:
        begun.release()
        await go_on.wait()
        return "done"

    def ask(name: str) -> None:
        try:
            ended[name] = loop.run(work())
        except asyncio.CancelledError as error:
            ended[name] = error

    threads = [threading.Thread(target=ask, args=(name,)) for name in ("first", "second")]
    for thread in threads:
        thread.start()
        assert begun.acquire(timeout=TIMEOUT)
    loop.cancel(threads[0])
    threads[0].join(TIMEOUT)
    assert isinstance(ended["first"], asyncio.CancelledError)
    loop.cancel(threads[0])  # it waits for nothing now

    async def finish() -> None:
        go_on.set()

    loop.run(finish())
    threads[1].join(TIMEOUT)
    assert ended["second"] == "done"


def test_what_has_begun_can_be_cancelled_at_once(loop: LoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, looked, ended = threading.Event(), threading.Event(), list[BaseException]()

    async def event_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def work() -> None:
        begun.set()
        await asyncio.sleep(TIMEOUT)

    def ask() -> None:
        try:
            loop.run(work())
        except asyncio.CancelledError as error:
            ended.append(error)

    running = loop.run(event_loop())
    asking = threading.Thread(target=ask)
    plain = running.call_soon_threadsafe

    def slow(*args: Any, **options: Any) -> Any:
        handle = plain(*args, **options)
        if threading.current_thread() is asking:  # the work has begun, and who asked for it is not let run
            assert begun.wait(TIMEOUT)
            looked.wait(0.2)
        return handle

    monkeypatch.setattr(running, "call_soon_threadsafe", slow)
    asking.start()
    assert begun.wait(TIMEOUT)
    loop.cancel(asking)
    looked.set()
    asking.join(TIMEOUT / 2)
    assert len(ended) == 1


def test_a_loop_that_is_blocked_is_left_behind_and_ends_when_it_comes_to_that(
    loop: LoopThread, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(loop_thread, "_BLOCKED_SECONDS", 0.1)
    begun, unblock, ran_on = threading.Event(), threading.Event(), list[threading.Thread]()

    async def block() -> None:
        ran_on.append(threading.current_thread())
        begun.set()
        unblock.wait(TIMEOUT)
        await asyncio.sleep(TIMEOUT)

    def ask() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run(block())

    async def where() -> threading.Thread:
        return threading.current_thread()

    blocked = threading.Thread(target=ask)
    blocked.start()
    assert begun.wait(TIMEOUT)
    loop.cancel(blocked)
    assert "The event loop of async calls is blocked; it is left behind" in caplog.text
    assert loop.run(where()) is not ran_on[0]
    unblock.set()
    blocked.join(TIMEOUT)
    ran_on[0].join(TIMEOUT)
    assert not ran_on[0].is_alive()


def test_what_async_code_hands_to_threads_is_done_on_daemons(loop: LoopThread) -> None:
    def fails() -> None:
        raise ValueError("mine")

    assert loop.run(asyncio.to_thread(threading.current_thread)).daemon
    with pytest.raises(ValueError, match="mine"):
        loop.run(asyncio.to_thread(fails))


def test_a_thread_that_hangs_does_not_keep_the_loop_from_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon_executor, "_SHUTDOWN_SECONDS", 0.1)
    loop, begun, ends = LoopThread(), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        ends.wait(TIMEOUT)

    def ask() -> None:
        with pytest.raises((asyncio.CancelledError, RuntimeError)):
            loop.run(asyncio.to_thread(hang))

    thread = threading.Thread(target=ask)
    thread.start()
    assert begun.wait(TIMEOUT)
    loop.close()
    thread.join(TIMEOUT)
    assert not thread.is_alive()
    ends.set()
