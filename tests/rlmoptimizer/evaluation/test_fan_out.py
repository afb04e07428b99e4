"""Fan-out: every item once, in any number of workers, and no one left waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernel_bridge.threads.daemon_pool import DaemonPool
from rlmoptimizer.evaluation.fan_out import FanOut, FanOutJob, ItemAbandoned, ThreadFanOut
from rlmoptimizer.evaluation.workers.executor_fan_out import ExecutorFanOut
from rlmoptimizer.evaluation.workers.transport import HereTransport
from rlmoptimizer.evaluation.workers.worker_pool import WorkerPool

TIMEOUT = 100


def never() -> bool:
    return False


@contextmanager
def a_pool(kind: str, threads: int) -> Iterator[Any]:
    """What the fan-outs of a kind run on."""
    if kind == "executor":
        with ThreadPoolExecutor(threads) as executor:
            yield executor
        return
    pool = DaemonPool(threads, "test")
    try:
        yield pool
    finally:
        pool.close()
        assert pool.join(TIMEOUT) == 0


def over(
    kind: str,
    pool: Any,
    function: Callable[[Any], Any],
    items: list[Any],
    deliver: Callable[[list[tuple[int, Any]]], None],
    width: int = 3,
    *halts: threading.Event,
) -> FanOut[Any, Any]:
    work = FanOutJob(items, deliver, width, halts)
    if kind == "threads":
        return ThreadFanOut(work, function, pool, never)
    return ExecutorFanOut(work, WorkerPool(pool), HereTransport(function))


def collect(
    kind: str, pool: Any, function: Callable[[Any], Any], items: list[Any], width: int = 3, *halts: threading.Event
) -> list[tuple[int, Any]]:
    outcomes: list[tuple[int, Any]] = []
    fan_out = over(kind, pool, function, items, outcomes.extend, width, *halts)
    try:
        fan_out.start()
        assert fan_out.wait()
    finally:
        fan_out.stop()
    return outcomes


KINDS = ["threads", "executor"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(items=st.lists(st.integers(), max_size=60), width=st.integers(1, 9), threads=st.integers(1, 5))
def test_every_item_gives_one_outcome_under_its_index(kind: str, items: list[int], width: int, threads: int) -> None:
    with a_pool(kind, threads) as pool:
        outcomes = collect(kind, pool, lambda item: -item, items, width)
    assert sorted(outcomes) == [(index, -item) for index, item in enumerate(items)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(at=st.integers(0, 30), width=st.integers(1, 5))
def test_a_halt_lets_nothing_more_begin_and_ends(kind: str, at: int, width: int) -> None:
    halt = threading.Event()
    begun: list[int] = []
    late: list[int] = []

    def function(item: int) -> int:
        begun.append(item)
        if halt.is_set():
            late.append(item)
        if item == at:
            halt.set()
        return item

    with a_pool(kind, 4) as pool:
        outcomes = collect(kind, pool, function, list(range(31)), width, halt)
    assert sorted(item for _, item in outcomes) == sorted(begun)
    assert at in begun
    assert len(late) < 4  # one for each other thread, which had taken it already


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_function_raises_is_raised_to_the_caller(kind: str) -> None:
    def function(item: int) -> int:
        if item == 5:
            raise SystemExit("a bug of ours")
        return item

    with a_pool(kind, 2) as pool, pytest.raises(SystemExit, match="a bug of ours"):
        collect(kind, pool, function, list(range(1000)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_delivery_raises_ends_everything_without_waiting_for_what_is_under_way(kind: str) -> None:
    go_on, begun = threading.Event(), threading.Event()

    def function(item: int) -> int:
        if item == 1:
            begun.set()
            assert go_on.wait(TIMEOUT)
        elif item == 0:
            assert begun.wait(TIMEOUT)
        return item

    def deliver(batch: list[tuple[int, Any]]) -> None:
        raise OSError("disk full")

    with a_pool(kind, 2) as pool:
        fan_out = over(kind, pool, function, list(range(100)), deliver, 2)
        fan_out.start()
        with pytest.raises(OSError, match="disk full"):
            fan_out.wait()
        fan_out.stop()
        go_on.set()


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_are_delivered_while_others_are_still_under_way(kind: str) -> None:
    seen = threading.Event()
    batches: list[list[tuple[int, Any]]] = []

    def function(item: int) -> int:
        if item == 1:
            assert seen.wait(TIMEOUT)
        return item

    def deliver(batch: list[tuple[int, Any]]) -> None:
        batches.append(batch)
        seen.set()

    with a_pool(kind, 2) as pool:
        fan_out = over(kind, pool, function, [0, 1], deliver)
        fan_out.start()
        assert fan_out.wait()
        fan_out.stop()
    assert batches == [[(0, 0)], [(1, 1)]]


@pytest.mark.parametrize("kind", KINDS)
def test_an_outcome_that_comes_during_a_delivery_is_delivered_after_it(kind: str) -> None:
    others_came, delivering = threading.Event(), threading.Event()
    came: list[int] = []
    batches: list[list[tuple[int, Any]]] = []

    def function(item: int) -> int:
        if item:
            assert delivering.wait(TIMEOUT)
            came.append(item)
            if len(came) == 2:
                others_came.set()
        return item

    def deliver(batch: list[tuple[int, Any]]) -> None:
        delivering.set()
        assert others_came.wait(TIMEOUT)
        batches.append(batch)

    with a_pool(kind, 3) as pool:
        fan_out = over(kind, pool, function, [0, 1, 2], deliver)
        fan_out.start()
        assert fan_out.wait()
        fan_out.stop()
    assert batches[0] == [(0, 0)]
    assert sorted(pair for batch in batches for pair in batch) == [(0, 0), (1, 1), (2, 2)]


def test_a_worker_begins_its_next_item_while_its_last_outcome_is_still_being_delivered() -> None:
    begun, delivered = [threading.Event() for _ in range(3)], list[tuple[int, int]]()

    def function(item: int) -> int:
        begun[item].set()
        return item

    def deliver(batch: list[tuple[int, int]]) -> None:
        assert begun[2].wait(TIMEOUT)  # a disk that takes long
        delivered.extend(batch)

    with a_pool("threads", 1) as pool:
        fan_out = over("threads", pool, function, [0, 1, 2], deliver, 1)
        fan_out.start()
        assert fan_out.wait(TIMEOUT)
        fan_out.abandon(TIMEOUT)
    assert delivered == [(0, 0), (1, 1), (2, 2)]
    assert "rlmoptimizer-results" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_that_is_given_up_has_no_outcome_and_is_no_failure(kind: str) -> None:
    def function(item: int) -> int:
        if item == 3:
            raise ItemAbandoned
        return item

    with a_pool(kind, 2) as pool:
        assert sorted(collect(kind, pool, function, list(range(6)))) == [(n, n) for n in range(6) if n != 3]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_delivered_once_everything_was_abandoned(kind: str) -> None:
    inside, go_on = threading.Event(), threading.Event()
    outcomes: list[Any] = []

    def function(item: int) -> int:
        inside.set()
        assert go_on.wait(TIMEOUT)
        return item

    with a_pool(kind, 1) as pool:
        fan_out = over(kind, pool, function, [0, 1], outcomes.extend, 1)
        fan_out.start()
        assert inside.wait(TIMEOUT)
        assert not fan_out.wait(0.0)
        fan_out.abandon()
        assert not fan_out.wait()
        go_on.set()
    assert outcomes == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_abandoned_delivery_that_hangs_is_not_waited_for(kind: str) -> None:
    delivering, go_on = threading.Event(), threading.Event()

    def deliver(batch: list[tuple[int, Any]]) -> None:
        delivering.set()
        assert go_on.wait(TIMEOUT)

    with a_pool(kind, 2) as pool:
        fan_out = over(kind, pool, lambda item: item, [1, 2], deliver)
        fan_out.start()
        waiting = threading.Thread(target=fan_out.wait)
        waiting.start()
        assert delivering.wait(TIMEOUT)
        assert not fan_out.wait(0.0)
        fan_out.abandon(0.0)
        go_on.set()
        waiting.join(TIMEOUT)
        assert not waiting.is_alive()


@pytest.mark.parametrize("is_stopped", [True, False])
def test_a_halt_ends_what_no_worker_has_begun(is_stopped: bool) -> None:
    halt, occupied, leave = threading.Event(), threading.Event(), threading.Event()

    def occupy() -> None:
        occupied.set()
        leave.wait(TIMEOUT)

    with a_pool("threads", 1) as pool:
        pool.submit(occupy)
        assert occupied.wait(TIMEOUT)
        fan_out = over("threads", pool, str, [1, 2], pytest.fail, 1, halt)
        others = set(threading.enumerate())
        fan_out.start()
        (deliverer,) = set(threading.enumerate()) - others
        try:
            if is_stopped:
                fan_out.stop()
            else:
                halt.set()
                assert fan_out.wait(TIMEOUT)
            deliverer.join(TIMEOUT)
            assert not deliverer.is_alive()
            assert fan_out.wait(TIMEOUT)
        finally:
            leave.set()


def test_fan_outs_on_one_pool_take_turns() -> None:
    order: list[str] = []
    first_is_inside, go_on = threading.Event(), threading.Event()

    def function(item: str) -> str:
        if item == "a1":
            first_is_inside.set()
            assert go_on.wait(TIMEOUT)
        order.append(item)
        return item

    with a_pool("threads", 1) as pool:
        first, second = (
            ThreadFanOut(FanOutJob(items, lambda batch: None, 1), function, pool, lambda: True)
            for items in (["a1", "a2"], ["b1", "b2"])
        )
        first.start()
        assert first_is_inside.wait(TIMEOUT)
        second.start()
        go_on.set()
        for fan_out in (first, second):
            assert fan_out.wait()
            fan_out.stop()
    assert order == ["a1", "b1", "a2", "b2"]


def test_a_pool_that_is_closed_meanwhile_is_used_to_the_end_by_the_threads_it_has() -> None:
    inside, go_on = threading.Event(), threading.Event()
    outcomes: list[Any] = []

    def function(item: int) -> int:
        inside.set()
        assert go_on.wait(TIMEOUT)
        return item

    with a_pool("threads", 1) as pool:
        fan_out = ThreadFanOut(FanOutJob([0, 1, 2], outcomes.extend, 1), function, pool, lambda: True)
        fan_out.start()
        assert inside.wait(TIMEOUT)
        pool.close()
        go_on.set()
        assert fan_out.wait()
    assert outcomes == [(0, 0), (1, 1), (2, 2)]


def test_items_that_wait_in_an_executor_are_given_up_at_a_halt() -> None:
    halt, inside, go_on = threading.Event(), threading.Event(), threading.Event()
    outcomes: list[Any] = []

    def function(item: int) -> int:
        inside.set()
        assert go_on.wait(TIMEOUT)
        return item

    with ThreadPoolExecutor(1) as pool:
        fan_out = over("executor", pool, function, list(range(9)), outcomes.extend, 5, halt)
        fan_out.start()
        assert inside.wait(TIMEOUT)
        halt.set()
        go_on.set()
        assert fan_out.wait()
    assert outcomes == [(0, 0)]


# The pool.


def test_a_task_that_fails_is_logged_and_its_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()
    with a_pool("threads", 1) as pool:
        pool.submit(lambda: 1 / 0)
        pool.submit(done.set)
        assert done.wait(TIMEOUT)
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(RuntimeError, match="the pool is closed"):
        pool.submit(done.set)


def test_threads_that_are_still_at_work_are_counted_not_waited_for() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def task() -> None:
        inside.set()
        assert go_on.wait(TIMEOUT)

    pool = DaemonPool(2, "test")
    pool.submit(task)
    assert inside.wait(TIMEOUT)
    pool.close()
    assert pool.join(0.0) == 1
    go_on.set()
    assert pool.join() == 0
