"""What is said of things that do not come: after how long, how often, and of what not."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, ScriptedRootLM, field_lm, text_lm

from rlmoptimizer.compilation import parts
from rlmoptimizer.evaluation.wait_monitor import Pending, Waited, WaitMonitor
from rlmoptimizer.events import Event, StillWaiting
from rlmoptimizer.show.terminal.display import Display

pytestmark = pytest.mark.usefixtures("plain_repl")

TIMEOUT = 100
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


class Told:
    """A monitor with a clock that is set by hand, and no thread of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(WaitMonitor, "_serve", lambda self: None)
        self.now = 100.0
        self.lines: list[tuple[Waited, Pending, float]] = []
        self.waits = WaitMonitor(lambda *told: self.lines.append(told), 60.0, lambda: self.now)

    def after(self, seconds: float) -> list[tuple[Waited, Pending, float]]:
        self.now += seconds
        self.lines.clear()
        self.waits.look()
        return self.lines


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


@pytest.mark.smoke
def test_what_does_not_come_is_told_after_a_minute_and_then_at_intervals_that_double(told: Told) -> None:
    with told.waits.watch(("root", "model")):
        assert told.after(59.0) == []
        assert told.after(1.0) == [(("root", "model"), (1, ()), 60.0)]
        assert told.after(59.0) == []
        assert told.after(1.0) == [(("root", "model"), (1, ()), 120.0)]
        assert told.after(119.0) == []
        assert told.after(1.0) == [(("root", "model"), (1, ()), 240.0)]
    assert told.after(10_000.0) == []


def test_what_is_slow_and_goes_on_is_never_told(told: Told) -> None:
    with told.waits.watch(("examples", "r1 train"), pending=lambda: (2, ["3", "7"])) as step:
        for _ in range(100):
            assert told.after(59.0) == []
            step()
        assert told.after(60.0) == [(("examples", "r1 train"), (2, ["3", "7"]), 60.0)]
        step()
        assert told.after(59.0) == []


def test_several_prompts_are_one_wait_and_each_answer_is_a_step(told: Told) -> None:
    with told.waits.watch(("sub", "model"), 3):
        told.now += 50.0
        with told.waits.watch(("sub", "model")):
            told.now += 9.0
        assert told.after(59.0) == []
        assert told.after(1.0) == [(("sub", "model"), (3, ()), 60.0)]


def test_where_no_thread_is_to_be_had_the_work_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    waits = WaitMonitor(lambda what, pending, seconds: None)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with waits.watch(("kernel", "")):
            pass
    waits.close()


def test_nothing_is_told_once_it_is_closed() -> None:
    told = threading.Event()
    waits = WaitMonitor(lambda what, pending, seconds: told.set(), 0.001)
    with waits.watch(("kernel", "")):
        assert told.wait(TIMEOUT)
        waits.close()
        waits.close()
        told.clear()
        with waits.watch(("root", "model")):
            assert not told.is_set()


class Stalls:
    """Lets what it holds go on once that was told as it should be."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, expected: Callable[[StillWaiting], bool]) -> None:
        self.seen: list[StillWaiting] = []
        self._told = threading.Event()
        draw = Display.__call__

        def watched(display: Display, event: Event) -> None:
            draw(display, event)
            if isinstance(event, StillWaiting):
                self.seen.append(event)
                if expected(event):
                    self._told.set()

        monkeypatch.setattr(Display, "__call__", watched)

    def hold(self) -> None:
        assert self._told.wait(TIMEOUT)


def quick(root: ScriptedRootLM, **options: Any) -> Any:
    optimizer = toy.optimizer(root, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_STALL_SECONDS", 0.02)
        return optimizer.compile(
            toy.Triage(), trainset=toy.trainset(), valset=toy.valset(), metric=toy.metric
        )


def test_a_program_whose_lm_hangs_is_told_with_its_example(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stalls = Stalls(monkeypatch, lambda event: (event.name, event.ids) == ("r1 train", ("3",)))

    def hangs(asked: Asked) -> Any:
        if "message 2 " in asked.inputs["message"] and toy.SECRET not in asked.text:
            stalls.hold()
        return toy.respond(asked)

    quick(ScriptedRootLM([SUBMIT]), eval_lm=field_lm(hangs))
    assert re.search(
        r"^RLMDocstringOptimizer: r1 train: no example has finished for 0:0\d \(since \d\d:\d\d:\d\d\), "
        r"see example_timeout; 1 under way: 3$",
        capfd.readouterr().err,
        re.MULTILINE,
    )


def test_examples_of_val_are_counted_and_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    stalls = Stalls(monkeypatch, lambda event: (event.name, event.pending) == ("r2 val", 4))

    def hangs(asked: Asked) -> Any:
        if toy.SECRET in asked.text:
            stalls.hold()
        return toy.respond(asked)

    quick(ScriptedRootLM([SUBMIT]), eval_lm=field_lm(hangs))
    assert {event.ids for event in stalls.seen if event.name == "r2 val"} == {()}


def test_a_sub_lm_that_hangs_is_told_with_the_number_of_its_prompts(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stalls = Stalls(monkeypatch, lambda event: (event.name, event.pending) == ("offline/sub", 3))

    def hangs(prompt: str) -> str:
        stalls.hold()
        return "at last"

    sub_lm = text_lm(hangs, "sub")
    quick(ScriptedRootLM(["print(llm_query_batched(['a', 'b', 'c']))", SUBMIT]), sub_lm=sub_lm)
    assert "the sub LM offline/sub has not answered for 0:00 (since " in capfd.readouterr().err


def test_a_root_lm_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    stalls = Stalls(monkeypatch, lambda event: (event.waits_for, event.name) == ("root", "offline/root"))

    def thinks(asked: Asked) -> str:
        stalls.hold()
        return SUBMIT

    quick(ScriptedRootLM([thinks]))
    assert "the root LM offline/root has not answered for 0:00 (since " in capfd.readouterr().err


def test_a_kernel_that_does_not_start_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stalls = Stalls(monkeypatch, lambda event: event.waits_for == "kernel")

    class Slow(dspy.LocalInterpreter):
        def start(self) -> None:
            stalls.hold()
            super().start()

    quick(ScriptedRootLM([SUBMIT]), kernel=Slow)
    assert "the agent's interpreter has been starting for 0:00 (since " in capfd.readouterr().err
