from __future__ import annotations

import logging
import threading

import pytest

from rlmoptimizer import SelectionError
from rlmoptimizer.agent.call_gate import CallGate, OptimizationStopped


@pytest.mark.smoke
def test_what_the_agent_can_mend_passes_as_it_is() -> None:
    gate = CallGate()
    with pytest.raises(SelectionError, match="no such id"), gate.passing():
        raise SelectionError("no such id")
    assert gate.failure is None
    with gate.passing():
        pass


def test_anything_else_closes_the_gate_and_is_kept_from_the_agent() -> None:
    told: list[BaseException | None] = []
    gate = CallGate(on_failure=lambda: told.append(gate.failure))
    with pytest.raises(OptimizationStopped) as seen, gate.passing():
        raise OSError("the secret")
    assert "secret" not in str(seen.value)
    assert seen.value.__cause__ is None
    assert seen.value.__suppress_context__
    assert str(gate.failure) == "the secret"
    assert told == [gate.failure]
    assert gate.closed.is_set()


def test_of_several_failures_the_first_is_kept() -> None:
    gate = CallGate()
    inside = threading.Barrier(2)

    def fail(name: str) -> None:
        inside.wait(30)
        raise OSError(name)

    def call(name: str) -> None:
        with pytest.raises(OptimizationStopped), gate.passing():
            fail(name)

    threads = [threading.Thread(target=call, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    first = gate.failure
    assert str(first) in ("a", "b")
    assert gate.failure is first


def test_an_interrupt_goes_on_and_is_kept_for_a_caller_who_does_not_see_it() -> None:
    gate = CallGate()
    with pytest.raises(KeyboardInterrupt) as raised, gate.passing():
        raise KeyboardInterrupt
    assert gate.failure is raised.value
    assert gate.closed.is_set()


def test_nobody_passes_a_closed_gate() -> None:
    gate = CallGate()
    gate.close()
    with pytest.raises(OptimizationStopped), gate.passing():
        raise AssertionError("it was let in")
    assert gate.failure is None


def test_waiting_ends_when_the_last_call_is_out() -> None:
    gate, entered, go = CallGate(), threading.Event(), threading.Event()

    def work() -> None:
        with gate.passing():
            entered.set()
            go.wait(30)

    thread = threading.Thread(target=work)
    thread.start()
    assert entered.wait(30)
    gate.close()
    go.set()
    gate.wait_empty(30)
    thread.join(30)


def test_waiting_gives_up_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    gate = CallGate()
    with gate.passing(), caplog.at_level(logging.WARNING):
        gate.wait_empty(0.01)
    assert "still running" in caplog.text
