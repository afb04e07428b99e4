"""A set-up in which nothing works is told to the person at the start, not only to the agent."""

from __future__ import annotations

from typing import Any

import pytest
import toy
from offline import Asked, field_lm

pytestmark = pytest.mark.usefixtures("plain_repl")

SUBMIT = 'SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])'


def test_a_baseline_without_a_single_score_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    toy.compiled([SUBMIT], val=0, trainset=[toy.dspy.Example(text="?").with_inputs("text")])
    (warning,) = [record.getMessage() for record in caplog.records if "could be scored" in record.getMessage()]
    assert "TypeError: " in warning
    assert "look at eval_lm, the data and the metric" in warning


def test_a_baseline_with_a_score_is_not(caplog: pytest.LogCaptureFixture) -> None:
    toy.compiled([SUBMIT], val=0)
    assert "could be scored" not in caplog.text


def test_right_answers_that_the_metric_gives_100_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    toy.compiled([SUBMIT], val=0, metric=lambda gold, prediction: 100 * toy.metric(gold, prediction).score)
    (warning,) = [record.getMessage() for record in caplog.records if "no valid score" in record.getMessage()]
    assert "the metric returned 100.0" in warning
    assert "pass perfect_score=100" in warning


def raises_on(*texts: str) -> Any:
    def metric(gold: Any, prediction: Any, trace: Any = None) -> Any:
        if any(text in gold.message for text in texts):
            raise LookupError(f"no verdict on {gold.message}")
        return toy.metric(gold, prediction)

    return metric


def test_a_metric_that_raises_on_some_of_train_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    toy.compiled([SUBMIT], val=0, metric=raises_on("message 2 ", "message 3 "))
    (warning,) = [record.getMessage() for record in caplog.records if "no valid score" in record.getMessage()]
    assert warning.startswith("Of the 6 examples of train, 2 count as 0 because the metric gave no valid score. The")
    assert "LookupError: no verdict on message 2 plainly" in warning


def test_what_fails_on_val_only_is_warned_of_without_a_word_of_its_examples(caplog: pytest.LogCaptureFixture) -> None:
    toy.compiled([SUBMIT], val=4, metric=raises_on(f"{toy.SECRET} message 1 "))
    assert "Of the 4 examples of val, 1 count as 0 because the metric gave no valid score. Stop" in caplog.text

    def fails(question: Asked) -> Any:
        if toy.SECRET in question.inputs["message"]:
            raise ValueError(f"cannot read {question.inputs['message']}")
        return toy.respond(question)

    toy.compiled([SUBMIT], val=4, eval_lm=field_lm(fails, "eval"))
    assert "Of the 4 examples of val, none could be scored: the program fails on each. Stop" in caplog.text
    assert toy.SECRET not in caplog.text
