"""The arms of the quality benchmark on a toy task: what they make of it, what they may use, how they go on."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_toy
import offline
import pytest
import toy
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st
from quality.arms import ARMS
from quality.arms.mipro import plan_trials
from quality.arms.ours import plan
from quality.heldout import held_out
from quality.results import read_results
from quality.run import run_arm

pytestmark = pytest.mark.usefixtures("plain_repl")


@pytest.fixture
def no_optuna_no_mipro(request: pytest.FixtureRequest) -> None:
    if "mipro" in request.node.name and importlib.util.find_spec("optuna") is None:
        pytest.skip("MIPROv2 needs optuna, which is in bench/quality/requirements.txt only")


@pytest.mark.usefixtures("no_optuna_no_mipro")
@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_runs_within_the_budget_that_is_counted(arm: str, tmp_path: Path) -> None:
    scored: list[str] = []

    def metric(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        scored.append("feedback" if pred_name else "scored")
        return toy.metric(gold, prediction)

    models = bench_toy.InProcess()
    result = bench_toy.made(arm, tmp_path, models=models, task=bench_toy.toy_task(metric=metric))
    assert result.metric_calls == scored.count("scored") - bench_toy.ROWS  # those of the test rows are not the arm's
    assert result.feedback_calls == scored.count("feedback")
    # GEPA looks at its limit between iterations: a minibatch and a validation set may come on top.
    assert result.metric_calls <= bench_toy.BUDGET + (bench_toy.ROWS + 2 * 3 * 3 if arm.startswith("gepa") else 0)
    assert sum(result.test_scores) == (bench_toy.ROWS / 2 if arm == "unchanged" else bench_toy.ROWS)
    assert result.test_errors == 0
    assert result.usage["test"]["calls"] == models.calls("test") == 2 * bench_toy.ROWS
    assert {role: used["calls"] for role, used in result.usage.items()} == {
        role: models.calls(role) for role in result.usage
    }
    assert read_results(tmp_path) == [result]


def test_the_guess_shows_twenty_rows_with_what_came_of_them(tmp_path: Path) -> None:
    shown: list[str] = []

    def proposed(request: lm15.Request) -> str:
        shown.append(offline.asked(request).text)
        return bench_toy.right_proposal(request)

    models = bench_toy.InProcess()
    models.engines["proposer"] = offline.Engine(proposed)
    result = bench_toy.made("guess", tmp_path, models=models, task=bench_toy.toy_task(rows=30))
    assert result.metric_calls == 20
    assert len(shown) == 1
    assert "example 20\n" in shown[0]
    assert "example 21\n" not in shown[0]
    assert "expected 'we refund you'" in shown[0]  # feedback
    assert "message 200" not in shown[0]  # of the test rows


def test_a_task_without_prompts_written_by_hand_has_no_such_arm(tmp_path: Path) -> None:
    task = replace(bench_toy.toy_task(), hand_written=None)
    assert run_arm(task, "hand", 0, bench_toy.conditions(tmp_path), bench_toy.InProcess()) is None
    assert read_results(tmp_path) == []


def test_a_noisy_metric_is_not_what_the_held_out_rows_are_scored_by(tmp_path: Path) -> None:
    def noisy(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        return 0.25

    result = bench_toy.made("hand", tmp_path, task=replace(bench_toy.toy_task(metric=noisy), exact_metric=toy.metric))
    assert result.test_scores == [1.0] * bench_toy.ROWS


def test_a_program_that_fails_on_a_row_has_nothing_for_it_there() -> None:
    program = toy.Triage()
    program.topic.signature = program.topic.signature.with_instructions("explode")
    scored = held_out(program, toy.trainset(3), toy.metric, toy.eval_lm(), 2)
    assert (scored.scores, scored.errors) == ([0.0] * 3, 3)


# budgets


@given(budget=st.integers(8, 2000), train=st.integers(1, 200), val=st.integers(1, 200))
def test_ours_has_no_more_metric_calls_than_the_budget_and_leaves_few(budget: int, train: int, val: int) -> None:
    planned = plan(budget, train, val)
    assert planned.metric_calls <= budget
    assert 1 <= planned.train <= train
    assert 1 <= planned.val <= val
    assert planned.iterations >= 1
    if budget - 2 * planned.val >= 2 * train:  # else there are not rows enough to spend it on
        assert budget - planned.metric_calls <= planned.iterations


@given(left=st.integers(3, 2000), val=st.integers(1, 200))
def test_the_trials_of_mipro_fit_in_what_is_left(left: int, val: int) -> None:
    planned = plan_trials(left, val)
    assert planned.metric_calls <= left
    assert planned.trials >= 1
    assert 1 <= planned.val <= val
    assert planned.minibatch is None or 1 <= planned.minibatch < planned.val


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_for_nothing_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="too small for the arm ours; give it 8 or more"):
        plan(budget, 10, 10)


# resuming


def test_ours_goes_on_after_its_process_ended_and_pays_nothing_twice(tmp_path: Path) -> None:
    first = "print(evaluate_program(split='train', limit=5)['run_id'])"
    undisturbed = bench_toy.InProcess((first, bench_toy.SUBMISSION))
    whole = bench_toy.made("ours", tmp_path / "whole", models=undisturbed)

    broken = bench_toy.InProcess((first, RuntimeError("the connection is gone")))
    with pytest.raises(Exception, match="the connection is gone"):
        bench_toy.made("ours", tmp_path / "cut", models=broken)
    assert read_results(tmp_path / "cut") == []
    resumed = bench_toy.InProcess()
    result = bench_toy.made("ours", tmp_path / "cut", models=resumed)
    assert broken.calls("eval") + resumed.calls("eval") == undisturbed.calls("eval")
    assert result.metric_calls == whole.metric_calls
    assert result.usage["eval"]["calls"] == whole.usage["eval"]["calls"]
    assert result.processes == 2
    assert result.test_scores == whole.test_scores
