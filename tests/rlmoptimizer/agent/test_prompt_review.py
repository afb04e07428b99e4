"""What a summary line says of the prompts that ran: text of train in them, and what they come to in all their runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import desk
from offline import Asked, field_lm

from rlmoptimizer.agent import prompt_review
from rlmoptimizer.agent.prompt_review import PromptReview
from rlmoptimizer.prompts import Prompts

LONG = " ".join(f"word{number}" for number in range(12))
COPIED = {"topic": f"Name the topic. {LONG} tells it."}
BEWARE = "beware: the prompt of step 'topic' holds 12 words in a row of example 2 of train"


def respond(question: Asked) -> dict[str, Any]:
    return {name: "a bug" for name in question.outputs}


def metric(gold: Any, prediction: Any, trace: Any = None) -> float:
    return 0.0


class Sorter(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict(dspy.Signature("message -> topic", "Say what the message is about."))

    def forward(self, message: str) -> dspy.Prediction:
        return self.topic(message=message)


@pytest.fixture
def long_second_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def trainset(count: int) -> list[dspy.Example]:
        rows = [dspy.Example(message=f"short one {number}", topic="a bug") for number in range(count)]
        rows[1] = dspy.Example(message=f"It says {LONG} and more", topic="a bug")
        return [row.with_inputs("message") for row in rows]

    monkeypatch.setattr(toy, "trainset", trainset)


@pytest.mark.usefixtures("long_second_row")
def test_prompts_that_hold_a_row_of_train_are_told_of_with_their_first_result(tmp_path: Path) -> None:
    with desk(tmp_path, program=Sorter(), metric=metric, lm=field_lm(respond)) as at:
        first = at.evaluate(ids="1", prompts=COPIED)
        assert BEWARE in first["summary_line"]
        assert "beware" not in at.evaluate(ids="3", prompts=COPIED)["summary_line"]
        assert "beware" not in at.bench.tools.run_data(first["run_id"])["summary_line"]
        assert "beware" not in at.evaluate(ids="1", prompts={"topic": "Name it."})["summary_line"]


@pytest.mark.usefixtures("long_second_row")
def test_a_race_tells_of_the_prompts_that_did_best(tmp_path: Path) -> None:
    with desk(tmp_path, program=Sorter(), metric=metric, lm=field_lm(respond)) as at:
        line = at.bench.tools.race_prompts([COPIED, {"topic": "Name it."}], ids="1-3")["summary_line"]
        assert line.endswith(BEWARE)


@pytest.mark.usefixtures("long_second_row")
def test_only_so_much_text_of_train_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with desk(tmp_path, program=Sorter(), metric=metric, lm=field_lm(respond)) as at:
        monkeypatch.setattr(prompt_review, "_MOST_CHARS", 50)
        review = PromptReview(at.store, at.bench.prompts.original)
        assert review.news(Prompts.of(COPIED)) == ()
        monkeypatch.setattr(prompt_review, "_MOST_CHARS", 500)
        review = PromptReview(at.store, at.bench.prompts.original)
        assert len(review.news(Prompts.of(COPIED))) == 1


def test_the_rows_of_val_are_not_looked_at(tmp_path: Path) -> None:
    with desk(tmp_path) as at:
        held = toy.valset(1)[0].message
        line = at.evaluate("val", prompts={"topic": f"{toy.FIX} {held} {held} and what follows on it"})["summary_line"]
        assert "beware" not in line


def test_a_result_on_train_comes_with_what_its_prompts_did_in_all_their_runs(tmp_path: Path) -> None:
    with desk(tmp_path, train=12) as at:
        fixed = {"topic": toy.FIX}
        assert "all their runs" not in at.evaluate(ids="1-4", prompts=fixed)["summary_line"]
        assert "all their runs" not in at.evaluate(ids="1-4", prompts=fixed)["summary_line"]
        line = at.evaluate(ids="4-6", prompts=fixed)["summary_line"]
        assert "these prompts in all their runs: score 100.00, 6/6 of train passed" in line
        assert "all their runs" not in at.evaluate("val", prompts=fixed)["summary_line"]
        line = at.evaluate(ids="2")["summary_line"]
        assert "these prompts in all their runs: score 50.00, 6/12 of train passed" in line
