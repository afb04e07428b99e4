"""What a summary line says of the prompts that ran: text of train in them, and what they come to in all their runs."""

from __future__ import annotations

import threading
import tracemalloc
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import desk
from offline import Asked, field_lm

from rlmoptimizer.agent import prompt_review
from rlmoptimizer.agent.prompt_review import PromptReview
from rlmoptimizer.outcome.constant_answers import constant_answers
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import ExampleResult

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


class Measured(Sorter):
    def forward(self, message: str, readings: list[float]) -> dspy.Prediction:
        return super().forward(message)


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
        monkeypatch.setattr(prompt_review, "_MOST_CHARS", 200)  # four short texts are two rows
        review = PromptReview(at.store, at.bench.prompts.original)
        assert review.news(Prompts.of(COPIED)) == ()
        monkeypatch.setattr(prompt_review, "_MOST_CHARS", 500)
        review = PromptReview(at.store, at.bench.prompts.original)
        assert len(review.news(Prompts.of(COPIED))) == 1


def test_what_is_no_text_of_train_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def trainset(count: int) -> list[dspy.Example]:
        measured = [float(number) for number in range(5000)]
        rows = [dspy.Example(message=f"short {number}", readings=measured, topic="a bug") for number in range(count)]
        return [row.with_inputs("message", "readings") for row in rows]

    monkeypatch.setattr(toy, "trainset", trainset)
    with desk(tmp_path, program=Measured(), metric=metric, lm=field_lm(respond), train=20, val=None) as at:
        review = PromptReview(at.store, at.bench.prompts.original)
        tracemalloc.start()
        assert review.news(Prompts.of({"topic": "Name it."})) == ()
        kept, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert kept < 1_000_000


def test_what_is_said_once_is_not_said_to_a_kernel_that_died(tmp_path: Path) -> None:
    said = {"topic": "Answer with one word only. " * 3}
    entered, held = threading.Event(), threading.Event()

    def held_up(question: Asked) -> dict[str, object]:
        if question.instructions.startswith("Answer with") and not held.is_set():
            entered.set()
            held.wait(60)
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(held_up, "eval"), threads=1) as at:
        lost: list[str] = []
        thread = threading.Thread(target=lambda: lost.append(at.evaluate(prompts=said)["summary_line"]))
        thread.start()
        assert entered.wait(60)
        at.bench.turns.kernel_died()
        held.set()
        thread.join(60)
        assert "beware" not in lost[0]
        assert "says 3 times: Answer with one word only." in at.evaluate(prompts=said)["summary_line"]


def test_the_rows_of_val_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def valset(count: int) -> list[dspy.Example]:
        row = dspy.Example(message=f"It says {LONG} and more", topic="a bug of val alone").with_inputs("message")
        return [row, *toy.trainset(count - 1)]

    monkeypatch.setattr(toy, "valset", valset)
    copied = {"topic": f"{COPIED['topic']} Or it is a bug of val alone."}
    with desk(tmp_path, program=Sorter(), metric=metric, lm=field_lm(respond)) as at:
        assert "beware" not in at.evaluate("val", prompts=copied)["summary_line"]
        review = PromptReview(at.store, at.bench.prompts.original)
        assert review.news(Prompts.of(copied)) == ()


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


def test_a_program_that_answers_nearly_everything_the_same_is_told_of(tmp_path: Path) -> None:
    def topics(said: list[str]) -> Any:
        answers = iter(said)
        return field_lm(lambda question: {name: next(answers) for name in question.outputs})

    # What is wanted: billing, bug, praise, billing, bug, praise.
    same = "beware: topic is 'bug' in 6 of 6 answers, and 2 should be"
    for said, expected in (
        (["bug"] * 6, same),
        (["bug"] * 5 + ["praise"], "beware: topic is 'bug' in 5 of 6 answers, and 2 should be"),
        (["bug"] * 4 + ["praise"] * 2, None),
        (["bug"] * 4, None),
    ):
        lm = topics(said)
        with desk(tmp_path / str(said), program=Sorter(), lm=lm, metric=metric, baseline=False, threads=1) as at:
            line = at.evaluate(limit=len(said))["summary_line"]
            assert (expected in line) if expected else ("beware" not in line)
    with desk(tmp_path / "race", program=Sorter(), lm=topics(["bug"] * 12), metric=metric, baseline=False) as at:
        line = at.bench.tools.race_prompts([None, {"topic": "Name it."}])["summary_line"]
        assert line.endswith(same)


def test_a_program_that_is_right_to_answer_the_same_is_not(tmp_path: Path) -> None:
    with desk(tmp_path, train=18) as at:
        run = at.evaluate(ids="2,5,8,11,14,17", prompts={"topic": toy.FIX})
        assert {row["predicted"]["topic"] for row in run["examples"]} == {"bug"}
        assert "beware" not in run["summary_line"]


def row(example: int, predicted: Any, expected: Any, *, passed: bool = False) -> ExampleResult:
    values = {"label": expected}, {"label": predicted}
    return ExampleResult(str(example), None, {}, *values, float(passed), passed, None, None, None, (), 0.0)


def test_answers_are_compared_as_metrics_do() -> None:
    # Nine in ten are wanted so. What differs in case only, or is a number in a text, is the same; what passed is right.
    for said, wanted in (("Spam ", "spam"), ("1", 1), ("true", True)):
        assert constant_answers([row(number, said, wanted if number else "other") for number in range(10)]) == []
    assert constant_answers([row(number, "it is spam", "spam", passed=number > 0) for number in range(10)]) == []
    (told,) = constant_answers([row(number, "Spam" if number % 2 else "spam", "ham") for number in range(10)])
    assert told == "label is 'spam' in 10 of 10 answers, and 0 should be"


def test_few_examples_prove_nothing_however_often_they_are_repeated() -> None:
    assert constant_answers([row(number % 4, "spam", "ham") for number in range(40)]) == []
    assert len(constant_answers([row(number % 5, "spam", "ham") for number in range(40)])) == 1


@pytest.mark.parametrize("value", [10**5000, float("nan"), "x" * 10**6, True], ids=["huge", "nan", "long", "bool"])
def test_any_value_may_be_the_one_that_is_told(value: Any) -> None:
    (said,) = constant_answers([row(number, value, 7) for number in range(6)])
    assert said.endswith(" in 6 of 6 answers, and 0 should be")
    assert len(said) < 150


def test_failures_that_were_chosen_are_not_told_of_as_constant_answers(tmp_path: Path) -> None:
    lm = field_lm(lambda question: dict.fromkeys(question.outputs, "bug"))
    with desk(tmp_path, program=Sorter(), lm=lm, metric=metric, train=12) as at:
        assert "topic is 'bug' in 12 of 12" in at.evaluate()["summary_line"]
        assert "beware" not in at.evaluate(failed_from_run="r1")["summary_line"]
