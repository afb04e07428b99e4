"""What an evaluated example costs when an LM fails in it: one unit, once, if it shows an answer; else nothing."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from dspy import lm15
from offline import Asked, field_lm, text_lm

from rlmoptimizer.errors import BudgetExceededError, LMUnavailable


class Provider:
    """Answers as the toy's LM does, but fails for the output field `fails_on`; its topics never say the same twice."""

    def __init__(self, fails_on: str | None = "answer") -> None:
        self.fails_on = fails_on
        self.only: tuple[str, ...] = ("message",)  # and only for messages with one of these in them
        self.asked = 0
        self._numbers = itertools.count()
        self.lm = field_lm(self._respond)

    def _respond(self, question: Asked) -> dict[str, object]:
        self.asked += 1
        if self.fails_on in question.outputs and any(text in question.inputs["message"] for text in self.only):
            raise lm15.RateLimitError("slow down")
        if question.outputs == ("topic",) and self.fails_on is not None:
            return {"topic": f"topic {next(self._numbers)}"}
        return toy.respond(question)


def shown(answer: dict[str, Any]) -> list[Any]:
    """All that an answer shows of what the program's LM wrote."""
    steps = [step for row in answer["examples"] for step in row["steps"]]
    return [step.get("completion") or step["outputs"] for step in steps if step["outputs"] or "completion" in step]


def accounts(work: Desk) -> tuple[int, int]:
    """Units spent and left; nothing is reserved between two calls."""
    state = work.ledger.state()
    assert state.reserved == 0
    assert state.spent + state.left == state.limit
    assert work.store.spent() == state.spent
    return state.spent, state.left


def refused(work: Desk, **request: Any) -> LMUnavailable:
    with pytest.raises(LMUnavailable) as raised:
        work.evaluate(**request)
    return raised.value


def test_an_example_that_shows_an_answer_is_paid_although_its_lm_failed_later(tmp_path: Path) -> None:
    provider = Provider()
    with desk(tmp_path, lm=provider.lm, baseline=False) as work:
        error = refused(work, limit=3)
        assert (error.paid, accounts(work)) == (3, (3, 97))
        assert "3 of them are paid" in str(error)
        answer = work.bench.tools.run_data(error.run_id)
        assert len(shown(answer)) == 3
        assert [[step["step_name"] for step in row["steps"]] for row in answer["examples"]] == [["topic", "reply"]] * 3
        assert all("LMRateLimitError" in row["steps"][1]["error"] for row in answer["examples"])
        assert "3 of these are paid" in answer["summary_line"]
        # Run again it is not paid again, and shows nothing new until it has a verdict.
        refused(work, limit=3)
        assert shown(work.bench.tools.run_data(error.run_id)) == shown(answer)
        assert accounts(work) == (3, 97)
        provider.fails_on = None
        again = work.evaluate(limit=3)
        assert (again["run_id"], again["evaluated_count"], again["remaining_budget"]) == (error.run_id, 3, 97)
        assert "unanswered_count" not in again
        # With all its verdicts it is a run like any other: the next one is paid.
        assert work.evaluate(limit=3)["remaining_budget"] == 94


def test_an_example_that_shows_no_answer_is_free(tmp_path: Path) -> None:
    provider = Provider("topic")
    with desk(tmp_path, lm=provider.lm, baseline=False) as work:
        error = refused(work, limit=3)
        assert (error.paid, accounts(work)) == (0, (0, 100))
        answer = work.bench.tools.run_data(error.run_id)
        assert shown(answer) == []
        assert [[step["step_name"] for step in row["steps"]] for row in answer["examples"]] == [["topic"]] * 3
        assert "were not paid" in answer["summary_line"]


def test_verdicts_answers_and_nothing_have_their_prices_in_one_run(tmp_path: Path) -> None:
    provider = Provider()
    provider.only = ("message 1 ", "message 2 ")
    with desk(tmp_path, lm=provider.lm, baseline=False, budget=6) as work:
        first = work.evaluate()
        assert (first["evaluated_count"], first["unanswered_count"], first["remaining_budget"]) == (4, 2, 0)
        provider.fails_on = None
        # What is owed is run even when nothing is left to spend.
        again = work.evaluate()
        assert (again["run_id"], again["evaluated_count"], again["remaining_budget"]) == (first["run_id"], 6, 0)
        with pytest.raises(BudgetExceededError):
            work.evaluate()


def test_what_a_judge_could_not_judge_is_paid_for_the_prediction_that_is_shown(tmp_path: Path) -> None:
    def metric(example: Any, prediction: Any) -> float:
        raise dspy.LMRateLimitError("the judge is busy")

    with desk(tmp_path, baseline=False, metric=metric) as work:
        error = refused(work, limit=2)
        assert (error.paid, accounts(work)) == (2, (2, 98))


class Direct(toy.Triage):
    """Asks its LM directly, without a step, and tells what it said in all that comes after."""

    def forward(self, message: str) -> dspy.Prediction:
        (said,) = dspy.settings.lm("what is it about?")
        try:
            return self.reply(message=message, topic=str(said))
        except dspy.LMRateLimitError as error:
            raise RuntimeError(f"after {said}") from error


def test_what_no_step_was_answered_is_free_and_read_nowhere(tmp_path: Path) -> None:
    def respond(prompt: str) -> str:
        if prompt == "what is it about?":
            return "a secret answer"
        raise lm15.RateLimitError("slow down")

    with desk(tmp_path, lm=text_lm(respond), baseline=False, program=Direct()) as work:
        error = refused(work, limit=2)
        assert (error.paid, accounts(work)) == (0, (0, 100))
        answer = work.bench.tools.run_data(error.run_id)
        assert "secret" not in str(answer["examples"])
        assert [(row["error"], row["error_kind"]) for row in answer["examples"]] == [("RuntimeError", "rate_limit")] * 2


def test_what_is_owed_is_known_to_the_next_process_and_to_another_request(tmp_path: Path) -> None:
    provider = Provider()
    with desk(tmp_path, lm=provider.lm, baseline=False) as work:
        refused(work, ids="1-3")
        assert accounts(work) == (3, 97)
    provider.fails_on = None
    with desk(tmp_path, lm=provider.lm, baseline=False, again=True) as work:
        # Nobody has the answer of that run, so whatever is asked for next takes over what it paid.
        other = work.evaluate(ids="2-4")
        assert (other["evaluated_count"], accounts(work)) == (3, (4, 96))
        # What was taken over is owed no more where it was.
        first = work.evaluate(ids="1-3")
        assert (first["evaluated_count"], accounts(work)) == (3, (6, 94))


def test_on_val_nothing_is_shown_and_only_verdicts_are_paid(tmp_path: Path) -> None:
    provider = Provider()
    provider.only = ("message 1 ",)
    with desk(tmp_path, lm=provider.lm, baseline=False) as work:
        answer = work.evaluate("val")
        assert (answer["evaluated_count"], answer["unanswered_count"], accounts(work)) == (3, 1, (3, 97))
