from __future__ import annotations

import logging
import threading

import pytest

from rlmoptimizer.events import BudgetCharged, Emitter, Event


def charged(units: int) -> BudgetCharged:
    return BudgetCharged(units=units, left=0)


@pytest.mark.smoke
def test_every_observer_gets_every_event_in_order() -> None:
    first: list[Event] = []
    second: list[Event] = []
    emitter = Emitter([first.append])
    emitter.emit(charged(1))
    emitter.add(second.append)
    emitter.emit(charged(2))
    assert first == [charged(1), charged(2)]
    assert second == [charged(2)]


def test_an_observer_that_fails_is_logged_once_for_each_kind_and_gets_every_further_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[Event] = []
    calls: list[Event] = []
    failures: list[Exception | None] = [OSError("no space left"), OSError("still none"), ValueError("closed"), None]

    def unsteady(event: Event) -> None:
        calls.append(event)
        if (failure := failures.pop(0)) is not None:
            raise failure

    emitter = Emitter([unsteady, seen.append])
    events = [charged(number) for number in range(len(failures))]
    with caplog.at_level(logging.WARNING):
        for event in events:
            emitter.emit(event)
        told = [record.getMessage() for record in caplog.records if record.name == "rlmoptimizer.events"]
        emitter.close()
        emitter.close()
    assert calls == seen == events
    assert len(told) == 2
    assert "no space left" in told[0]
    assert "closed" in told[1]
    *_, total = [record.getMessage() for record in caplog.records if record.name == "rlmoptimizer.events"]
    assert caplog.text.count("events in all") == 1
    assert total.startswith("Observers failed on 3 events in all: OSError of ")


def test_an_interrupt_in_an_observer_goes_through() -> None:
    def pressed(event: Event) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Emitter([pressed]).emit(charged(1))


def test_observers_are_never_called_by_two_threads_at_once() -> None:
    inside = 0
    seen: list[int] = []

    def observer(event: Event) -> None:
        nonlocal inside
        inside += 1
        seen.append(inside)
        inside -= 1

    emitter = Emitter([observer])
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(60)
        for number in range(200):
            emitter.emit(charged(number))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert seen == [1] * 1600


def test_an_observer_may_emit() -> None:
    seen: list[Event] = []
    emitter = Emitter()

    def echo(event: Event) -> None:
        if event == charged(1):
            emitter.emit(charged(2))

    emitter.add(echo)
    emitter.add(seen.append)
    emitter.emit(charged(1))
    assert seen == [charged(2), charged(1)]
