"""`optimization_status()["candidates"]`: what all runs of each candidate together say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from hypothesis import given
from hypothesis import strategies as st
from offline import Asked, field_lm

from rlmoptimizer.agent.candidate_table import candidate_table
from rlmoptimizer.records import PASSED_AT, mean


def table(at: Desk) -> list[dict[str, Any]]:
    return at.bench.tools.optimization_status()["candidates"]


def test_it_pools_the_runs_of_each_candidate_best_first(tmp_path: Path) -> None:
    with desk(tmp_path, train=12) as at:
        fixed = {"topic": toy.FIX}
        first = at.evaluate(ids="1-4", prompts=fixed)["run_id"]
        second = at.evaluate(ids="3-6", prompts=fixed)["run_id"]
        worse = at.evaluate(ids="1-3", prompts={"topic": "explode"})["run_id"]
        val = at.evaluate("val", prompts=fixed)["run_id"]
        best, baseline, last = table(at)
        assert {name: best[name] for name in best if name != "candidate"} == {
            "is_current": False,
            "changed_steps": ["topic"],
            "train_evaluated": 6,
            "train_passed": 6,
            "train_score": 100.0,
            "val_score": 100.0,
            "run_ids": [first, second, val],
        }
        assert (baseline["is_current"], baseline["changed_steps"], baseline["run_ids"]) == (True, [], ["r1", "r2"])
        assert (baseline["train_evaluated"], baseline["train_passed"], baseline["val_score"]) == (12, 6, 50.0)
        assert (last["train_evaluated"], last["train_passed"], last["val_score"]) == (3, 0, None)
        assert last["run_ids"] == [worse]
        assert best["candidate"] == at.store.run(first).candidate


def test_an_example_that_passed_only_sometimes_has_not_passed(tmp_path: Path) -> None:
    answers = iter([0.0, 1.0, 1.0, 1.0])

    def metric(gold: Any, prediction: Any, trace: Any = None) -> float:
        return next(answers)

    with desk(tmp_path, metric=metric, baseline=False, threads=1) as at:
        at.evaluate(ids="1-2")
        at.evaluate(ids="1-2")
        (only,) = table(at)
        assert (only["train_evaluated"], only["train_passed"], only["train_score"]) == (2, 1, 75.0)


def test_one_lucky_run_on_val_does_not_make_the_best_candidate(tmp_path: Path) -> None:
    lm = toy.luck_on_val({"lucky": ["abcd", "", "", ""], "steady": ["acd"]})
    with desk(tmp_path, lm=lm) as at:
        assert at.evaluate("val", prompts={"topic": "lucky"})["score"] == 100.0
        assert at.bench.tools.optimization_status()["best_run_id"] == "r3"
        assert at.evaluate("val", prompts={"topic": "lucky"}, repeats=3)["score"] == 0.0
        assert at.evaluate("val", prompts={"topic": "steady"})["score"] == 75.0
        status = at.bench.tools.optimization_status()
        assert (status["best_run_id"], status["best_score"], status["best_prompts"]["topic"]) == ("r5", 75.0, "steady")
        assert [line["val_score"] for line in status["candidates"]] == [75.0, 50.0, 25.0]


def test_without_val_the_best_may_have_its_scores_on_train_from_several_runs(tmp_path: Path) -> None:
    with desk(tmp_path, val=None) as at:
        at.evaluate(ids="1-4", prompts={"topic": toy.FIX})
        assert at.bench.tools.optimization_status()["best_run_id"] == "r1"
        at.evaluate(ids="5-6", prompts={"topic": toy.FIX})
        status = at.bench.tools.optimization_status()
        assert (status["best_run_id"], status["best_score"]) == ("r2", 100.0)
        assert status["best_prompts"]["topic"] == toy.FIX


def test_a_score_on_a_part_of_val_is_none(tmp_path: Path) -> None:
    def respond(question: Asked) -> dict[str, object]:
        message = question.inputs["message"]
        if toy.FIX in question.instructions and message.startswith(toy.SECRET) and "message 0" not in message:
            raise dspy.LMRateLimitError("busy")
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond, "eval")) as at:
        told = at.evaluate("val", prompts={"topic": toy.FIX})
        assert (told["score"], told["evaluated_count"], told["unanswered_count"]) == (100.0, 1, 3)
        scores = {tuple(line["changed_steps"]): line["val_score"] for line in table(at)}
        assert scores == {(): 50.0, ("topic",): None}


def test_runs_that_the_agent_may_not_see_are_not_in_it(tmp_path: Path) -> None:
    with desk(tmp_path) as at:
        prompts = {**at.bench.prompts.original, "topic": "hidden"}
        for split, state in (("test", {}), ("val", {"cancelled": True})):
            at.store.finish_run(at.store.begin_run(split, {}, prompts, planned_ids=["1"]), **state)
        at.store.begin_run("train", {}, prompts, planned_ids=["1"])  # still running
        assert [line["changed_steps"] for line in table(at)] == [[]]


def test_of_many_candidates_the_newest_and_the_best_are_told(tmp_path: Path) -> None:
    with desk(tmp_path, train=2, val=None, budget=200) as at:
        at.evaluate(prompts={"topic": toy.FIX})
        for number in range(60):
            at.evaluate(ids="1", prompts={"reply": f"Answer {number}."})
        told = table(at)
        assert len(told) == 51
        assert told[0]["changed_steps"] == ["topic"] or told[0]["train_score"] == 100.0
        assert any(line["changed_steps"] == ["reply"] and line["run_ids"] == ["r62"] for line in told)
        assert not any(line["run_ids"] == ["r5"] for line in told)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 3), st.sampled_from([0.0, 0.5, 1.0])), max_size=12))
def test_the_totals_are_those_of_the_verdicts(tmp_path_factory: pytest.TempPathFactory, verdicts: Any) -> None:
    from stored_runs import result

    from rlmoptimizer.store.run_store import RunStore

    pooled: dict[str, dict[str, list[float]]] = {}
    with RunStore.create_in(tmp_path_factory.mktemp("store")) as store:
        for text, example, score in verdicts:
            run_id = store.begin_run("train", {}, {"step": text}, planned_ids=[str(example)])
            store.append(run_id, result(str(example), score))
            store.finish_run(run_id)
            pooled.setdefault(store.run(run_id).candidate, {}).setdefault(str(example), []).append(score)
        lines = {line["candidate"]: line for line in candidate_table(store, store.runs(), {}, {"step": "a"}, "")}
    assert set(lines) == set(pooled)
    for candidate, by_example in pooled.items():
        means = [mean(scores) for scores in by_example.values()]
        assert lines[candidate]["train_evaluated"] == len(means)
        assert lines[candidate]["train_passed"] == sum(one >= PASSED_AT for one in means)
        assert lines[candidate]["train_score"] == pytest.approx(100 * mean(means), abs=0.01)
