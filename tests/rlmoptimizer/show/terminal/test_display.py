from __future__ import annotations

import io
import logging
import re
import threading
import unicodedata

import pytest
from rich.console import Console

from rlmoptimizer.events import (
    AgentSubmitted,
    BudgetCharged,
    CompileFinished,
    CompileStarted,
    EvaluationFinished,
    EvaluationStarted,
    Event,
    ExamplesScored,
    FellBack,
    KernelStarted,
    PromptUpdated,
    StillWaiting,
    SubmissionRefused,
    TurnFinished,
)
from rlmoptimizer.show.terminal.display import Display

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
EVIL = "[bold red]markup[/] \x1b[2J\x1b]0;title\x07 \x9b31m \r gone \u202e reversed \x00"


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def evaluation(total: int, run_id: str = "r3", *, clock: Clock | None = None, seconds: float = 0.0) -> list[Event]:
    scored: list[Event] = [
        ExamplesScored(run_id, "train", done, total, mean_score=0.5) for done in range(1, total + 1)
    ]
    return [
        EvaluationStarted(run_id, "train", total, baseline=False),
        *scored,
        EvaluationFinished(run_id, "train", total, total, passed=total // 2, score=0.5, left=7),
    ]


def drawn(events: list[Event], *, terminal: bool, verbose: bool = False, step: float = 0.0) -> str:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, force_jupyter=False)
    display = Display(verbose=verbose, console=console, clock=clock)
    for event in events:
        display(event)
        clock.now += step
    display.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


TURN = TurnFinished(1, 9, reasoning=EVIL, code=f"print('{EVIL}')", output=EVIL, left=3, seconds=75.0)
STORY: list[Event] = [
    CompileStarted(("first", "second"), 4, 2, 22),
    KernelStarted("KernelInterpreter", f"confined by {EVIL}", "N", missing={"cpu_capped": EVIL}),
    TURN,
    PromptUpdated("first", EVIL, EVIL),
    SubmissionRefused(EVIL),
    AgentSubmitted({"first": EVIL}),
    FellBack(EVIL, "r7"),
    CompileFinished(0.5, 0.75, 12, 9),
]


@pytest.mark.smoke
def test_without_a_terminal_an_evaluation_makes_few_plain_lines() -> None:
    text = drawn(evaluation(1000), terminal=False, step=0.1)
    lines = text.splitlines()
    assert 2 <= len(lines) <= 12
    assert lines[-1] == "r3 train 1000/1000 score 50.0% (500 passed), 7 budget units left"
    assert "eta" in lines[0]
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_short_evaluation_makes_one_plain_line() -> None:
    assert drawn(evaluation(3), terminal=False).splitlines() == [
        "r3 train 3/3 score 50.0% (1 passed), 7 budget units left"
    ]


def test_a_slow_evaluation_says_at_intervals_that_it_is_alive_and_when_it_will_end() -> None:
    lines = drawn(evaluation(100), terminal=False, step=8.0).splitlines()
    assert lines[0].startswith("r3 train 2/100 score 50.0% eta ")
    assert 20 <= len(lines) <= 60


def test_on_a_terminal_an_evaluation_has_a_bar_with_its_score() -> None:
    text = ESCAPES.sub("", drawn(evaluation(10), terminal=True))
    assert "r3 train" in text
    assert "10/10" in text
    assert "score 50.0% (5 passed), 7 budget units left" in text


def test_a_baseline_is_called_so_and_a_stopped_run_too() -> None:
    events: list[Event] = [
        EvaluationStarted("r1", "val", 5, baseline=True),
        EvaluationFinished("r1", "val", 2, 5, passed=0, score=None, left=9),
    ]
    assert drawn(events, terminal=False) == "r1 baseline val 2/5 stopped\n"


def test_evaluations_side_by_side_have_a_bar_each() -> None:
    first, second = evaluation(4, "r1"), evaluation(4, "r2")
    mixed = [event for pair in zip(first, second, strict=True) for event in pair]
    text = ESCAPES.sub("", drawn(mixed, terminal=True))
    assert "r1 train" in text
    assert "r2 train" in text
    assert len(drawn(mixed, terminal=False).splitlines()) == 2


def test_a_notebook_gets_one_line_that_is_rewritten(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    clock = Clock()
    display = Display(console=Console(force_jupyter=True), clock=clock)
    for event in evaluation(10):
        display(event)
        clock.now += 1.0
    display.close()
    text = stream.getvalue()
    assert text.count("\r") >= 10
    assert text.count("\n") == 1
    shown = text.splitlines()[-1].split("\r")[-1]
    assert shown.rstrip() == "r3 train 10/10 score 50.0% (5 passed), 7 budget units left"


def test_without_verbose_the_agents_turns_are_not_shown() -> None:
    assert drawn(STORY, terminal=False) == ""
    assert drawn([BudgetCharged(1, 2)], terminal=False, verbose=True) == ""


def test_with_verbose_every_turn_is_a_panel() -> None:
    text = drawn(STORY, terminal=False, verbose=True)
    assert "Turn 1/9, 1:15, 3 budget units left" in text
    assert "50.0% -> 75.0%, 12 units spent, 9 turns" in text
    assert "train 4 examples, val 2, budget 22 units" in text
    assert "Taken: run r7" in text
    assert "kernel: confined by [bold red]markup[/]" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_the_agent_writes_is_markup_or_reaches_the_terminal_as_control(terminal: bool) -> None:
    text = drawn(STORY, terminal=terminal, verbose=True)
    assert "[bold red]markup[/]" in text
    remaining = ESCAPES.sub("", text) if terminal else text
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert not [char for char in remaining if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char != "\n"]


def test_long_texts_are_cut_in_the_middle() -> None:
    long = "a" * 9000 + "z"
    text = drawn([TurnFinished(1, 1, "", "pass", long, 0, 0.0)], terminal=False, verbose=True)
    assert "characters left out" in text
    assert "z" in text
    assert len(text) < 9000


@pytest.mark.parametrize("configured", [True, False])
def test_what_is_logged_while_a_bar_is_live_has_lines_of_its_own(
    configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logger = logging.Logger("of the program")  # knows no root, so Python's last resort writes what it says
    handler = logging.lastResort
    if configured:
        handler = logging.StreamHandler(stream)
        logger.parent = logging.getLogger()
        logger.parent.addHandler(handler)
    assert handler is not None
    display = Display(console=Console(file=stream, force_terminal=True, width=80))
    try:
        display(EvaluationStarted("r1", "train", 5, baseline=False))
        logger.warning("no price " + "and so on " * 10 + "[/]")
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logger.warning("%d that cannot be formatted", "words")
        display.close()
        logger.warning("later")
    finally:
        logging.getLogger().removeHandler(handler)
    assert re.search(r"\x1b\[2Kno price (and so on ){10}\[/\]\n", stream.getvalue())
    assert stream.getvalue().endswith("later\n")
    assert stream.getvalue().count("no price") == stream.getvalue().count("later") == 1
    assert handler.filters == []


def test_closing_ends_a_live_bar_and_its_thread() -> None:
    before = set(threading.enumerate())
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    display = Display(console=console)
    display(EvaluationStarted("r1", "train", 5, baseline=False))
    assert not set(threading.enumerate()) <= before
    display.close()
    display.close()
    assert set(threading.enumerate()) <= before


def test_events_of_a_run_that_was_never_begun_are_not_drawn() -> None:
    assert drawn(evaluation(2)[1:], terminal=False) == ""


def test_what_does_not_come_is_said_in_one_line_however_progress_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    hung = StillWaiting("examples", f"r3 train {EVIL}", 30, tuple(map(str, range(1, 31))), 90.0)
    line = "30 under way: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, ..."
    events = [*evaluation(40)[:5], hung, *evaluation(40)[5:]]
    notebook = io.StringIO()
    monkeypatch.setattr("sys.stderr", notebook)
    display = Display(console=Console(force_jupyter=True))
    for event in events:
        display(event)
    display.close()
    for text in (drawn(events, terminal=False), drawn(events, terminal=True), notebook.getvalue()):
        shown = ESCAPES.sub("", text)
        assert f"{line}\n" in shown
        assert "no example has finished for 1:30 (since " in shown
        assert "\x1b]0;" not in text
    assert drawn([StillWaiting("root", "model", 1, (), 60.0)], terminal=False).startswith("the root LM model has not")
