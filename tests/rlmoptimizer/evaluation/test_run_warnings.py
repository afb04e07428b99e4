"""A set-up in which nothing works is told to the person at the start, not only to the agent."""

from __future__ import annotations

import pytest
import toy

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
