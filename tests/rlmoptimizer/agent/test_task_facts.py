from __future__ import annotations

import functools
import json
from typing import Any, Literal

import dspy
import pytest
import toy
from dspy.evaluate import SemanticF1, answer_exact_match
from offline import ScriptedRootLM

from rlmoptimizer.agent.task_facts import describe_steps, describe_task
from rlmoptimizer.task.dataset import build_dataset


class Classify(dspy.Signature):
    """Sort the text."""

    text: str = dspy.InputField(desc="what came in")
    hints: list[str] = dspy.InputField()
    kind: Literal["a", "b"] = dspy.OutputField(desc="which of both")


def facts(program: dspy.Module, metric: Any) -> dict[str, Any]:
    data = build_dataset(toy.trainset(3), toy.valset(2))
    options = {"num_threads": 2, "rlm_max_iterations": 9, "rlm_max_llm_calls": 8}
    settings = toy.optimizer(ScriptedRootLM([]), **options).settings
    return describe_task(program, metric, data, settings, budget=17, warnings=["beware"])


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
        "model": None,
        "limits": {},
        "example_request": None,
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
        "warnings": ["beware"],
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


@pytest.mark.parametrize("program", [dspy.Predict("a -> b"), dspy.ChainOfThought("a -> b"), dspy.ReAct("a -> b", [])])
def test_dspys_own_docstrings_describe_no_program(program: dspy.Module) -> None:
    assert facts(program, toy.metric)["program_description"] == ""


def test_dspys_own_classes_describe_no_metric_and_its_functions_do() -> None:
    assert facts(toy.Triage(), SemanticF1())["metric_description"] == ""
    assert facts(toy.Triage(), answer_exact_match)["metric_description"].startswith("Evaluate exact match")


# What decides how long the answers of a step are, and how much they vary.


def limits(lm: dspy.BaseLM | None, **config: Any) -> dict[str, Any]:
    return describe_steps(dspy.Predict("a -> b", **config), lm)[0]["limits"]


def test_the_limits_are_those_of_the_lm_and_before_them_those_of_the_step() -> None:
    lm = dspy.LM("openai/some", temperature=0.2, max_tokens=100, stop=["END"], seed=3)
    assert limits(lm) == {"max_tokens": 100, "temperature": 0.2, "stop": ["END"]}
    assert limits(lm, max_tokens=20, n=2) == {"max_tokens": 20, "temperature": 0.2, "stop": ["END"], "n": 2}
    assert limits(dspy.LM("openai/some")) == {}
    assert limits(None) == {}


def test_a_step_says_which_model_answers_it() -> None:
    own = dspy.Predict("a -> b")
    own.set_lm(dspy.LM("openai/own"))
    assert describe_steps(own, dspy.LM("openai/some"))[0]["model"] == "openai/own"
    assert describe_steps(dspy.Predict("a -> b"), dspy.LM("openai/some"))[0]["model"] == "openai/some"
    assert describe_steps(dspy.Predict("a -> b"))[0]["model"] is None


def test_a_step_with_an_lm_of_its_own_has_the_limits_of_that() -> None:
    program = dspy.Predict("a -> b")
    program.set_lm(dspy.LM("openai/own", max_tokens=7))
    assert describe_steps(program, dspy.LM("openai/some", max_tokens=100))[0]["limits"] == {"max_tokens": 7}


def test_a_limit_has_one_name_whatever_the_model_calls_it() -> None:
    lm = dspy.LM("openai/gpt-5", max_tokens=16000, temperature=1.0, reasoning_effort="low")
    assert limits(lm) == {"max_tokens": 16000, "temperature": 1.0, "reasoning_effort": "low"}


def test_keys_addresses_and_other_settings_of_an_lm_are_not_told() -> None:
    secrets = {"api_key": "sk-quokka", "api_base": "http://quokka", "extra_headers": {"x": "quokka"}, "user": "quokka"}
    told = describe_steps(dspy.Predict("a -> b", api_key="sk-quokka"), dspy.LM("openai/some", **secrets))
    assert "quokka" not in repr(told)
    assert limits(dspy.LM("openai/some", stop={"not": "plain"}, top_p=object())) == {}


def test_a_step_shows_its_example_request() -> None:
    request = {"messages": [{"role": "user", "content": "hello"}], "completion": "hi"}
    topic, reply = describe_steps(toy.Triage(), None, {"topic": request})
    assert (topic["example_request"], reply["example_request"]) == (request, None)
