from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import dspy
import psutil
import pytest
import toy

from kernel_bridge import GUARANTEES, KernelInterpreter, probe
from rlmoptimizer import InvalidSetup, SubmissionError
from rlmoptimizer.agent import kernels
from rlmoptimizer.agent.kernels import AgentKernels, kernel_started
from rlmoptimizer.events import KernelStarted


def nothing() -> None: ...


class Watched(KernelInterpreter):
    """Counts what is made, started and ended."""

    made: list[Watched]

    def __init__(self) -> None:
        super().__init__(confinement="off")
        self.log: list[str] = []
        type(self).made.append(self)

    def start(self) -> None:
        self.log.append("start")
        super().start()

    def shutdown(self) -> None:
        self.log.append("shutdown")
        super().shutdown()


@pytest.fixture
def watched() -> type[Watched]:
    return type("WatchedHere", (Watched,), {"made": []})


@pytest.mark.smoke
def test_the_first_interpreter_is_started_early_and_the_others_are_fresh(watched: Any) -> None:
    lease = AgentKernels(watched, lambda fields: None, sub_agents=nothing)
    lease.start(nothing)
    first, second, third = lease(), lease(), lease()
    assert watched.made == [first, second, third]
    assert [interpreter.log for interpreter in watched.made] == [["start"], [], []]
    lease.close()
    assert all(interpreter.log[-1] == "shutdown" for interpreter in watched.made)
    lease.close()


def test_only_the_agents_own_interpreter_gets_the_validator() -> None:
    def refuse(fields: dict[str, Any]) -> None:
        raise SubmissionError(f"no {fields['output']}")

    lease = AgentKernels(toy.KERNEL, refuse, sub_agents=nothing)
    lease.start(nothing)
    try:
        own, other = lease(), lease()
        told = own.execute("try:\n    SUBMIT('x')\nexcept Exception as e:\n    print(type(e).__name__, e)")
        assert told == "SubmissionError no x"
        assert other.execute("SUBMIT('x')").output == {"output": "x"}
    finally:
        lease.close()


@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_a_started_kernel_is_announced_with_all_that_it_runs_under(confinement: str) -> None:
    with KernelInterpreter(confinement=confinement) as interpreter:
        assert interpreter.report is not None
        event = kernel_started(interpreter)
        assert event.tier == (probe().tier if confinement == "auto" else None)
        assert {*event.in_force, *event.missing} == set(GUARANTEES)
        assert event.summary == interpreter.report.line()
        assert event.summary.startswith("not confined, ") == (confinement == "off")
        assert event.summary.endswith("not asked for: cpu_capped") == (confinement == "auto")
        assert event.requested == ()


def test_an_interpreter_without_a_report_of_ours_is_announced_all_the_same() -> None:
    class Foreign(dspy.LocalInterpreter):
        report = "all is well"

    announced = KernelStarted("Foreign", "Foreign, which does not say how it is confined", None)
    assert kernel_started(Foreign()) == announced


def test_it_describes_the_runtime_as_the_users_factory_does() -> None:
    assert AgentKernels(toy.KERNEL, lambda fields: None).execution_instructions == toy.KERNEL.execution_instructions
    assert AgentKernels(lambda: dspy.LocalInterpreter(), lambda fields: None).execution_instructions == ""


def test_a_start_that_fails_is_told_at_once_and_raised_when_the_interpreter_is_wanted() -> None:
    class Broken(dspy.LocalInterpreter):
        def start(self) -> None:
            raise OSError("no room")

    told = threading.Event()
    lease = AgentKernels(Broken, lambda fields: None)
    lease.start(told.set)
    assert told.wait(60)
    with pytest.raises(OSError, match="no room"):
        lease.wait_started()
    lease.interrupt()
    lease.close()


def test_a_start_that_hangs_is_given_up_and_ended_when_it_has_come_to_its_end(
    watched: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    class Hangs(watched):
        def start(self) -> None:
            starting.set()
            assert go_on.wait(100)
            super().start()

        def shutdown(self) -> None:
            super().shutdown()
            ended.set()

    monkeypatch.setattr(kernels, "_START_SECONDS", 0.01)
    monkeypatch.setattr(kernels, "_JOIN_SECONDS", 0.01)
    lease = AgentKernels(Hangs, lambda fields: None)
    lease.start(nothing)
    assert starting.wait(100)
    with pytest.raises(InvalidSetup, match=r"has not started within 0\.01 s"):
        lease.wait_started()
    lease.close()
    assert "is still being started" in caplog.text
    (interpreter,) = watched.made
    assert interpreter.log == []
    go_on.set()
    assert ended.wait(100)
    assert interpreter.log == ["start", "shutdown"]


def test_a_factory_that_makes_no_interpreter_is_refused() -> None:
    lease = AgentKernels(dict, lambda fields: None)  # type: ignore[arg-type]
    lease.start(nothing)
    with pytest.raises(InvalidSetup, match="kernel made a dict"):
        lease.wait_started()
    lease.close()


def test_an_interpreter_that_is_made_after_the_end_does_not_live_on(watched: Any) -> None:
    lease = AgentKernels(watched, lambda fields: None, sub_agents=nothing)
    lease.start(nothing)
    lease.close()
    lease()
    late = lease()
    assert late.log == ["shutdown"]


def test_an_interpreter_of_a_sub_agent_is_made_only_where_it_may_be() -> None:
    def spent() -> None:
        raise SubmissionError("nothing left")

    for sub_agents, error in ((None, RuntimeError), (spent, SubmissionError)):
        made: list[KernelInterpreter] = []
        lease = AgentKernels(lambda made=made: made.append(toy.KERNEL()) or made[-1], nothing, sub_agents=sub_agents)  # type: ignore[arg-type,misc]
        lease.start(nothing)
        assert lease() is made[0]
        with pytest.raises(error):
            lease()
        assert len(made) == 1
        lease.close()


def test_with_sub_agents_an_interpreter_that_does_not_check_them_is_refused() -> None:
    lease = AgentKernels(dspy.LocalInterpreter, lambda fields: None, sub_agents=nothing)
    lease.start(nothing)
    with pytest.raises(InvalidSetup, match="sub_agents=True it must make a KernelInterpreter"):
        lease.wait_started()
    lease.close()


def test_closing_while_the_kernel_starts_leaves_nothing() -> None:
    for _ in range(3):
        lease = AgentKernels(toy.KERNEL, lambda fields: None)
        lease.start(nothing)
        lease.close()


def test_interrupting_stops_the_running_cell_and_is_harmless_otherwise(watched: Any) -> None:
    begun = threading.Event()
    lease = AgentKernels(toy.KERNEL, lambda fields: None)
    lease.interrupt()
    lease.start(nothing)
    own = lease()
    own.tools["begun"] = begun.set
    stopper = threading.Thread(target=lambda: (begun.wait(30), lease.interrupt()))
    stopper.start()
    try:
        with pytest.raises(dspy.primitives.code_interpreter.CodeExecutionError, match="KeyboardInterrupt"):
            own.execute("begun()\nimport time\ntime.sleep(60)")
    finally:
        stopper.join()
        lease.close()
    plain = AgentKernels(watched, lambda fields: None)  # an interpreter that cannot be interrupted
    plain.start(nothing)
    plain()
    plain.interrupt()
    plain.close()


@pytest.mark.parametrize("given", [KernelInterpreter, KernelInterpreter.factory(confinement="off")])
def test_one_kernel_is_kept_warm_for_the_agents_own_to_be_replaced_by(given: Any) -> None:
    lease = AgentKernels(given, lambda fields: None, sub_agents=nothing)
    lease.start(nothing)
    try:
        own: Any = lease()
        warm = lease._kept_warm  # pyright: ignore[reportPrivateUsage]
        assert warm is not None
        own.execute("kept = 41")
        with lease.while_root_thinks():
            assert warm.wait_warm(120)
        with pytest.raises(dspy.primitives.code_interpreter.CodeExecutionError, match="before this cell: kept"):
            own.execute("import os; os._exit(3)")
        assert own.execute("kept") == "41"
    finally:
        lease.close()
    assert not warm.wait_warm(0)


def test_it_is_started_while_the_root_lm_thinks_and_not_beside_the_agents_work(
    wait_until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "_THINKING_SECONDS", 2.0)  # far more than these answers take
    counted: list[int] = []

    def count() -> int:
        return sum("spawn.py" in " ".join(child.cmdline()) for child in psutil.Process().children())

    def at_once(question: Any) -> str:
        counted.append(count())
        return "import time; time.sleep(0.3)"

    def after_a_while(question: Any) -> str:
        wait_until(lambda: count() == 2, "a second kernel is started")
        return "pass"

    submit = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
    toy.compiled([at_once] * 3 + [after_a_while, submit])
    assert counted == [1, 1, 1]


def test_a_factory_that_keeps_kernels_warm_is_used_as_it_is_and_left_open() -> None:
    with KernelInterpreter.factory(prewarm=1, confinement="off") as factory:
        lease = AgentKernels(factory, lambda fields: None)
        lease.start(nothing)
        assert lease().execute("6 * 7") == "42"
        lease.close()
        assert factory.wait_warm(120)
