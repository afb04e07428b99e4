"""The example: its stand-in models do what it says of them, and the whole of it runs without a network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import dspy
import pytest

import example

# Runs the example with a hook that Python itself calls before a name is looked up or an address is connected to.
_WITHOUT_NETWORK = """
import runpy, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in ("127.0.0.1", "localhost", None):
        raise SystemExit(f"the example looked up {arguments[0]!r}")
    if event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] != "127.0.0.1":
        raise SystemExit(f"the example connected to {arguments[1]!r}")

sys.addaudithook(refuse)
sys.argv = ["example.py", *sys.argv[1:]]
runpy.run_path("example.py", run_name="__main__")
"""


@pytest.fixture
def stand_in() -> dspy.LM:
    return dspy.LM("offline/literal", engine=example.LiteralModel(), cache=False)


def routed(instructions: str, lm: dspy.LM, **inputs: str) -> dspy.Prediction:
    with dspy.context(lm=lm):
        return dspy.Predict(example.RouteTicket.with_instructions(instructions))(**inputs)


class TestTheStandInForAModel:
    facts: ClassVar = {"topic": "access", "impact": "everyone", "plan": "team"}

    def test_follows_what_its_instructions_state(self, stand_in: dspy.LM) -> None:
        rule = "If topic is access, queue is identity. If topic is access and impact is everyone, priority is urgent."
        answer = routed(rule, stand_in, **self.facts)
        assert (answer.queue, answer.priority) == ("identity", "urgent")

    def test_guesses_where_they_state_nothing(self, stand_in: dspy.LM) -> None:
        answer = routed("Route the ticket with great care.", stand_in, **self.facts)
        assert (answer.queue, answer.priority) == ("support", "normal")

    def test_takes_the_first_rule_that_holds(self, stand_in: dspy.LM) -> None:
        rules = "If plan is free, priority is normal. If plan is team, priority is high. Otherwise priority is urgent."
        assert routed(rules, stand_in, **self.facts).priority == "high"

    def test_finds_whole_words_only(self) -> None:
        assert example.holds("ticket mentions log in, login or down", {"ticket": "The LOGIN page is slow."})
        assert not example.holds("ticket mentions own", {"ticket": "It is down."})

    def test_ignores_a_value_that_is_no_choice(self, stand_in: dspy.LM) -> None:
        assert routed("Otherwise queue is kitchen.", stand_in, **self.facts).queue == "support"

    def test_as_the_sub_lm_names_words_that_mark_one_group_and_no_other(self, stand_in: dspy.LM) -> None:
        question = "Which words?\n\n## a\n- red apple\n- red car\n## b\n- blue car\n- blue sky over there\n"
        assert stand_in(question) == ["a: red\nb: blue"]


def test_the_code_of_every_turn_fits_a_terminal_of_80_columns() -> None:
    assert [line for _, code in example.TURNS for line in code.splitlines() if len(line) > 72] == []


class TestTheData:
    def test_train_and_val_share_no_ticket(self) -> None:
        train, val = example.examples(example.TRAIN), example.examples(example.VAL)
        assert (len(train), len(val)) == (24, 12)
        assert not {row.ticket for row in train} & {row.ticket for row in val}

    def test_the_metric_says_what_was_wrong(self) -> None:
        row = example.examples(example.TRAIN)[0]
        verdict = example.metric(row, dspy.Prediction(queue="finance", priority=row.priority))
        assert verdict.score == 0.5
        assert verdict.feedback == "queue should be 'support', not 'finance'"


@pytest.fixture(scope="module")
def ran(project_root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", _WITHOUT_NETWORK], cwd=project_root, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=100, env={**os.environ, "COLUMNS": "80"},
    )  # fmt: skip


class TestTheWholeExample:
    @pytest.mark.smoke
    def test_runs_without_key_or_network(self, ran: subprocess.CompletedProcess[str]) -> None:
        assert ran.returncode == 0, ran.stderr

    @pytest.mark.skipif(os.name == "nt", reason="no shell that closes streams")
    def test_runs_with_its_streams_closed_and_warnings_as_errors(self, project_root: Path) -> None:
        script = f'"{sys.executable}" -W error example.py <&- >&- 2>&-'
        assert subprocess.run(["bash", "-c", script], cwd=project_root, timeout=120).returncode == 0

    def test_shows_every_turn(self, ran: subprocess.CompletedProcess[str]) -> None:
        turns = [line for line in ran.stderr.splitlines() if re.match(r"Turn \d/200 ──", line)]
        assert len(turns) == len(example.TURNS)

    def test_survives_the_crash_and_says_so(self, ran: subprocess.CompletedProcess[str]) -> None:
        assert "SIGSEGV" in ran.stderr
        assert "still here:" in ran.stderr

    def test_ends_with_better_prompts_on_both_sets(self, ran: subprocess.CompletedProcess[str]) -> None:
        assert "35.4" in ran.stdout  # baseline on train
        assert "33.3" in ran.stdout  # baseline on val
        assert "91.7" in ran.stdout  # val at the end
        assert ran.stdout.index("before") < ran.stdout.index("after")
        assert "-> queue identity, priority urgent" in ran.stdout
