"""What is told of a step's exchange with its LM: the request as it was sent, the answers, and whether one was cut."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from offline import Asked, field_lm, fields_text, text_lm
from responses_server import ResponsesServer

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.lm_exchange import ExampleRequests, exchange_dict, was_truncated
from rlmoptimizer.evaluation.row_runner import Detail
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.task.dataset import Row, build_dataset

TIMEOUT = 100  # seconds; only a broken test waits so long


def rows_of(*questions: Any) -> tuple[Row, ...]:
    return build_dataset([dspy.Example(question=question).with_inputs("question") for question in questions]).train


def answering(asked: Asked) -> dict[str, object]:
    return {name: f"{name} to {asked.inputs.get('question', '?')}" for name in asked.outputs}


def evaluated(
    program: dspy.Module, *questions: Any, lm: Any = None, threads: int = 1, detail: Detail = "requests"
) -> list[ExampleResult]:
    with Evaluator(lambda example, prediction: True, lm or field_lm(answering), threads) as evaluator:
        return evaluator.score(program, rows_of(*questions or ("q",)), detail=detail)


def requests_of(results: list[ExampleResult]) -> dict[str, dict[str, Any]]:
    """The first request of each step, as the agent gets it."""
    found: dict[str, dict[str, Any]] = {}
    for result in results:
        for step in result.steps:
            if step.request is not None:
                found.setdefault(step.step_name, step.request)
    return found


@contextlib.contextmanager
def adapter(one: Any) -> Iterator[None]:
    with dspy.context(adapter=one):
        yield


# The request.


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict(dspy.Signature("question -> note", "Note it."))
        self.two = dspy.ChainOfThought("note -> answer")

    def forward(self, question: str) -> Any:
        return self.two(note=self.one(question=question).note)


def test_the_request_of_each_step_is_kept_as_its_lm_got_it() -> None:
    got: list[str] = []

    def respond(question: Asked) -> dict[str, object]:
        got.append(question.text)
        return answering(question)

    requests = requests_of(evaluated(TwoSteps(), "why", lm=field_lm(respond)))
    assert list(requests) == ["one", "two.predict"]
    for step, text in zip(("one", "two.predict"), got, strict=True):
        assert [message["role"] for message in requests[step]["messages"]] == ["system", "user"]
        assert "\n\n".join(message["content"] for message in requests[step]["messages"]) == text
    assert requests["one"]["completion"] == fields_text({"note": "note to why"})


def test_it_is_kept_of_the_first_example_in_which_the_step_ran_and_of_no_later_one() -> None:
    class Sometimes(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always = dspy.Predict("question -> answer")
            self.rarely = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            if question in ("c", "e"):
                self.rarely(question=question)
            for _ in range(3):
                answer = self.always(question=question)
            return answer

    results = evaluated(Sometimes(), *"abcdef")
    kept = [(result.example_id, step.step_name) for result in results for step in result.steps if step.request]
    assert kept == [("1", "always"), ("3", "rarely")]


def test_it_is_that_of_the_first_example_also_when_a_later_one_is_faster() -> None:
    second_ran = threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if question.inputs["question"] == "first":
            assert second_ran.wait(TIMEOUT)
        else:
            second_ran.set()
        return answering(question)

    results = evaluated(dspy.Predict("question -> answer"), "first", "second", lm=field_lm(respond), threads=2)
    assert "first" in requests_of(results)["self"]["messages"][-1]["content"]


@pytest.mark.parametrize("detail", ["rows", "totals"])
def test_no_request_is_kept_where_none_is_asked_for(detail: Detail) -> None:
    assert requests_of(evaluated(TwoSteps(), detail=detail)) == {}


def test_a_row_shows_no_request() -> None:
    (result,) = evaluated(TwoSteps())
    assert all("request" not in step for step in result.as_row()["steps"])


def test_the_steps_of_an_agent_an_async_program_and_a_step_with_an_lm_of_its_own_are_kept_too() -> None:
    class Wide(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = dspy.Predict("question -> answer")
            self.own.set_lm(field_lm(lambda asked: {"answer": "mine"}, "own"))
            self.act = dspy.ReAct("question -> answer", tools=[search], max_iters=2)

        async def aforward(self, question: str) -> Any:
            _, answer = await asyncio.gather(self.own.acall(question=question), self.act.acall(question=question))
            return answer

    def search(query: str) -> str:
        """Look it up."""
        return f"found {query}"

    def respond(asked: Asked) -> dict[str, object]:
        if "next_tool_name" in asked.outputs:
            return {"next_thought": "look", "next_tool_name": "search", "next_tool_args": '{"query": "x"}'}
        return answering(asked)

    requests = requests_of(evaluated(Wide(), lm=field_lm(respond)))
    assert set(requests) == {"own", "act.react", "act.extract.predict"}
    assert requests["own"]["completion"] == fields_text({"answer": "mine"})
    assert "search" in requests["act.react"]["messages"][0]["content"]


def test_it_is_kept_when_dspys_cache_answers() -> None:
    with ResponsesServer(lambda said: fields_text({"answer": "cached"})) as server:
        lm = dspy.LM("openai/eval", api_base=server.url, api_key="none", temperature=0.37)
        with contextlib.closing(lm):
            first, again = (evaluated(dspy.Predict("question -> answer"), lm=lm) for _ in range(2))
        assert len(server.calls) == 1
    assert requests_of(again) == requests_of(first) != {}


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_of_several_tries_of_a_step_the_first_is_kept_under_its_name(kind: Any) -> None:
    tried = kind(module=dspy.Predict("question -> answer"), N=2, reward_fn=lambda args, prediction: 0.0, threshold=1.0)
    (result,) = evaluated(tried)
    assert [step.step_name for step in result.steps if step.request is not None] == ["module"]
    assert result.steps[0].request is not None


@pytest.mark.parametrize("kind", [dspy.BestOfN, dspy.Refine])
def test_a_try_that_cannot_be_parsed_is_shown_with_its_answers(kind: Any) -> None:
    tried = kind(module=dspy.Predict("question -> answer"), N=2, reward_fn=lambda args, prediction: 0.0, threshold=1.0)
    (result,) = evaluated(tried, lm=fallback("Well.", "Neither."))
    failed = result.steps[0]
    assert (failed.first_completion, failed.completion) == ("Well.", "Neither.")
    assert failed.request is not None


def test_long_texts_lose_their_middle_and_say_so() -> None:
    entry = {
        "messages": [{"role": "system", "content": "s" * 50_000}, {"role": "user", "content": "u" * 50_000}],
        "outputs": ["a" * 50_000],
    }
    shown = exchange_dict(entry)
    assert len(repr(shown)) < 25_000
    assert all("characters left out" in message["content"] for message in shown["messages"])
    assert "characters left out" in shown["completion"]


def test_many_messages_lose_their_middle_and_say_so() -> None:
    shown = exchange_dict({"messages": [{"role": "user", "content": str(number)} for number in range(100)]})
    texts = [message["content"] for message in shown["messages"]]
    assert (texts[0], texts[-1], len(texts)) == ("0", "99", 25)
    assert texts[12] == "[76 messages left out]"


def test_an_attachment_is_described_and_not_shown() -> None:
    parts = [
        {"type": "text", "text": "look: "},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000}},
    ]
    shown = exchange_dict({"messages": [{"role": "user", "content": parts}], "outputs": [{"text": "a cat"}]})
    assert shown["messages"][0]["content"].startswith("look: [image_url, 9,0")
    assert shown["completion"] == "a cat"


def test_tools_that_the_lm_was_told_of_apart_from_the_messages_are_named() -> None:
    tools = [{"type": "function", "function": {"name": "search", "parameters": {}}}]
    assert exchange_dict({"prompt": "p", "kwargs": {"tools": tools}})["tools"] == ["search"]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "a", ("no", "text"): 1}],
        [{"type": "a", "deep": nested(100_000)}],
        [{"type": 10**5000}],
    ],
    ids=["keys", "depth", "digits"],
)
def test_a_request_that_cannot_be_shown_fails_no_step(content: Any) -> None:
    shown = exchange_dict({"messages": [{"role": "user", "content": content}], "outputs": ["said"]})
    assert shown == {"messages": [], "completion": "said"}


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "outputs", "response", "kwargs"]), anything))
def test_whatever_an_lm_writes_into_its_entry_is_read(entry: dict[str, Any]) -> None:
    shown = exchange_dict(entry)
    assert all(isinstance(message["content"], str) for message in shown["messages"])
    assert was_truncated(entry) in (True, False)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 20))))
def test_the_first_example_of_each_step_is_always_taken(calls: list[tuple[str, int]]) -> None:
    requests = ExampleRequests()
    taken = [call for call in calls if requests.take(*call)]
    for step in {step for step, _ in calls}:
        assert (step, min(position for name, position in calls if name == step)) in taken


# Several answers to one call.


def fallback(first: str, second: str) -> Any:
    """An LM that is asked again, as JSON, when its first answer cannot be parsed."""
    return text_lm(lambda text: second if "JSON object" in text else first)


def test_a_step_that_was_asked_again_as_json_shows_what_was_answered_at_first() -> None:
    (result,) = evaluated(dspy.Predict("question -> answer"), lm=fallback("Well, yes.", '{"answer": "yes"}'))
    (step,) = result.steps
    assert step.outputs == {"answer": "yes"}
    assert (step.completion, step.first_completion) == (None, "Well, yes.")
    assert step.request is not None
    assert step.request["completion"] == "Well, yes."
    assert [further["completion"] for further in step.request["further_requests"]] == ['{"answer": "yes"}']
    assert result.as_row()["steps"][0]["first_completion"] == "Well, yes."


def test_a_step_both_of_whose_answers_cannot_be_parsed_shows_both() -> None:
    (result,) = evaluated(dspy.Predict("question -> answer: int"), lm=fallback("Well.", '{"answer": "many"}'))
    (step,) = result.steps
    assert (step.first_completion, step.completion) == ("Well.", '{"answer": "many"}')
    assert (step.error or "").startswith("AdapterParseError: ")


def test_an_answer_that_is_the_same_both_times_is_shown_once() -> None:
    (result,) = evaluated(dspy.Predict("question -> answer"), lm=text_lm(lambda _: "Sorry."))
    (step,) = result.steps
    assert (step.completion, step.first_completion) == ("Sorry.", None)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_of_a_two_step_adapter_the_answer_of_the_programs_own_lm_is_shown(asynchronous: bool) -> None:
    class Async(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("question -> answer")

        async def aforward(self, question: str) -> Any:
            return await self.step.acall(question=question)

    reader = field_lm(lambda asked: {"answer": asked.inputs["text"].upper()}, "reader")
    program = Async() if asynchronous else dspy.Predict("question -> answer")
    with adapter(dspy.TwoStepAdapter(reader)):
        (result,) = evaluated(program, lm=text_lm(lambda _: "the answer is yes"))
    (step,) = result.steps
    assert step.outputs == {"answer": "THE ANSWER IS YES"}
    assert step.first_completion == "the answer is yes"
    assert step.request is not None
    assert step.request["completion"] == "the answer is yes"


def test_a_step_that_left_an_output_empty_shows_what_its_lm_wrote() -> None:
    answers = {"full": "yes", "empty": ""}
    lm = field_lm(lambda asked: {"answer": answers[asked.inputs["question"]]})
    full, empty = evaluated(dspy.Predict("question -> answer"), "full", "empty", lm=lm)
    assert (full.steps[0].outputs, full.steps[0].completion) == ({"answer": "yes"}, None)
    assert (empty.steps[0].outputs, empty.steps[0].completion) == ({"answer": ""}, fields_text({"answer": ""}))
    assert empty.as_row()["steps"][0]["completion"] == fields_text({"answer": ""})


def test_a_step_with_one_answer_has_no_first_one() -> None:
    (result,) = evaluated(TwoSteps())
    assert [step.first_completion for step in result.steps] == [None, None]


# Answers that were cut.


def lms(server: ResponsesServer) -> dict[str, Callable[[], Any]]:
    """Every road from a step to a provider, each of which says in its own way that an answer was cut."""

    class Legacy(dspy.BaseLM):
        def close(self) -> None:
            pass

        def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
            return dspy.LM("openai/eval", api_base=server.url, api_key="none", engine="litellm", cache=False).forward(
                prompt, messages, **kwargs
            )

    def lm(**options: Any) -> Any:
        return dspy.LM("openai/eval", api_base=server.url, api_key="none", **{"cache": False, **options})

    return {
        "lm15 chat": lambda: lm(engine="lm15"),
        "lm15 responses": lambda: lm(engine="lm15", model_type="responses"),
        "litellm chat": lambda: lm(engine="litellm"),
        "litellm responses": lambda: lm(engine="litellm", model_type="responses"),
        "several answers": lambda: lm(n=2, temperature=0.8),
        "cached lm15": lambda: lm(engine="lm15", cache=True, temperature=0.31),
        "cached litellm": lambda: lm(engine="litellm", cache=True, temperature=0.32),
        "a BaseLM of one's own": lambda: Legacy("own"),
    }


@pytest.fixture(scope="module")
def connections_of_litellm() -> Iterator[None]:
    """Closed at the end: LiteLLM keeps its clients, with a connection to each server, until the process ends."""
    yield
    if (litellm := sys.modules.get("litellm")) is not None:
        for client in litellm.in_memory_llm_clients_cache.cache_dict.values():
            if not inspect.iscoroutinefunction(client.close):  # no asynchronous one has asked anything here
                client.close()


@pytest.mark.usefixtures("connections_of_litellm")
@pytest.mark.parametrize("road", list(lms(None)))  # pyright: ignore[reportArgumentType] # no server is asked here
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_answer_that_was_cut_is_known_by_every_road(road: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    program = dspy.Predict("question -> answer")
    with ResponsesServer(lambda said: fields_text({"answer": "x" * 300})) as server:
        for longest in (None, 100):
            server.longest = longest
            for _ in range(2):  # the second time from the cache, where there is one
                with contextlib.closing(lms(server)[road]()) as lm:
                    (result,) = evaluated(program, f"{road} {longest}", lm=lm)
                assert result.steps[0].truncated == (longest is not None)
                assert ("truncated" in result.as_row()["steps"][0]) == (longest is not None)


def test_what_is_sent_and_cut_is_known_where_dspy_keeps_no_history() -> None:
    with ResponsesServer(lambda said: fields_text({"answer": "x" * 300}), longest=100) as server:
        lm = dspy.LM("openai/eval", api_base=server.url, api_key="none", cache=False)
        history_off = dspy.context(disable_history=True)
        with contextlib.closing(lm), history_off, UsageMeter(CostLedger()).role("eval"):
            (result,) = evaluated(dspy.Predict("question -> answer"), lm=lm)
    assert result.steps[0].truncated
    assert result.steps[0].request is not None
