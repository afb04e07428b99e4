"""Fan-out: every item once, in any number of workers, and no one left waiting."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlmoptimizer.fan_out import ExecutorFanOut, FanOut, ThreadFanOut

TIMEOUT = 30


def never() -> bool:
    return False


def over(
    kind: str, pool: Executor, function: Callable[[Any], Any], items: list[Any], width: int = 3, *halts: threading.Event
) -> FanOut[Any, Any]:
    if kind == "threads":
        return ThreadFanOut(function, items, width=width, halts=halts, pool=pool, is_crowded=never)
    return ExecutorFanOut(function, items, width=width, halts=halts, executor=pool)


def collect(fan_out: FanOut[Any, Any]) -> list[tuple[int, Any]]:
    outcomes: list[tuple[int, Any]] = []
    try:
        fan_out.start()
        while batch := fan_out.next_batch():
            outcomes += batch
    finally:
        fan_out.stop()
    return outcomes


KINDS = ["threads", "executor"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None)
@given(items=st.lists(st.integers(), max_size=60), width=st.integers(1, 9), threads=st.integers(1, 5))
def test_every_item_gives_one_outcome_under_its_index(kind: str, items: list[int], width: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        outcomes = collect(over(kind, pool, lambda item: -item, items, width))
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

    with ThreadPoolExecutor(4) as pool:
        outcomes = collect(over(kind, pool, function, list(range(31)), width, halt))
    assert sorted(item for _, item in outcomes) == sorted(begun)
    assert at in begun
    assert len(late) < 4  # one for each other thread, which had taken it already


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_function_raises_is_raised_to_the_caller(kind: str) -> None:
    def function(item: int) -> int:
        if item == 5:
            raise SystemExit("a bug of ours")
        return item

    with ThreadPoolExecutor(2) as pool, pytest.raises(SystemExit, match="a bug of ours"):
        collect(over(kind, pool, function, list(range(1000))))


@pytest.mark.parametrize("kind", KINDS)
def test_outcomes_come_while_others_are_still_under_way(kind: str) -> None:
    seen = threading.Event()

    def function(item: int) -> int:
        if item == 1:
            assert seen.wait(TIMEOUT)
        return item

    with ThreadPoolExecutor(2) as pool:
        fan_out = over(kind, pool, function, [0, 1])
        fan_out.start()
        assert fan_out.next_batch() == [(0, 0)]
        seen.set()
        assert fan_out.next_batch() == [(1, 1)]
        assert fan_out.next_batch() == []
        fan_out.stop()


def test_fan_outs_on_one_pool_take_turns() -> None:
    order: list[str] = []
    first_is_inside, go_on = threading.Event(), threading.Event()

    def function(item: str) -> str:
        if item == "a1":
            first_is_inside.set()
            assert go_on.wait(TIMEOUT)
        order.append(item)
        return item

    with ThreadPoolExecutor(1) as pool:
        options: dict[str, Any] = {"width": 1, "halts": (), "pool": pool, "is_crowded": lambda: True}
        first = ThreadFanOut(function, ["a1", "a2"], **options)
        second = ThreadFanOut(function, ["b1", "b2"], **options)
        first.start()
        assert first_is_inside.wait(TIMEOUT)
        second.start()
        go_on.set()
        for fan_out in (first, second):
            while fan_out.next_batch():
                pass
            fan_out.stop()
    assert order == ["a1", "b1", "a2", "b2"]


def test_a_pool_that_is_shut_down_meanwhile_is_used_to_the_end_by_the_threads_it_has() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def function(item: int) -> int:
        inside.set()
        assert go_on.wait(TIMEOUT)
        return item

    pool = ThreadPoolExecutor(1)
    fan_out = ThreadFanOut(function, [0, 1, 2], width=1, halts=(), pool=pool, is_crowded=lambda: True)
    fan_out.start()
    assert inside.wait(TIMEOUT)
    pool.shutdown(wait=False)
    go_on.set()
    outcomes: list[Any] = []
    while batch := fan_out.next_batch():
        outcomes += batch
    assert outcomes == [(0, 0), (1, 1), (2, 2)]
    pool.shutdown()


def test_items_that_wait_in_an_executor_are_given_up_at_a_halt() -> None:
    halt, inside, go_on = threading.Event(), threading.Event(), threading.Event()

    def function(item: int) -> int:
        inside.set()
        assert go_on.wait(TIMEOUT)
        return item

    with ThreadPoolExecutor(1) as pool:
        fan_out = ExecutorFanOut(function, list(range(9)), width=5, halts=(halt,), executor=pool)
        fan_out.start()
        assert inside.wait(TIMEOUT)
        halt.set()
        go_on.set()
        assert [outcome for batch in iter(fan_out.next_batch, []) for outcome in batch] == [(0, 0)]
