"""The agent's requests have a format of their own, whatever adapter the program runs with."""

from __future__ import annotations

import functools
from typing import Any

import dspy
import pytest
import toy
from dspy import lm15
from dspy.adapters.baml_adapter import BAMLAdapter
from offline import Asked, ScriptedRootLM, field_lm, text_lm
from responses_server import ResponsesServer, turn

from rlmoptimizer import RLMDocstringOptimizer

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
LOOK = "print(len(run_data('r1')['examples']))"
DATA = [dspy.Example(message=f"message {number}", answer="").with_inputs("message") for number in range(2)]


class OwnAdapter(dspy.Adapter):
    """Writes its messages in its own way."""

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        return [{"role": "user", "content": repr(inputs)}]


class Noting(dspy.Module):
    """A program that asks no LM, and notes the adapter that it runs with."""

    def __init__(self, seen: set[Any]) -> None:
        super().__init__()
        self.topic = dspy.Predict(dspy.Signature("message -> answer", "Say what the message is about."))
        self._seen = seen

    def forward(self, message: str) -> dspy.Prediction:
        self._seen.add(type(dspy.settings.adapter))
        return dspy.Prediction(answer="hm")

    def __deepcopy__(self, memo: Any) -> Noting:
        return Noting(self._seen)


ADAPTERS: dict[str, Any] = {
    "chat": dspy.ChatAdapter(use_json_adapter_fallback=False),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(),
    "two steps": dspy.TwoStepAdapter(extraction_model=text_lm(str)),
    "baml": BAMLAdapter(),
    "own": OwnAdapter(),
}


def requests_under(adapter: Any, seen: set[Any] | None = None, **options: Any) -> list[lm15.Request]:
    """What the root LM is asked in two turns and a conclusion, when `dspy.settings` has this adapter."""
    noted: set[Any] = set() if seen is None else seen

    def metric(gold: Any, prediction: Any) -> float:
        noted.add(type(dspy.settings.adapter))
        return 0.5

    root = ScriptedRootLM([LOOK, LOOK], extract={"optimized_dspy_program": '{"topic": "Say it."}'})
    with dspy.context(adapter=adapter):
        result, _ = compiled(root, metric=metric, student=Noting(noted), **options)
    assert result.optimized_dspy_program == {"topic": "Say it."}
    return root.requests


@functools.cache
def requests_without(multiturn: bool) -> list[lm15.Request]:
    """The same when `dspy.settings` has none."""
    return requests_under(None, rlm_multiturn_history=multiturn)


def compiled(root: ScriptedRootLM, *, metric: Any, student: Any, **options: Any) -> tuple[Any, ScriptedRootLM]:
    optimizer = toy.optimizer(root, rlm_max_iterations=2, **options)
    return optimizer.compile(student, trainset=DATA, metric=metric), root


@pytest.mark.parametrize("multiturn", [False, True])
@pytest.mark.parametrize("name", ADAPTERS)
def test_the_programs_adapter_does_not_reach_the_agent(name: str, multiturn: bool) -> None:
    seen: set[Any] = set()
    requests = requests_under(ADAPTERS[name], seen, rlm_multiturn_history=multiturn)
    plain = requests_without(multiturn)
    assert [(request.system, request.messages) for request in requests] == [
        (request.system, request.messages) for request in plain
    ]
    assert len(plain) == 3
    assert seen == {type(ADAPTERS[name])}  # program and metric keep it


def test_the_programs_adapter_does_not_reach_a_conversation_that_the_provider_keeps() -> None:
    said: list[Any] = []
    for adapter in (None, dspy.XMLAdapter(), ADAPTERS["two steps"]):
        with ResponsesServer([turn("look", LOOK), turn("done", SUBMIT)]) as server, dspy.context(adapter=adapter):
            lm = dspy.LM("openai/root", model_type="responses", api_base=server.url, api_key="none", cache=False)
            options: dict[str, Any] = {"eval_lm": toy.eval_lm(), "kernel": toy.KERNEL, "root_lm": lm}
            RLMDocstringOptimizer(**options).compile(Noting(set()), trainset=DATA, metric=lambda gold, made: 0.5)
            assert server.calls[1].parent == server.calls[0].id
            said.append([call.new for call in server.calls])
    assert said[0] == said[1] == said[2]


def test_the_root_adapter_formats_the_agents_turns_and_leaves_the_program_alone() -> None:
    seen: set[Any] = set()
    root = ScriptedRootLM([])
    answers = ['{"reasoning": "done", "code": "SUBMIT(optimized_dspy_program={\'topic\': \'x\'})"}']
    root.engine._answer = lambda request: answers.pop(0)
    requests: list[str] = []
    plain = root.engine.complete

    def complete(request: lm15.Request) -> lm15.Response:
        requests.append(str(request.system))
        return plain(request)

    root.engine.complete = complete  # type: ignore[method-assign]
    result, _ = compiled(root, metric=lambda gold, made: 0.5, student=Noting(seen), root_adapter=dspy.JSONAdapter())
    assert result.optimized_dspy_program == {"topic": "x"}
    assert "Outputs will be a JSON object" in requests[0]
    assert seen == {type(None)}


def test_prompts_to_the_sub_lm_are_sent_as_they_are() -> None:
    heard: list[str] = []
    sub = text_lm(lambda prompt: heard.append(prompt) or "yes")
    root = ScriptedRootLM(["print(llm_query('is it?'))", SUBMIT])
    with dspy.context(adapter=dspy.XMLAdapter()):
        compiled(root, metric=lambda gold, made: 0.5, student=Noting(set()), sub_lm=sub)
    assert heard == ["is it?"]


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")
def test_sub_agents_have_the_agents_format_too() -> None:
    said: list[str] = []
    for adapter in (None, dspy.XMLAdapter()):
        ask = "import dspy\nprint(dspy.Predict('question -> answer')(question='why?').answer)"
        root = ScriptedRootLM([ask, SUBMIT])

        def answer(question: Asked) -> dict[str, object]:
            said.append(question.text)
            return {"answer": "fine"}

        with dspy.context(adapter=adapter):
            result, _ = compiled(
                root,
                metric=lambda gold, made: 0.5,
                student=Noting(set()),
                sub_lm=field_lm(answer),
                sub_agents=True,
                kernel=KERNEL,
            )
        assert result.agent_trajectory[0]["output"].strip() == "fine"
    assert said[0] == said[1]
