from __future__ import annotations

import io
import logging
import re
import threading
import unicodedata

import pytest
from rich.console import Console
from story_events import EVIL, STORY, Clock, evaluation

from rlmoptimizer.events import (
    BudgetCharged,
    CompileFinished,
    EvaluationFinished,
    EvaluationStarted,
    Event,
    NoteGiven,
    StillWaiting,
    StopRequested,
    TurnFinished,
    WorkPaused,
    WorkUnpaused,
)
from rlmoptimizer.show.terminal.display import Display

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def drawn(
    events: list[Event], *, terminal: bool, verbose: bool = False, step: float = 0.0, width: int = 100
) -> str:
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, force_jupyter=False)
    display = Display(verbose=verbose, console=console, clock=clock)
    for event in events:
        display(event)
        clock.now += step
    display.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


# evaluations


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


def test_on_a_terminal_an_evaluation_has_a_bar_and_at_its_end_a_line() -> None:
    text = ESCAPES.sub("", drawn(evaluation(10), terminal=True))
    assert "r3 train ━" in text
    assert text.splitlines()[-1] == "r3 train 10/10 score 50.0% (5 passed), 7 budget units left"


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
    assert "r1 train ━" in text
    assert "r2 train ━" in text
    assert text.splitlines()[-1].startswith("r2 train 4/4")
    assert len(drawn(mixed, terminal=False).splitlines()) == 2


@pytest.mark.parametrize("width", [60, 200])
def test_the_line_of_a_bar_fits_the_terminal(width: int) -> None:
    events = [EvaluationStarted("r12", "train", 1200, baseline=True), *evaluation(1200, "r12")[1:]]
    text = ESCAPES.sub("", drawn(events, terminal=True, width=width))
    bars = [line for line in re.split("[\r\n]+", text) if "━" in line]
    assert bars
    assert max(map(len, bars)) <= width
    assert not [line for line in bars if "…" in line]


def test_events_of_a_run_that_was_never_begun_are_not_drawn() -> None:
    assert drawn(evaluation(2)[1:], terminal=False) == ""


# what is said however little is shown


def test_without_verbose_progress_and_the_verdict_are_all() -> None:
    assert drawn(STORY, terminal=False).splitlines() == [
        "r1 baseline train 4/4 score 25.0% (1 passed), 22 budget units left",
        "r2 baseline val 2/2 score 50.0% (1 passed), 22 budget units left",
        "r3 val 2/2 score 100.0% (2 passed), 12 budget units left",
        "RLMDocstringOptimizer: gain on val: 50.0 -> 100.0",
    ]
    assert drawn([BudgetCharged(1, 2)], terminal=False, verbose=True) == ""


def test_what_a_person_asks_of_a_compile_is_said_in_any_case() -> None:
    steering: list[Event] = [
        STORY[0],
        NoteGiven(3, f"look at T-1 {EVIL}"),
        WorkPaused(3),
        WorkUnpaused(3, 90.0),
        StopRequested(4),
    ]
    lines = drawn(steering, terminal=False).splitlines()
    note = "RLMDocstringOptimizer: the agent reads this note from turn 3 on: look at T-1 [bold red]markup"
    assert lines[0].startswith(note)
    assert lines[1:] == [
        "RLMDocstringOptimizer: paused before turn 3 of the agent; to go on: rlmoptimizer unpause 'my runs'",
        "RLMDocstringOptimizer: going on after a pause of 1:30",
        "RLMDocstringOptimizer: asked to stop: no further turn begins, and the best so far is taken",
    ]


def test_what_does_not_come_is_said_in_one_line_however_progress_is_shown() -> None:
    hung = StillWaiting("examples", f"r3 train {EVIL}", 30, tuple(map(str, range(1, 31))), 90.0)
    line = "30 under way: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, ..."
    events = [*evaluation(40)[:5], hung, *evaluation(40)[5:]]
    for text in (drawn(events, terminal=False), drawn(events, terminal=True, width=1000)):
        shown = ESCAPES.sub("", text)
        assert f"{line}\n" in shown
        assert "no example has finished for 1:30 (since " in shown
        assert "\x1b]0;" not in text
    waiting = drawn([StillWaiting("root", "model", 1, (), 60.0)], terminal=False)
    assert waiting.startswith("RLMDocstringOptimizer: the root LM model has not answered")


# verbose


def test_the_head_says_what_is_optimized_and_how_to_look_at_it() -> None:
    text = drawn(STORY[:1], terminal=False, verbose=True)
    for fact in (
        "steps     first, second",
        "root_lm   openai/agent",
        "eval_lm   openai/small, openai/other",
        "examples  train 4, val 2, test 3",
        "metric    my.metric",
        "executor  ProcessPoolExecutor",
        "budget    22 units",
        "at most $5.00",
        "store     my runs/runs-0001.sqlite",
        "watch it  rlmoptimizer view 'my runs'",
    ):
        assert fact in text


def test_each_run_stands_after_the_code_of_its_turn_and_the_budget_after_its_output() -> None:
    text = drawn(STORY, terminal=False, verbose=True)
    found = [text.index(part) for part in ("Turn 1/9", "─ code ─", "r3 val 2/2", "─ output ─", "12/22 units left")]
    assert found == sorted(found)
    assert "12/22 units left, best on val 100.0% (r3), 1:15" in text


def test_a_submission_is_shown_once() -> None:
    text = drawn(STORY, terminal=False, verbose=True)
    assert text.count("Answer in one word.") == 2  # as a new prompt, and in the code that sets it
    assert "first: as shown above, where it was set" in text
    assert "second: as it was" in text
    assert "FINAL" not in text


def test_prompts_that_are_taken_without_a_submission_replace_none() -> None:
    fell_back = "The submission is not given back"
    assert fell_back in drawn(STORY, terminal=False, verbose=True)
    without = [event for event in STORY if type(event).__name__ != "AgentSubmitted"]
    text = drawn(without, terminal=False, verbose=True)
    assert fell_back not in text
    assert "Ended without a submission" in text
    assert "Taken: the prompts of run r7" in text


def test_a_prompt_that_was_never_set_is_shown_where_it_is_submitted() -> None:
    without = [event for event in STORY if type(event).__name__ != "PromptUpdated"]
    assert drawn(without, terminal=False, verbose=True).count("Answer in one word.") == 2


def test_the_end_is_one_table_and_the_verdict_said_once() -> None:
    text = drawn(STORY, terminal=False, verbose=True)
    assert re.search(r"^val +2 +50\.0 +100\.0 +\+50\.0 \(\+0\.0 to \+100\.0\) +1 +0$", text, re.MULTILINE)
    assert re.search(r"^test +3 +- +- +- +0 +0$", text, re.MULTILINE)
    assert "prompts changed  first (1 of 2)" in text
    assert "spent            10 of 22 units in 2 turns" in text
    assert "cost             $0.500, and 8 calls of unknown price" in text
    assert "time             1:05 (agent 1:00, final check 0:05)" in text
    assert re.search(r"^root_lm +2 +0 +1,200 +300 +\$0\.500 *$", text, re.MULTILINE)
    assert text.count("gain on val") == 1
    assert text.rstrip().endswith("RLMDocstringOptimizer: gain on val: 50.0 -> 100.0")


def test_where_no_price_is_known_the_table_has_no_column_for_it() -> None:
    usage = {"calls": 2, "cached_calls": 0, "prompt_tokens": 1, "completion_tokens": None}
    unknown = {**usage, "cost_usd": None, "known_cost_usd": 0.0, "unpriced_calls": 2}
    text = drawn([CompileFinished(0.5, 0.5, 0, 1, {"root": unknown})], terminal=False, verbose=True)
    assert "cost" not in text


def test_a_turn_whose_code_never_ran_is_shown_whole() -> None:
    text = drawn([TurnFinished(3, 9, "I think", "", "[Error] unreadable", 3, 1.0)], terminal=False, verbose=True)
    assert [word in text for word in ("Turn 3/9", "I think", "[Error] unreadable")] == [True] * 3
    assert "─ code ─" not in text


@pytest.mark.parametrize("width", [60, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    text = ESCAPES.sub("", drawn(STORY, terminal=True, verbose=True, width=width))
    lines = [line for line in re.split("[\r\n]+", text) if "store " not in line]
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize("terminal", [True, False])
def test_nothing_the_agent_writes_is_markup_or_reaches_the_terminal_as_control(terminal: bool) -> None:
    text = drawn(STORY, terminal=terminal, verbose=True)
    assert "[bold red]markup[/]" in text
    remaining = ESCAPES.sub("", text) if terminal else text
    assert "\x1b]0;" not in text
    assert "\x1b[2J" not in text
    assert not [
        char for char in remaining if unicodedata.category(char) in ("Cc", "Cf", "Cs") and char not in "\n\r"
    ]


def test_long_texts_are_cut_in_the_middle() -> None:
    long = "a" * 9000 + "z"
    text = drawn([TurnFinished(1, 1, "", "pass", long, 0, 0.0)], terminal=False, verbose=True)
    assert "characters left out" in text
    assert "z" in text
    assert len(text) < 9000


# beside what others write


@pytest.mark.parametrize("configured", [True, False])
def test_what_is_logged_while_a_bar_is_live_has_lines_of_its_own(
    configured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    logger = logging.Logger("of the program")  # knows no root, so Python's last resort writes what it says
    handler = logging.lastResort
    display = Display(console=Console(file=stream, force_terminal=True, width=80))
    if configured:
        handler = logging.StreamHandler(stream)
        logger.parent = logging.getLogger()
        logger.parent.addHandler(handler)  # after the display was made
    assert handler is not None
    try:
        display(EvaluationStarted("r1", "train", 5, baseline=False))
        logger.warning("no price " + "and so on " * 10 + "[/]")
        monkeypatch.setattr(logging, "raiseExceptions", False)
        logger.warning("%d that cannot be formatted", "words")
        display.close()
        logger.warning("later")
    finally:
        logging.getLogger().removeHandler(handler)
    assert re.search(r"\x1b\[2Kno price (and so on ){7}\n(and so on ){3}\[/\]\n", stream.getvalue())
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
