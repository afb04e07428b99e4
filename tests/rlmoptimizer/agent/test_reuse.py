"""`evaluate_program(reuse=True)`: verdicts that the same prompts have come from the store, for nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer import MetricFailed, SelectionError
from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.evaluation import runs

FIXED = {"topic": toy.FIX}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as opened:
        yield opened


def cost(at: Desk, **asked: Any) -> tuple[int, dict[str, Any]]:
    before = at.ledger.spent
    run = at.evaluate(**asked)
    return at.ledger.spent - before, run


def reused(run: dict[str, Any]) -> list[str]:
    return [row["example_id"] for row in run["examples"] if row.get("reused")]


def test_what_failed_and_then_the_rest_costs_each_example_once(at: Desk) -> None:
    spent, tried = cost(at, failed_from_run="r1", prompts=FIXED)
    assert (spent, tried["score"]) == (3, 100.0)
    spent, run = cost(at, prompts=FIXED, reuse=True)
    assert (spent, run["score"], run["evaluated_count"], run["reused_count"]) == (3, 100.0, 6, 3)
    assert reused(run) == ["2", "4", "6"]
    assert "3 of 6 evaluations reused from earlier runs, for nothing" in run["summary_line"]
    fresh = {row["example_id"]: row for row in tried["examples"]}
    for row in run["examples"]:
        if row.get("reused"):
            assert row == {**fresh[row["example_id"]], "reused": True}


def test_a_run_that_is_reused_as_a_whole_costs_nothing_and_still_is_a_run(at: Desk) -> None:
    first = at.evaluate(prompts=FIXED)
    spent, run = cost(at, prompts=FIXED, reuse=True)
    assert (spent, run["run_id"], run["reused_count"], run["score"]) == (0, "r4", 6, 100.0)
    assert "all of it reused from earlier runs, for nothing" in run["summary_line"]
    assert run["remaining_budget"] == first["remaining_budget"]
    assert at.bench.tools.run_data("r4")["examples"] == run["examples"]
    assert at.evaluate(failed_from_run="r4", prompts=FIXED)["run_id"] is None
    status = at.bench.tools.optimization_status()
    assert status["runs"][-1]["reused_count"] == 6
    assert status["evaluated_examples"] == 6
    assert cost(at, prompts=FIXED, reuse=True)[0] == 0


def test_the_baseline_is_reused_too(at: Desk) -> None:
    spent, run = cost(at, reuse=True)
    assert (spent, run["reused_count"], run["score"]) == (0, 6, 50.0)


def test_it_is_off_by_default_and_every_example_costs_a_unit(at: Desk) -> None:
    for _ in range(2):
        spent, run = cost(at)
        assert (spent, reused(run)) == (6, [])
        assert "reused_count" not in run
        assert run["config"]["reuse"] is False


def test_only_the_very_same_prompts_are_reused(at: Desk) -> None:
    at.evaluate(prompts=FIXED)
    assert cost(at, prompts={"topic": f"{toy.FIX} "}, reuse=True)[0] == 6
    at.bench.tools.update_prompt("topic", toy.FIX)
    assert cost(at, reuse=True)[0] == 0  # set or tried, the prompts are the same
    assert cost(at, prompts={"reply": "Answer."}, reuse=True)[0] == 6


def test_only_the_same_rollouts_are_reused(at: Desk) -> None:
    at.evaluate(prompts=FIXED, limit=4)
    spent, run = cost(at, prompts=FIXED, repeats=3, reuse=True)
    assert (spent, run["reused_count"]) == (18 - 4, 4)
    assert reused(run) == []  # not one example as a whole
    spent, run = cost(at, prompts=FIXED, repeats=2, ids="2-6", reuse=True)
    assert (spent, reused(run)) == (0, ["2", "3", "4", "5", "6"])


def answers_in_turn(answers: list[str]) -> dspy.LM:
    """The reply to each request is the next of these, then the last for ever."""
    lock, rest = threading.Lock(), iter(answers)

    def respond(question: Asked) -> dict[str, object]:
        if question.outputs == ("topic",):
            return {"topic": "bug"}
        with lock:
            return {"answer": next(rest, answers[-1])}

    return field_lm(respond, "in turn")


def test_the_newest_verdict_is_the_one_that_is_reused(tmp_path: Path) -> None:
    with desk(tmp_path, lm=answers_in_turn(["first", "second", "third"]), threads=1, baseline=False) as at:
        for _ in range(2):
            at.evaluate(ids="1")
        assert at.evaluate(ids="1-2", reuse=True)["examples"][0]["predicted"]["answer"] == "second"


@pytest.mark.parametrize("reuse", [1, "true", "yes", 0, [True], {"a": 1}])
def test_anything_but_true_and_false_is_refused(at: Desk, reuse: Any) -> None:
    with pytest.raises(SelectionError, match=r"reuse=.* is not valid; pass True or False"):
        at.evaluate(reuse=reuse)
    assert at.ledger.spent == 0


def test_what_has_no_verdict_is_run(tmp_path: Path) -> None:
    works = threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if "message 2 " in question.inputs["message"] and not works.is_set():
            raise dspy.LMTimeoutError("no answer")
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond), baseline=False) as at:
        assert cost(at)[0] == 5
        works.set()
        spent, run = cost(at, ids="1-4", reuse=True)
        assert (spent, reused(run)) == (1, ["1", "2", "4"])


def test_what_a_metric_judged_that_failed_in_the_end_is_not_reused(tmp_path: Path) -> None:
    def broken(*_: Any) -> float:
        raise ValueError("no score")

    with desk(tmp_path, metric=broken, baseline=False) as at:
        with pytest.raises(OptimizationStopped):
            at.evaluate(ids="1")
        assert isinstance(at.bench.gate.failure, MetricFailed)
    with desk(tmp_path, baseline=False, again=True) as at:
        assert at.store.run("r1").state == "failed"
        spent, run = cost(at, ids="1-2", reuse=True)
        assert (spent, reused(run)) == (2, [])


# val


def test_a_run_on_val_is_reused_whole_and_tells_no_more_than_before(at: Desk) -> None:
    spent, run = cost(at, split="val", reuse=True)
    assert (spent, run["score"], run["reused_count"], run["examples"]) == (0, 50.0, 4, [])
    assert toy.SECRET not in repr(run)
    spent, run = cost(at, split="val", repeats=2, reuse=True)
    assert (spent, run["reused_count"], run["evaluated_count"]) == (4, 4, 4)
    assert cost(at, split="val", repeats=2, reuse=True)[0] == 0


def test_a_round_on_val_that_lacks_a_verdict_is_run_and_paid_as_a_whole(tmp_path: Path) -> None:
    works = threading.Event()
    seen: list[str] = []

    def respond(question: Asked) -> dict[str, object]:
        if question.outputs == ("topic",) and question.inputs["message"].startswith(toy.SECRET):
            seen.append(question.inputs["message"])
            if "message 2 " in question.inputs["message"] and not works.is_set():
                raise dspy.LMTimeoutError("no answer")
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond)) as at:
        works.set()
        seen.clear()
        # Else the price would be 1 unit, and the time and the change of the score those of one example.
        spent, run = cost(at, split="val", reuse=True)
        assert (spent, run["evaluated_count"], len(seen)) == (4, 4, 4)
        assert "reused_count" not in run
        assert cost(at, split="val", reuse=True)[0] == 0
        assert len(seen) == 4


def test_train_and_val_reuse_nothing_of_each_other(tmp_path: Path) -> None:
    with desk(tmp_path, baseline=False) as at:
        at.evaluate("train", limit=4)
        assert cost(at, split="val", reuse=True)[0] == 4
        assert cost(at, ids="5-6", reuse=True)[0] == 2


# bounds


def test_runs_that_reuse_everything_cannot_fill_the_disk(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MOST_FREE_RUNS", 3)
    for _ in range(3):
        at.evaluate(ids="1", reuse=True)
    with pytest.raises(SelectionError, match=r"3 evaluations had nothing else; .* or pass reuse=False"):
        at.evaluate(ids="1", reuse=True)
    assert len(at.store.runs()) == 5
    assert cost(at, ids="1")[0] == 1


def test_nor_can_rows_that_are_reused_beside_one_that_is_paid(at: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "_MOST_REUSED", 5)
    at.evaluate(ids="1-5", prompts=FIXED)
    assert at.evaluate(prompts=FIXED, reuse=True)["reused_count"] == 5
    with pytest.raises(SelectionError, match="5 verdicts were reused, 0 evaluations had nothing else"):
        at.evaluate(ids="1", prompts={"topic": "Anew."}, reuse=True)
