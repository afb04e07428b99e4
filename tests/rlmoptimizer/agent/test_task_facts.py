from __future__ import annotations

import functools
import json
from typing import Any, Literal

import dspy
import toy

from rlmoptimizer.agent.task_facts import describe_steps, describe_task
from rlmoptimizer.task.dataset import build_dataset


class Classify(dspy.Signature):
    """Sort the text."""

    text: str = dspy.InputField(desc="what came in")
    hints: list[str] = dspy.InputField()
    kind: Literal["a", "b"] = dspy.OutputField(desc="which of both")


def facts(program: dspy.Module, metric: Any) -> dict[str, Any]:
    data = build_dataset(toy.trainset(3), toy.valset(2))
    return describe_task(program, metric, data, budget=17, num_threads=2, max_turns=9, max_llm_calls=8)


def test_a_step_is_described_by_its_name_its_fields_and_its_prompt() -> None:
    (step,) = describe_steps(dspy.Predict(Classify))
    assert step == {
        "step": "self",
        "signature_name": "Classify",
        "input_fields": [
            {"name": "text", "type": "str", "description": "what came in"},
            {"name": "hints", "type": "list[str]", "description": ""},
        ],
        "output_fields": [{"name": "kind", "type": "Literal['a', 'b']", "description": "which of both"}],
        "prompt": "Sort the text.",
    }


def test_steps_come_in_the_programs_order() -> None:
    assert [step["step"] for step in describe_steps(toy.Triage())] == ["topic", "reply"]


def test_the_task_is_told_in_plain_values_without_any_example() -> None:
    told = facts(toy.Triage(), toy.metric)
    assert told == {
        "program": "Triage",
        "program_description": "Answers a customer's message by its topic.",
        "metric": "metric",
        "metric_description": "The answer must fit the topic.",
        "train_examples": 3,
        "val_examples": 2,
        "budget": 17,
        "max_turns": 9,
        "max_sub_lm_prompts": 8,
        "num_threads": 2,
        "max_cost_usd": None,
        "max_prompt_tokens": None,
    }
    assert json.loads(json.dumps(told)) == told
    assert toy.SECRET not in repr(told)


def test_metrics_of_every_kind_have_a_name() -> None:
    class Exact:
        """Letter by letter."""

        def __call__(self, gold: Any, prediction: Any) -> bool:
            return True

    for metric, name, description in (
        (functools.partial(toy.metric, trace=None), "metric", "The answer must fit the topic."),
        (Exact(), "Exact", "Letter by letter."),
        (Exact().__call__, "__call__", ""),
        (lambda gold, prediction: True, "<lambda>", ""),
    ):
        told = facts(toy.Triage(), metric)
        assert (told["metric"], told["metric_description"]) == (name, description)


def test_a_program_without_a_docstring_is_not_described_by_dspys() -> None:
    assert facts(dspy.Predict("a -> b"), toy.metric)["program"] == "Predict"

    class Bare(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("a -> b")

    assert facts(Bare(), toy.metric)["program_description"] == ""
