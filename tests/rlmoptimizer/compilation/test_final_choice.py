"""What is given back: the submission, measured on val, unless another candidate is better beyond chance."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, field_lm
from priced import by_call, priced_fields

from rlmoptimizer.events import FellBack
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")

WORSE = "Say nothing but the word nothing."


def submit(topic: str) -> str:
    return f'SUBMIT(optimized_dspy_program={ {"topic": topic, "reply": "Answer by the topic."} !r})'


def respond(question: Asked) -> dict[str, object]:
    """As the toy, and wrong on everything with the worse prompt."""
    if question.instructions == WORSE:
        return {"topic": "nothing"}
    return toy.respond(question)


def compiled(turns: list[str], **options: Any) -> Any:
    return toy.compiled(turns, **{"eval_lm": field_lm(respond, "eval"), **options})[0]


def test_a_submission_that_never_ran_on_val_is_measured_there_for_a_unit_an_example(tmp_path: Path) -> None:
    program = compiled([submit(toy.FIX)], run_storage_dir=tmp_path)
    result = program.optimization_result
    assert (result.splits["val"].baseline, result.splits["val"].result) == (50.0, 100.0)
    assert result.prompts_after == result.submitted == program.optimized_dspy_program
    assert (result.returned_run, result.val_checkpoints) == (None, 1)
    assert result.returned_because == "the agent submitted it, and nothing scored better on val"
    assert "looked at" not in result.verdict_text  # the final check came after the choice
    assert (result.best_index, result.val_scores) == (1, (50.0, 100.0))
    assert program.best_score == 100.0
    with StoreReader.open_in(tmp_path) as store:
        assert store.spent("final_check") == store.spent() == 4


@pytest.mark.parametrize("evaluated", ["val", "val of another way to say it"])
def test_what_ran_on_the_whole_of_val_is_not_run_again(evaluated: str) -> None:
    changes = f'prompts={{"topic": {toy.FIX!r}}}' if evaluated == "val" else ""
    turns = [f"update_prompt('topic', {toy.FIX!r})", f"evaluate_program('val', {changes})", submit(toy.FIX)]
    program = compiled(turns)
    assert [log["split"] for log in program.trial_logs] == ["train", "val", "val"]
    assert "final_check" not in program.optimization_result.seconds


def test_a_submission_on_some_of_whose_rows_of_val_an_lm_failed_is_checked_on_all_of_them(tmp_path: Path) -> None:
    failures = iter([True])

    def answer(question: Asked) -> dict[str, object]:
        fixed = question.instructions == toy.FIX and question.inputs["message"].startswith(f"{toy.SECRET} message 1")
        if fixed and next(failures, False):
            raise dspy.LMRateLimitError("slow down")
        return respond(question)

    ran = f"print(evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})['evaluated_count'])"
    program = compiled([ran, submit(toy.FIX)], eval_lm=field_lm(answer, "eval"), run_storage_dir=tmp_path)
    assert program.agent_trajectory[0]["output"].strip() == "3"
    assert (program.optimization_result.splits["val"].n, program.optimization_result.val_scores) == (4, (50.0, 100.0))
    with StoreReader.open_in(tmp_path) as store:
        assert (store.spent("final_check"), store.spent()) == (4, 7)


def test_an_unchanged_program_that_is_submitted_has_the_baseline_as_its_measure() -> None:
    result = compiled([submit("Say what the message is about.")]).optimization_result
    assert result.splits["val"].difference == 0.0
    assert result.splits["train"].difference == 0.0
    assert (result.best_index, result.val_checkpoints, result.budget["spent"]) == (0, 0, 0)


def test_without_a_submission_one_lucky_run_does_not_make_the_best_candidate() -> None:
    lm = toy.luck_on_val({"lucky": ["abcd", "", "", ""], "steady": ["acd"]})
    turns = [
        'evaluate_program("val", prompts={"topic": "lucky"})',
        'evaluate_program("val", prompts={"topic": "lucky"}, repeats=3)',
        'evaluate_program("val", prompts={"topic": "steady"})',
    ]
    program = compiled(turns, eval_lm=lm, rlm_max_iterations=3)
    result = program.optimization_result
    assert [log["score"] for log in program.trial_logs if log["split"] == "val"] == [50.0, 100.0, 0.0, 75.0]
    assert result.val_scores == (50.0, 25.0, 75.0)
    assert program.optimized_dspy_program == result.candidates[2]
    assert result.returned_run == program.best_run_id == "r5"
    assert (result.best_index, program.best_score) == (2, 75.0)


def test_a_submission_that_is_worse_beyond_chance_is_not_given_back_and_that_is_said(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    better = f'evaluate_program("val", prompts={{"topic": {toy.FIX!r}}})'
    with caplog.at_level(logging.WARNING):
        program = compiled([better, submit(WORSE)], val=8, run_storage_dir=tmp_path)
    result = program.optimization_result
    assert result.submitted == {"topic": WORSE, "reply": "Answer by the topic."}
    assert result.prompts_after == program.optimized_dspy_program == {**result.submitted, "topic": toy.FIX}
    assert program.topic.signature.instructions == toy.FIX
    assert result.returned_run == program.best_run_id == "r3"
    assert result.returned_because.startswith(
        "the submission is worse on val than run r3: 100.0 -> 0.0, -100.0 points on 8 examples"
    )
    assert "The agent's submission is not given back" in caplog.text
    with StoreReader.open_in(tmp_path) as store:
        (told,) = store.events(FellBack.__name__)
    assert told.data == {"reason": result.returned_because, "run_id": "r3"}


def test_a_submission_that_may_be_as_good_as_the_best_is_given_back_with_the_difference() -> None:
    def answer(question: Asked) -> dict[str, object]:
        if question.instructions == WORSE and "message 1 " in question.inputs["message"]:
            return {"topic": "nothing"}  # on one example of eight
        if question.instructions == WORSE:
            return {"topic": question.inputs["message"].rpartition(" ")[2]}
        return toy.respond(question)

    better = f'evaluate_program("val", prompts={{"topic": {toy.FIX!r}}})'
    result = compiled([better, submit(WORSE)], val=8, eval_lm=field_lm(answer, "eval")).optimization_result
    assert result.prompts_after == result.submitted
    assert result.returned_run is None
    assert "it may be as good on val as the best, run r3: 100.0 -> 87.5, -12.5 points" in result.returned_because
    assert result.val_scores == (50.0, 100.0, 87.5)
    assert result.best_index == 1


def test_without_units_for_it_the_submission_is_given_back_unmeasured() -> None:
    spend = "while True:\n    try: evaluate_program(limit=1, prompts={'reply': 'Answer by the topic. ' + 'x' * 9})\n"
    spend += "    except BudgetExceededError: break"
    result = compiled([spend, submit(toy.FIX)], max_iterations=1).optimization_result
    assert result.prompts_after["topic"] == toy.FIX
    assert result.returned_because == (
        "the agent submitted it; it was not measured on val: it takes 4 units, and 0 are left"
    )
    assert (result.splits["val"].n, result.splits["val"].left_out, result.verdict) == (0, 4, "no proven gain")
    assert result.splits["val"].result is None
    assert result.verdict_text == f"no proven gain on val: {result.returned_because}"


def test_without_dollars_for_it_the_submission_is_given_back_unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmoptimizer.compilation.setup.check_prices", lambda lms: None)
    lm = priced_fields(respond, "eval", price=by_call(0.01))
    result = compiled([submit(toy.FIX)], eval_lm=lm, max_cost_usd=0.02 * 10 + 0.02 * 3).optimization_result
    assert "not measured on val: expected to cost $0.0800, and $0.0600 of max_cost_usd" in result.returned_because


def test_an_lm_that_fails_at_the_final_check_fails_no_compile() -> None:
    def answer(question: Asked) -> dict[str, object]:
        if question.instructions == toy.FIX:
            raise dspy.LMRateLimitError(f"slow down, {question.text}")
        return respond(question)

    result = compiled([submit(toy.FIX)], eval_lm=field_lm(answer, "eval")).optimization_result
    assert result.returned_because == (
        "the agent submitted it; it was not measured on val: the LM that runs the program failed on every example"
    )
    assert result.budget["spent"] == 0


def test_what_is_no_valid_submission_gives_way_to_the_best_run_as_its_result_says() -> None:
    better = f'evaluate_program("val", prompts={{"topic": {toy.FIX!r}}})'
    result = compiled([better], rlm_max_iterations=1, extract={"optimized_dspy_program": "{}"}).optimization_result
    assert result.submitted is None
    assert (result.prompts_after["topic"], result.returned_run, result.stop_reason) == (toy.FIX, "r3", "turns")
    assert "taking the prompts of run r3, the best on val with a score of 100.0" in result.returned_because
    assert result.returned_because.endswith("100.0")


def test_without_a_submission_the_unchanged_prompts_are_named_where_they_are_the_best() -> None:
    result = compiled([], rlm_max_iterations=1, extract={"optimized_dspy_program": "{}"}).optimization_result
    assert result.prompts_after == result.prompts_before
    assert result.returned_because.endswith(
        "taking the prompts of run r2, the best on val with a score of 50.0: those of the unchanged program"
    )


def test_without_a_run_that_has_every_score_the_prompts_stay_as_they_were() -> None:
    def answer(question: Asked) -> dict[str, object]:
        if question.inputs["message"].startswith(f"{toy.SECRET} message 1"):
            raise dspy.LMRateLimitError("slow down")
        return respond(question)

    lm = field_lm(answer, "eval")
    result = compiled([], rlm_max_iterations=1, extract=RuntimeError("no"), eval_lm=lm).optimization_result
    assert result.prompts_after == result.prompts_before
    assert (result.best_index, result.val_scores) == (None, (None,))
    assert "no run has a score on the whole of val" in result.returned_because


def test_without_a_validation_set_nothing_is_checked_and_nothing_is_claimed() -> None:
    train = f'evaluate_program(prompts={{"topic": {toy.FIX!r}}})'
    result = compiled([train, submit(toy.FIX)], val=0).optimization_result
    assert result.returned_because == "the agent submitted it; there is no validation set to check it on"
    assert (result.splits["train"].baseline, result.splits["train"].result) == (50.0, 100.0)
    assert (result.verdict, result.verdict_split) == ("no proven gain", None)
    assert "scores on train prove nothing" in result.verdict_text
    assert (result.scored_split, result.val_scores) == ("train", (50.0, 100.0))
