"""The account of what is in flight: bounded bytes, nobody waits for ever, what is alone always fits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kernel_bridge.live.calls_in_flight import CallsInFlight, CallSize

LIMIT = 100 * 2**20
MANY = 10**6
Wait = Callable[..., None]


def begun(account: CallsInFlight, name: str = "tool", size: int = 10) -> CallSize:
    call = CallSize(name, size, 1)
    assert account.begin(call)
    return call


def test_calls_wait_for_room_for_the_answers_that_their_tool_gives() -> None:
    account, lock = CallsInFlight(LIMIT, MANY), threading.Lock()
    running = most = 0

    def run(size: int) -> bool:
        nonlocal running, most
        call = begun(account)
        with lock:
            running += 1
            most = max(most, running)
        sent = account.answer(call, size)
        with lock:
            running -= 1
        account.end(call)
        return sent

    assert run(LIMIT // 3)
    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(run, [LIMIT // 3] * 300))
    assert most <= 3
    call = begun(account)
    assert account.answer(call, LIMIT)  # nothing is held any more
    account.end(call)


def test_small_calls_wait_for_no_large_answer() -> None:
    account = CallsInFlight(LIMIT, MANY)
    large = begun(account, "large")
    assert account.answer(large, LIMIT)
    small = begun(account, "small")
    assert account.answer(small, 10)
    account.end(small)
    account.end(large)


def test_what_would_wait_beyond_the_limit_is_refused_and_the_others_get_their_turn(wait_until: Wait) -> None:
    account = CallsInFlight(LIMIT, MANY)
    first, *others, last = [begun(account) for _ in range(4)]
    assert account.answer(first, LIMIT)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(account.answer, call, LIMIT // 2) for call in others]
        wait_until(lambda: account._waiting == LIMIT, "both wait")
        assert not account.answer(last, 2**20)
        account.end(last)
        account.end(first)
        assert all(future.result(60) for future in waiting)
    for call in others:
        account.end(call)
    assert (account._bytes, account._parts, account._expected, account._sending, account._waiting) == (0, 0, 0, 0, 0)


def test_a_call_that_ends_without_an_answer_gives_back_no_more_than_it_took() -> None:
    account = CallsInFlight(LIMIT, MANY)
    first = begun(account)
    assert account.answer(first, LIMIT // 2)
    account.end(first)
    account.end(begun(account))  # of which as large an answer was expected
    assert (account._bytes, account._parts, account._expected, account._sending) == (0, 0, 0, 0)


def test_calls_are_bounded_by_their_bytes_and_parts(wait_until: Wait) -> None:
    for second in (CallSize("tool", LIMIT, 1), CallSize("tool", 10, MANY)):
        account = CallsInFlight(LIMIT, MANY)
        first = begun(account)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(account.begin, second)
            with pytest.raises(TimeoutError):
                waiting.result(0.05)
            account.end(first)
            assert waiting.result(60)


def test_what_is_larger_than_the_limit_passes_alone() -> None:
    account = CallsInFlight(LIMIT, MANY)
    call = begun(account, size=10 * LIMIT)
    assert account.answer(call, 10 * LIMIT)
    account.end(call)
    assert account.answer(begun(account), 1)


def test_the_end_wakes_everybody(wait_until: Wait) -> None:
    account = CallsInFlight(LIMIT, MANY)
    first, second = begun(account), begun(account)
    assert account.answer(first, LIMIT)
    with ThreadPoolExecutor(2) as pool:
        sending = pool.submit(account.answer, second, LIMIT)
        wait_until(lambda: account._waiting > 0, "it waits")
        beginning = pool.submit(account.begin, CallSize("tool", LIMIT, 1))
        account.close()
        assert sending.result(60)
        assert not beginning.result(60)
