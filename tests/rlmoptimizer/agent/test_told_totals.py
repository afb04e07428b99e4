"""What the totals of a run tell beside the score: answers that were cut, and the metric's other scores."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import dspy
import toy
from desk import desk
from offline import Asked, asked, fields_text
from responses_server import ResponsesServer

from rlmoptimizer.records import RunRecord


def metric(gold: Any, prediction: Any) -> Any:
    """Its objectives are the length of the answer, and one that is named by what the example holds."""
    objectives = {"length": len(prediction.answer), f"about {gold.message}": 1.0}
    return {"score": float(prediction.answer == gold.answer), "objective_scores": objectives}


def test_the_totals_have_the_means_of_the_objectives_and_each_example_its_own(tmp_path: Path) -> None:
    with desk(tmp_path, metric=metric) as at:
        run = at.evaluate(ids="1,2")
        lengths = [len(example["predicted"]["answer"]) for example in run["examples"]]
        assert [example["objectives"]["length"] for example in run["examples"]] == lengths
        assert run["objectives"]["length"] == sum(lengths) / 2
        status = at.bench.tools.optimization_status()
        assert status["runs"][-1]["objectives"] == run["objectives"]


def test_of_val_only_objectives_are_told_whose_names_train_has_shown(tmp_path: Path) -> None:
    with desk(tmp_path, metric=metric) as at:
        run = at.evaluate(split="val")
        status = at.bench.tools.optimization_status()
        again = at.bench.tools.run_data(run["run_id"])
    for totals in (run, again, *(run for run in status["runs"] if run["split"] == "val")):
        assert list(totals["objectives"]) == ["length"]
    assert toy.SECRET not in repr((run, status, again))


def test_a_metric_without_objectives_adds_nothing(tmp_path: Path) -> None:
    with desk(tmp_path) as at:
        run = at.evaluate(ids="1")
    assert "objectives" not in run
    assert "truncated_count" not in run


def test_the_totals_count_the_examples_in_which_an_answer_was_cut(tmp_path: Path) -> None:
    answers: dict[str, str] = {}

    def answer(said: tuple[tuple[str, str], ...]) -> str:
        texts = dict(said)
        request = dspy.lm15.Request(
            model="m", messages=(dspy.lm15.Message.user(texts["user"]),), system=texts["system"]
        )
        question: Asked = asked(request)
        fields = toy.respond(question)
        if "plainly" in question.inputs["message"]:
            fields |= {name: f"{value}{'!' * 500}" for name, value in fields.items()}
        answers[texts["user"]] = fields_text(fields)
        return answers[texts["user"]]

    with ResponsesServer(answer, longest=300) as server:
        lm = dspy.LM("openai/eval", api_base=server.url, api_key="none", cache=False)
        with contextlib.closing(lm), desk(tmp_path, lm=lm) as at:
            run, val = at.evaluate(), at.evaluate(split="val")
            record: RunRecord = at.store.run(run["run_id"])
    assert (run["truncated_count"], val["truncated_count"]) == (3, 2)
    assert record.truncated_count == 3
    assert "3 in which an LM's answer was cut at max_tokens" in run["summary_line"]
    assert "2 in which an LM's answer was cut at max_tokens" in val["summary_line"]
    cut = [example["example_id"] for example in run["examples"] if any("truncated" in s for s in example["steps"])]
    assert cut == ["1", "3", "5"]
