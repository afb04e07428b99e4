"""The clock of a cell: what of its time is its own, whoever tells it what, from how many threads."""

from __future__ import annotations

import contextlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge import Limits
from kernel_bridge.live.cell_clock import CellClock

CONSOLE_SECONDS = 600.0


class Time:
    """Seconds and CPU seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = self.cpu = 0.0

    def clock(self) -> CellClock:
        made = CellClock(Limits(cell_seconds=10, cell_total_seconds=100_000), now=lambda: self.now)
        made.measure(lambda: self.cpu)
        made.open_cell()
        return made

    def pass_by(self, seconds: float, cpu: float = 0.0) -> None:
        self.now += seconds
        self.cpu += cpu


def test_two_threads_that_see_the_console_gone_at_the_same_time_end_it_once() -> None:
    time, both = Time(), threading.Barrier(2)
    clock = time.clock()
    other = threading.Thread(target=clock.excused_seconds)

    def cpu() -> float:
        """Let the other thread come as far as it can while this one is in the middle."""
        if armed and threading.current_thread() is not other:
            other.start()
        if armed:
            with contextlib.suppress(threading.BrokenBarrierError):
                both.wait(0.5)
        return 0.0

    armed = False
    clock.measure(cpu)
    clock.note_console(True)
    time.pass_by(CONSOLE_SECONDS + 1)
    armed = True
    clock.note_console(False)
    other.join()
    armed = False
    assert clock.excused_seconds() == CONSOLE_SECONDS
    time.pass_by(5)
    assert clock.excused_seconds() == CONSOLE_SECONDS  # nothing is in flight
    clock.begin_call()
    time.pass_by(3)
    clock.end_call()
    time.pass_by(5)
    assert clock.excused_seconds() == CONSOLE_SECONDS + 3


def test_calls_are_excused_but_for_the_cpu_time_beside_them() -> None:
    time = Time()
    clock = time.clock()
    time.pass_by(1, cpu=1)
    clock.begin_call()
    time.pass_by(4, cpu=1)
    clock.begin_call()
    time.pass_by(2)
    clock.end_call()
    clock.end_call()
    assert clock.excused_seconds() == 5
    assert clock.left() == (8, "ran longer than 10 s of its own time")
    clock.begin_call()
    time.pass_by(1, cpu=3)  # on three processors
    assert clock.excused_seconds() == 5
    time.pass_by(4)
    assert clock.excused_seconds() == 5 + 2


def test_a_console_is_believed_for_so_long_in_each_cell() -> None:
    time = Time()
    clock = time.clock()
    for _ in range(100):
        clock.note_console(True)
        time.pass_by(10, cpu=10)
        clock.note_console(False)
        clock.note_console(True)
    assert clock.excused_seconds() == CONSOLE_SECONDS
    clock.open_cell()
    clock.note_console(True)
    time.pass_by(7)
    assert clock.excused_seconds() == 7


def test_what_ran_before_the_cell_is_not_of_it() -> None:
    time = Time()
    clock = time.clock()
    clock.begin_call()
    time.pass_by(50)
    clock.open_cell()
    assert clock.excused_seconds() == 0
    time.pass_by(3, cpu=2)
    assert clock.left() == (8, "ran longer than 10 s of its own time")
    time.pass_by(99_990)
    assert clock.left() == (7, "took longer than 100000 s, with the host tools that it called")


_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "console", "no console", "cell", "look"]),
        st.floats(0, 1000),
        st.floats(0, 4000),
    ),
    max_size=60,
)


@given(_EVENTS)
@pytest.mark.smoke
def test_what_is_excused_is_never_negative_and_never_more_than_the_whole(
    events: list[tuple[str, float, float]],
) -> None:
    time = Time()
    clock, started, calls = time.clock(), 0.0, 0
    for kind, seconds, cpu in events:
        time.pass_by(seconds, cpu)
        if kind == "begin":
            clock.begin_call()
            calls += 1
        elif kind == "end" and calls:
            clock.end_call()
            calls -= 1
        elif kind.endswith("console"):
            clock.note_console(kind == "console")
        elif kind == "cell":
            clock.open_cell()
            started = time.now
        assert 0 <= clock.excused_seconds() <= (time.now - started) * (1 + 1e-9)
