"""A small task for tests: a two-step program, its data, its metric, and an LM whose answers depend on the prompts.

Half of the messages are easy. For the others the first step chatters unless its prompt asks for "one word", and then
the second step does not know what to answer: the baseline scores 50, the right prompt 100. A prompt that contains
"explode" makes the first step fail.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import dspy
from offline import Asked, ScriptedRootLM, Turn, field_lm, text_lm

from kernel_bridge import KernelInterpreter
from rlmoptimizer import RLMDocstringOptimizer

ANSWERS = {"billing": "we refund you", "bug": "we fix it", "praise": "thank you"}
FIX = "Name the topic in one word: billing, bug or praise."
SECRET = "quokka"  # stands in every field of every validation example and nowhere else
KERNEL = KernelInterpreter.factory(confinement="off")


class Triage(dspy.Module):
    """Answers a customer's message by its topic."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict(dspy.Signature("message -> topic", "Say what the message is about."))
        self.reply = dspy.Predict(dspy.Signature("message, topic -> answer", "Answer by the topic."))

    def forward(self, message: str) -> dspy.Prediction:
        topic = self.topic(message=message).topic
        return dspy.Prediction(topic=topic, answer=self.reply(message=message, topic=topic).answer)


def example(number: int, *, marker: str = "") -> dspy.Example:
    topic = list(ANSWERS)[number % 3]
    manner = "plainly" if number % 2 == 0 else "at length"
    message = f"{marker}message {number} {manner} about {topic}"
    return dspy.Example(message=message, topic=topic, answer=f"{marker}{ANSWERS[topic]}").with_inputs("message")


def trainset(count: int = 6) -> list[dspy.Example]:
    return [example(number) for number in range(count)]


def valset(count: int = 4) -> list[dspy.Example]:
    return [example(number, marker=f"{SECRET} ") for number in range(count)]


def metric(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
    """The answer must fit the topic."""
    right = prediction.answer == gold.answer
    feedback = "right" if right else f"expected {gold.answer!r}"
    return dspy.Prediction(score=1.0 if right else 0.0, feedback=feedback)


def arguments(**changed: Any) -> dict[str, Any]:
    """Of `compile`, besides the student."""
    return {"trainset": trainset(), "metric": metric, "valset": valset(), **changed}


def respond(question: Asked) -> dict[str, object]:
    message = question.inputs["message"]
    marker = f"{SECRET} " if message.startswith(SECRET) else ""
    if question.outputs == ("topic",):
        if "explode" in question.instructions:
            raise RuntimeError(f"cannot read {message}")
        topic = message.rpartition(" ")[2]
        brief = "plainly" in message or "one word" in question.instructions
        return {"topic": topic if brief else f"I believe that it is {topic}"}
    return {"answer": marker + ANSWERS.get(question.inputs["topic"], "what do you mean?")}


def eval_lm() -> dspy.LM:
    return field_lm(respond, "eval")


def luck_on_val(right: dict[str, list[str]]) -> dspy.LM:
    """As the toy; with a prompt in `right` the n-th run on val is right on the n-th entry's messages, "a" the first."""
    lock, asked = threading.Lock(), Counter[tuple[str, int]]()

    def answer(question: Asked) -> dict[str, object]:
        message, prompt = question.inputs["message"], question.instructions
        if prompt not in right:
            return respond(question)
        number = int(message.removeprefix(f"{SECRET} ").split()[1])
        with lock:
            run = asked[prompt, number]
            asked[prompt, number] += 1
        return {"topic": message.rpartition(" ")[2] if "abcd"[number] in right[prompt][run] else "nothing"}

    return field_lm(answer, "eval")


def sub_lm() -> dspy.LM:
    return text_lm(lambda prompt: f"heard: {prompt}", "sub")


def optimizer(root: ScriptedRootLM, **options: Any) -> RLMDocstringOptimizer:
    defaults: dict[str, Any] = {
        "root_lm": root.lm,
        "sub_lm": sub_lm(),
        "eval_lm": eval_lm(),
        "rlm_max_iterations": 8,
        "kernel": KERNEL,
        "num_threads": 4,
    }
    return RLMDocstringOptimizer(**{**defaults, **options})


def compiled(
    turns: list[Turn], *, val: int = 4, extract: Any = None, idle: str = "pass", **options: Any
) -> tuple[Any, ScriptedRootLM]:
    """Run a whole compile with a scripted agent; gives the result and the agent.

    `metric` is that of `compile`, `optimizer_metric` that of the constructor.
    """
    root = ScriptedRootLM(turns, extract=extract, idle=idle)
    given = ("student", "trainset", "valset", "testset", "metric", "teacher", "resume")
    compile_options = {name: options.pop(name) for name in given if name in options}
    if "optimizer_metric" in options:
        options["metric"] = options.pop("optimizer_metric")
    arguments: dict[str, Any] = {
        "student": Triage(),
        "trainset": trainset(),
        "valset": valset(val) if val else None,
        "metric": metric,
        **compile_options,
    }
    return optimizer(root, **options).compile(arguments.pop("student"), **arguments), root
