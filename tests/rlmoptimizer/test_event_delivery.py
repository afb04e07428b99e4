"""Delivery of events to functions of the user, without a compile."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.event_delivery import EventDelivery
from rlmoptimizer.events import AgentSubmitted, BudgetCharged, Event, ExamplesScored

SECONDS = 60.0  # only a defect ever waits so long


def charged(units: int) -> BudgetCharged:
    return BudgetCharged(units=units, left=0)


def scored(run_id: str, done: int) -> ExamplesScored:
    return ExamplesScored(run_id, "train", done, 100, 0.5)


class Held:
    """A callback that stays in its first event until it is let go."""

    def __init__(self) -> None:
        self.seen: list[Event] = []
        self.entered, self.go_on = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        self.entered.set()
        assert self.go_on.wait(SECONDS)
        self.seen.append(event)


def test_each_callback_gets_every_event_in_order_on_one_thread_of_its_own() -> None:
    seen: list[list[tuple[Event, int]]] = [[], []]
    delivery = EventDelivery([lambda e: seen[0].append((e, threading.get_ident())),
                              lambda e: seen[1].append((e, threading.get_ident()))])  # fmt: skip
    events = [charged(number) for number in range(200)]
    for event in events:
        delivery(event)
    delivery.close(SECONDS)
    assert [[event for event, _ in of] for of in seen] == [events, events]
    threads = [{thread for _, thread in of} for of in seen]
    assert [len(of) for of in threads] == [1, 1]
    assert len({threading.get_ident()}.union(*threads)) == 3


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_callback_that_raises_is_logged_once_and_gets_nothing_more_while_others_do(
    kind: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Event] = []
    seen: list[Event] = []

    def fails(event: Event) -> None:
        calls.append(event)
        raise kind("not today")

    delivery = EventDelivery([fails, seen.append])
    for number in range(3):
        delivery(charged(number))
    delivery.close(SECONDS)
    assert calls == [charged(0)]
    assert len(seen) == 3
    (said,) = [record.getMessage() for record in caplog.records]
    assert "fails failed on BudgetCharged and gets no further event" in said
    assert "not today" in said
    assert "in fails" in said  # the traceback


def test_a_slow_callback_holds_nobody_up_and_of_a_runs_progress_it_gets_the_newest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    slow = Held()
    delivery = EventDelivery([slow], most_waiting=10)
    delivery(charged(0))
    assert slow.entered.wait(SECONDS)
    for done in range(1, 101):
        delivery(scored("r1", done))
        delivery(scored("r2", done))
    delivery(charged(1))  # none of these calls has waited: the callback is still in its first event
    slow.go_on.set()
    delivery.close(SECONDS)
    assert slow.seen[0] == charged(0)
    assert slow.seen[-3:] == [scored("r1", 100), scored("r2", 100), charged(1)]
    assert len(slow.seen) <= 12
    assert caplog.records == []


def test_it_is_said_how_many_events_found_no_place(caplog: pytest.LogCaptureFixture) -> None:
    slow = Held()
    delivery = EventDelivery([slow], most_waiting=10)
    delivery(charged(0))
    assert slow.entered.wait(SECONDS)
    for number in range(1, 16):
        delivery(charged(number))
    slow.go_on.set()
    delivery.close(SECONDS)
    assert slow.seen == [charged(number) for number in range(11)]
    assert caplog.messages == ["The callback Held did not keep up: 5 events were not delivered to it"]


def test_the_end_waits_only_so_long_for_one_that_hangs_which_gets_nothing_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hangs = Held()
    delivery = EventDelivery([hangs])
    for number in range(4):
        delivery(charged(number))
    assert hangs.entered.wait(SECONDS)
    delivery.close(0.05)
    delivery.close(0.05)
    thread = next(one for one in threading.enumerate() if one.name == "rlmoptimizer-callback")
    hangs.go_on.set()
    thread.join(SECONDS)
    assert hangs.seen == [charged(0)]
    assert caplog.messages == [
        "The callback Held did not keep up: 3 events were not delivered to it, and it has not returned from the last "
        "one that was"
    ]


def test_a_callback_has_the_context_of_whoever_made_the_delivery_and_sets_nothing_in_it() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def callback(event: Event) -> None:
        seen.append(variable.get())
        variable.set("by the callback")

    variable.set("outside")
    delivery = EventDelivery([callback])
    delivery(charged(0))
    delivery(charged(1))
    delivery.close(SECONDS)
    assert seen == ["outside", "by the callback"]
    assert variable.get() == "outside"


def test_a_callback_that_changes_an_events_dict_changes_nobody_elses() -> None:
    event = AgentSubmitted({"topic": "the prompt"})
    seen: list[Event] = []
    delivery = EventDelivery([lambda e: e.prompts.clear(), seen.append])  # type: ignore[union-attr]
    delivery(event)
    delivery.close(SECONDS)
    assert seen == [event]
    assert event.prompts == {"topic": "the prompt"}


def test_a_callback_whose_attributes_fail_is_named_by_its_class(caplog: pytest.LogCaptureFixture) -> None:
    class Odd:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("no attributes")

        def __call__(self, event: Event) -> None:
            raise ValueError("odd")

    with caplog.at_level(logging.WARNING):
        delivery = EventDelivery([Odd()])
        delivery(charged(0))
        delivery.close(SECONDS)
    assert "Odd failed on BudgetCharged" in caplog.text


_PROGRESS: Callable[[int, int], Event] = lambda run, done: scored(f"r{run}", done)  # noqa: E731


@given(
    st.lists(st.one_of(st.builds(charged, st.integers(0, 9)), st.builds(_PROGRESS, st.integers(1, 3), st.integers())))
)
def test_what_is_delivered_late_is_in_order_and_lacks_only_what_newer_progress_has(events: list[Event]) -> None:
    slow = Held()
    others = [event for event in events if not isinstance(event, ExamplesScored)]
    delivery = EventDelivery([slow], most_waiting=len(others) + 4)  # room for all of them, three runs, and one more
    delivery(charged(10))
    assert slow.entered.wait(SECONDS)
    for event in events:
        delivery(event)
    slow.go_on.set()
    delivery.close(SECONDS)
    delivered = slow.seen[1:]
    rest = iter(events)
    assert all(any(event is not None and event == one for one in rest) for event in delivered)  # a subsequence
    assert [event for event in delivered if not isinstance(event, ExamplesScored)] == others
    newest = {event.run_id: event for event in events if isinstance(event, ExamplesScored)}
    last = {event.run_id: event for event in delivered if isinstance(event, ExamplesScored)}
    assert last == newest
