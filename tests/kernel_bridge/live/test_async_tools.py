"""Async tools: one event loop for all calls of an interpreter, and no wait for a loop that waits itself."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socketserver
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError

from kernel_bridge import KernelInterpreter

SECONDS = 30.0


class _Echo(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            self.wfile.write(line)


def test_a_client_that_is_kept_between_calls_works_in_all_of_them(kernel: KernelInterpreter) -> None:
    connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    loops: list[Any] = []

    async def fetch() -> str:
        loops.append(asyncio.get_running_loop())
        if not connections:
            connections.append(await asyncio.open_connection("127.0.0.1", server.server_address[1]))
        reader, writer = connections[0]
        writer.write(b"ok\n")
        return (await reader.readline()).decode().strip()

    async def hang_up() -> None:
        _, writer = connections[0]
        writer.close()
        await writer.wait_closed()

    kernel.bind(tools={"fetch": fetch, "hang_up": hang_up})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            assert kernel.execute("fetch(), fetch()") == "('ok', 'ok')"
            assert kernel.execute("fetch()") == "ok"
            assert kernel.invoke_tool("fetch", [], {}) == "ok"
            kernel.execute("hang_up()")
            assert len(set(loops)) == 1
        finally:
            server.shutdown()


def test_calls_wait_beside_each_other_and_see_the_context_of_their_cell(kernel: KernelInterpreter) -> None:
    name = contextvars.ContextVar("name", default="none")
    both = asyncio.Event()
    here: list[str] = []

    async def meet() -> list[Any]:
        here.append(name.get())
        if len(here) == 2:
            both.set()
        await asyncio.wait_for(both.wait(), SECONDS)
        return [name.get(), dspy.settings.lm]

    kernel.bind(tools={"meet": meet})
    name.set("the caller's")
    with dspy.context(lm="an LM"):
        answer = kernel.execute(
            "from concurrent.futures import ThreadPoolExecutor\n"
            "with ThreadPoolExecutor(2) as pool: print([f.result() for f in [pool.submit(meet), pool.submit(meet)]])"
        )
    assert answer == str([["the caller's", "an LM"]] * 2)


@pytest.mark.parametrize("collected", [False, True])
def test_the_loop_ends_with_its_interpreter(collected: bool) -> None:
    ended: list[str] = []
    threads: list[threading.Thread] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            ended.append("generator")

    async def wait_for_ever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("task")

    kept: list[Any] = []

    async def begin() -> None:
        threads.append(threading.current_thread())
        kept.append(numbers())
        await kept[0].__anext__()
        kept.append(asyncio.ensure_future(wait_for_ever()))
        await asyncio.sleep(0)

    interpreter = KernelInterpreter({"begin": begin}, confinement="off")
    interpreter.execute("begin()")
    if not collected:
        interpreter.shutdown()
        with pytest.raises(RuntimeError, match="closed"):
            interpreter.invoke_tool("begin", [], {})
    del interpreter
    gc.collect()
    threads[0].join(SECONDS)
    assert not threads[0].is_alive()
    assert ended == ["task", "generator"]


def test_a_shutdown_ends_the_call_that_waits_and_the_cell() -> None:
    waiting = threading.Event()

    async def wait_for_ever() -> None:
        waiting.set()
        await asyncio.Event().wait()

    interpreter = KernelInterpreter({"wait_for_ever": wait_for_ever}, confinement="off")
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(interpreter.execute, "wait_for_ever()")
        assert waiting.wait(SECONDS)
        interpreter.shutdown()
        with pytest.raises(CodeInterpreterError):
            cell.result(SECONDS)


def test_what_is_raised_or_cancelled_in_a_tool_is_the_cells_and_the_next_call_works(kernel: KernelInterpreter) -> None:
    async def cancel_itself() -> None:
        raise asyncio.CancelledError

    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("not there")

    kernel.bind(tools={"cancel_itself": cancel_itself, "fail": fail})
    with pytest.raises(CodeExecutionError, match=r"RuntimeError: cancel_itself\(\) was cancelled"):
        kernel.execute("cancel_itself()")
    with pytest.raises(CodeExecutionError, match="LookupError: not there"):
        kernel.execute("fail()")


def test_a_tool_that_waits_for_the_loop_it_runs_on_is_refused(kernel: KernelInterpreter) -> None:
    async def inner() -> int:
        return 1

    async def outer() -> int:
        return kernel.invoke_tool("inner", [], {})

    kernel.bind(tools={"inner": inner, "outer": outer})
    with pytest.raises(CodeExecutionError, match="cannot wait for more of it from a plain function"):
        kernel.execute("outer()")
    assert kernel.execute("inner()") == "1"


async def _answer() -> str:
    return "an answer"


def _waits(loop: asyncio.AbstractEventLoop) -> str:
    return asyncio.run_coroutine_threadsafe(_answer(), loop).result()


def _waits_a_while(loop: asyncio.AbstractEventLoop) -> str:
    return asyncio.run_coroutine_threadsafe(_answer(), loop).result(10 * SECONDS)


async def _awaits(loop: asyncio.AbstractEventLoop) -> str:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_answer(), loop))


async def _waits_in_a_thread(loop: asyncio.AbstractEventLoop) -> str:
    return await asyncio.to_thread(_waits, loop)


async def _awaits_a_future(loop: asyncio.AbstractEventLoop) -> str:
    return await loop.create_future()


@pytest.mark.parametrize("wait", [_waits, _waits_a_while, _awaits, _waits_in_a_thread, _awaits_a_future])
def test_a_tool_that_waits_for_the_loop_that_waits_for_it_is_refused(
    kernel: KernelInterpreter, wait: Callable[..., Any]
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        before = loop.call_soon_threadsafe
        kernel.bind(tools={"wait": lambda: wait(loop)})
        refusal = "different loop" if wait is _awaits_a_future else "waits for an event loop that itself waits"
        with pytest.raises(CodeExecutionError, match=refusal):
            kernel.execute("wait()")
        assert loop.call_soon_threadsafe == before
        if wait is not _awaits_a_future:
            assert await asyncio.to_thread(kernel.execute, "wait()") == "an answer"

    asyncio.run(main())


def test_a_tool_may_hand_something_to_the_loop_that_waits_for_it_without_waiting(kernel: KernelInterpreter) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[str] = []
        handed: list[Any] = []

        def tell() -> None:
            loop.call_soon_threadsafe(told.append, "plain")
            handed.append(asyncio.run_coroutine_threadsafe(_answer(), loop))
            handed[0].add_done_callback(lambda done: told.append(done.result()))

        kernel.bind(tools={"tell": tell})
        kernel.execute("tell()")
        assert await asyncio.wrap_future(handed[0]) == "an answer"
        assert told == ["plain", "an answer"]

    asyncio.run(main())


def test_a_tool_that_shuts_down_as_it_is_cancelled_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("kernel_bridge.session._RUNNER_SECONDS", 60.0)  # more than the end of an event loop may take
    waiting, ended = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        waiting.set()
        try:
            await asyncio.Event().wait()
        finally:
            interpreter.shutdown()
            ended.set()

    interpreter = KernelInterpreter({"wait_for_ever": wait_for_ever}, confinement="off")
    with ThreadPoolExecutor(1) as pool:
        cell = pool.submit(interpreter.execute, "wait_for_ever()")
        assert waiting.wait(SECONDS)
        interpreter.shutdown()
        assert ended.wait(SECONDS)
        with pytest.raises(CodeInterpreterError):
            cell.result(SECONDS)
    assert "abandoned" not in caplog.text
