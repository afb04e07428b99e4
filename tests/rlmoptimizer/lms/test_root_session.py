from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.utils import dotdict
from dspy.primitives.repl_types import REPLHistory
from dspy.utils import DummyLM
from responses_server import Call, ResponsesServer, Said, as_json, turn

from rlmoptimizer.lms.root_session import RootSession

DONE = turn("enough", "SUBMIT(answer='42')")
LOOK = turn("look", "print('one')")
MORE = turn("more", "print('two')")


@pytest.fixture(autouse=True)
def prices_are_looked_up_on_this_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")


@contextmanager
def provider(answers: Any, **options: Any) -> Generator[ResponsesServer]:
    with ResponsesServer(answers, **options) as server:
        yield server


@pytest.fixture
def responses_lm() -> Iterator[Callable[..., dspy.LM]]:
    """Makes an LM for a server, without a cache unless asked, and closes it when the test ends."""
    with ExitStack() as stack:

        def make(server: ResponsesServer, **options: Any) -> dspy.LM:
            settings = {"model_type": "responses", "api_base": server.url, "api_key": "secret", "cache": False}
            lm = dspy.LM("openai/root", **{**settings, **options})
            stack.callback(lm.close)
            return lm

        yield make


def agent(signature: str = "question -> answer", **options: Any) -> dspy.RLM:
    return dspy.RLM(signature, **{"interpreter_factory": dspy.LocalInterpreter, **options})


def run(lm: dspy.BaseLM, question: str = "what", *, rlm: dspy.RLM | None = None, **options: Any) -> dspy.Prediction:
    with RootSession(lm, **options) as session:
        rlm = rlm or agent(sub_lm=lm)
        session.attach(rlm)
        return rlm(question=question)


def parents(calls: list[Call]) -> list[int | None]:
    """For each call, which one it continues."""
    ids = [call.id for call in calls]
    return [None if call.parent is None else ids.index(call.parent) for call in calls]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith("rlmoptimizer") and record.levelno >= logging.WARNING
    ]


# What goes over the wire


@pytest.mark.smoke
def test_each_turn_sends_only_what_is_new_and_names_the_answer_that_it_continues(responses_lm: Any):
    with provider([LOOK, MORE, DONE]) as server:
        assert run(responses_lm(server)).answer == "42"

    assert parents(server.calls) == [None, 0, 1]
    assert [call.roles for call in server.calls] == [["developer", "user"], ["user"], ["user"]]
    assert server.calls[1].new[0][1].startswith("[[ ## execution_result ## ]]\nOutput (3 chars):\none\n")
    assert "[[ ## iteration ## ]]\n3/20" in server.calls[2].new[0][1]
    assert all("variables_info" not in text for call in server.calls[1:] for _, text in call.new)


def test_what_the_model_reads_grows_turn_by_turn_and_begins_with_the_instructions(responses_lm: Any):
    with provider([LOOK, MORE, DONE]) as server:
        run(responses_lm(server))

    for before, after in itertools.pairwise(server.calls):
        assert after.context[: len(before.context)] == before.context
    assert [role for role, _ in server.calls[2].context[:-1]] == [
        *("developer", "user", "assistant", "user", "assistant", "user")
    ]
    assert "You have access to a Python REPL environment" in server.calls[2].context[0][1]


def test_the_lms_own_settings_reach_the_provider_in_every_turn(responses_lm: Any):
    settings = {
        "temperature": 0.3,
        "max_tokens": 777,
        "reasoning": {"effort": "low"},
        "metadata": {"run": "7"},
        "store": True,
        "truncation": "auto",
        "extra_body": {"top_level": [1]},
    }
    with provider([LOOK, DONE]) as server:
        run(responses_lm(server, **settings))

    for call in server.calls:
        sent = {name: value for name, value in call.body.items() if name not in ("input", "previous_response_id")}
        assert sent == {
            "model": "root",
            "stream": False,
            "temperature": 0.3,
            "max_output_tokens": 777,
            "reasoning": {"effort": "low"},
            "metadata": {"run": "7"},
            "store": True,
            "truncation": "auto",
            "top_level": [1],
        }
        assert call.headers["authorization"] == "Bearer secret"


def test_output_is_cut_to_what_the_rlm_was_told_or_to_what_the_session_was_told(responses_lm: Any):
    noisy = turn("", "print('x' * 1000)")
    with provider([noisy, DONE, noisy, DONE]) as server:
        lm = responses_lm(server)
        run(lm, rlm=agent(max_output_chars=100))
        run(lm, rlm=agent(max_output_chars=100), max_output_chars=50)

    cut = [call.new[0][1] for call in server.calls if call.parent]
    assert "(900 characters omitted)" in cut[0]
    assert "(950 characters omitted)" in cut[1]
    assert all("Output (1,000 chars):" in text for text in cut)


def test_another_run_in_the_same_session_starts_a_conversation_of_its_own(responses_lm: Any):
    with provider([LOOK, DONE, MORE, DONE]) as server, RootSession(responses_lm(server)) as session:
        rlm = agent()
        session.attach(rlm)
        rlm(question="first")
        rlm(question="second")

    assert parents(server.calls) == [None, 0, None, 2]


def test_the_rlm_has_its_own_predictors_back_when_the_session_is_over(responses_lm: Any):
    rlm = agent()
    own = rlm.generate_action, rlm.extract
    with provider([]) as server, RootSession(responses_lm(server)) as session:
        session.attach(rlm)
        assert rlm.generate_action is not own[0]
        assert rlm.generate_action.signature is own[0].signature
    assert (rlm.generate_action, rlm.extract) == own


def test_an_awaited_run_is_chained_too(responses_lm: Any):
    async def awaited(lm: dspy.LM) -> dspy.Prediction:
        with RootSession(lm) as session:
            rlm = agent()
            session.attach(rlm)
            try:
                return await rlm.acall(question="what")
            finally:
                await lm.aclose()

    with provider([LOOK, "not an answer", as_json(reasoning="", code="print('two')"), DONE]) as server:
        assert asyncio.run(awaited(responses_lm(server))).answer == "42"
    assert parents(server.calls) == [None, 0, 0, 2]


# Answers that do not parse


@pytest.mark.smoke
def test_an_answer_that_does_not_parse_is_asked_for_again_from_the_same_parent(responses_lm: Any):
    with provider([LOOK, "garbage", as_json(reasoning="json", code="print('two')"), DONE]) as server:
        assert run(responses_lm(server)).answer == "42"

    assert parents(server.calls) == [None, 0, 0, 2]
    assert "Respond with a JSON object" in server.calls[2].new[0][1]
    assert [call.roles for call in server.calls[1:]] == [["user"]] * 3
    assert all("garbage" not in text for _, text in server.calls[3].context)


def test_the_first_turn_is_asked_again_without_a_parent(responses_lm: Any):
    with provider(["garbage", "still garbage", LOOK, DONE]) as server:
        assert run(responses_lm(server)).answer == "42"
    assert parents(server.calls) == [None, None, None, 2]


def test_an_empty_answer_is_one_that_does_not_parse(responses_lm: Any):
    with provider([LOOK, "", as_json(reasoning="", code="SUBMIT(answer='42')")]) as server:
        assert run(responses_lm(server)).answer == "42"
    assert parents(server.calls) == [None, 0, 0]


def test_an_agent_that_takes_an_unreadable_answer_for_a_turn_continues_the_last_good_one(responses_lm: Any):
    with provider([LOOK, *["garbage"] * 3, DONE]) as server, RootSession(responses_lm(server)) as session:
        rlm = agent()
        session.attach(rlm)
        told = REPLHistory()
        first = rlm.generate_action(variables_info=[""], repl_history=told, iteration="1/9")
        told = told.append(reasoning=first.reasoning, code="print('one')", output="one")
        with pytest.raises(dspy.AdapterParseError):
            rlm.generate_action(variables_info=[""], repl_history=told, iteration="2/9")
        told = told.append(code="", output="[Error] nobody can read that")
        rlm.generate_action(variables_info=[""], repl_history=told, iteration="3/9")

    assert parents(server.calls) == [None, 0, 0, 0, 0]
    said = server.calls[4].new[0][1]
    assert said.index("\none\n") < said.index("nobody can read that")


def test_an_answer_that_never_parses_ends_the_run_with_dspys_error(responses_lm: Any):
    with provider([LOOK, *["garbage"] * 10]) as server, pytest.raises(dspy.AdapterParseError):
        run(responses_lm(server))
    assert parents(server.calls) == [None, 0, 0, 0]


def test_the_adapter_of_the_settings_gives_the_format(responses_lm: Any):
    look, done = as_json(reasoning="", code="print('one')"), as_json(reasoning="", code="SUBMIT(answer='42')")
    with provider([look, "garbage", "garbage", done]) as server, dspy.context(adapter=dspy.JSONAdapter()):
        assert run(responses_lm(server)).answer == "42"
    assert parents(server.calls) == [None, 0, 0, 0]
    assert all("Respond with a JSON object" in call.new[-1][1] for call in server.calls)


def test_the_fallback_to_json_can_be_forbidden(responses_lm: Any):
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with provider([LOOK, "garbage", DONE]) as server, dspy.context(adapter=adapter):
        assert run(responses_lm(server)).answer == "42"
    assert all("Respond with the corresponding" in call.new[-1][1] for call in server.calls)


def test_a_chat_lm_is_asked_again_as_well(responses_lm: Any):
    with provider([LOOK, "garbage", "garbage", DONE]) as server:
        assert run(responses_lm(server, model_type="chat"), stateful=False).answer == "42"


# A provider that fails


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failure_that_passes_is_retried_by_dspy_with_the_same_request(responses_lm: Any, status: int):
    def answer(context: tuple[Said, ...]) -> str:
        turns = sum(role == "user" for role, _ in context)
        if turns == 1:
            server_of["it"].fail_next(status, status)
        return [LOOK, DONE][turns - 1]

    server_of: dict[str, Any] = {}
    with provider(answer) as server:
        server_of["it"] = server
        assert run(responses_lm(server)).answer == "42"

    assert [call.status for call in server.calls] == [200, status, status, 200]
    first, *rest = server.calls
    assert {call.parent for call in rest} == {first.id}
    assert all(call.body == rest[0].body for call in rest)


def test_a_failure_that_stays_ends_the_run_with_dspys_error(responses_lm: Any):
    with provider([]) as server:
        server.fail_next(500, 500)
        with pytest.raises(dspy.LMServerError):
            run(responses_lm(server, num_retries=1))
    assert len(server.calls) == 2


@pytest.mark.parametrize("status", [400, 404])
@pytest.mark.parametrize("multiturn_history", [False, True])
def test_a_provider_that_lost_the_conversation_is_told_all_of_it_once_and_the_chain_goes_on(
    responses_lm: Any, caplog: pytest.LogCaptureFixture, status: int, multiturn_history: bool
):
    lose = turn("look", "print('one'); forget()")
    with provider([LOOK, lose, MORE, DONE], unknown_status=status) as server:

        def forget() -> None:
            server.forget()

        rlm = agent(tools=[forget])
        assert run(responses_lm(server), rlm=rlm, multiturn_history=multiturn_history).answer == "42"

    assert [call.status for call in server.calls] == [200, 200, status, 200, 200]
    refused, anew, after = server.calls[2:]
    assert refused.parent == server.calls[1].id
    assert anew.parent is None
    told = ["developer", "user", "assistant", "user", "assistant", "user"] if multiturn_history else None
    assert anew.roles == (told or ["developer", "user"])
    assert all(part in "".join(text for _, text in anew.new) for part in ("variables_info", "print('one'); forget()"))
    assert after.parent == anew.id
    assert after.roles == ["user"]
    assert len(warnings_in(caplog)) == 1
    assert "sending the whole context anew" in warnings_in(caplog)[0]


def test_a_provider_that_loses_every_answer_is_no_longer_asked_to_continue_one(
    responses_lm: Any, caplog: pytest.LogCaptureFixture
):
    lose = turn("look", "print('one'); forget()")
    with provider([lose, lose, lose, lose, DONE]) as server:

        def forget() -> None:
            server.forget()

        assert run(responses_lm(server), rlm=agent(tools=[forget])).answer == "42"

    assert [call.status for call in server.calls] == [200, 400, 200, 400, 200, 200, 200]
    assert [call.parent for call in server.answered] == [None] * 5
    assert len(warnings_in(caplog)) == 2


def test_a_request_that_is_wrong_by_itself_is_tried_once_with_the_whole_context_and_then_raised(responses_lm: Any):
    def answer(context: tuple[Said, ...]) -> str:
        server_of["it"].fail_next(400, 400)
        return LOOK

    server_of: dict[str, Any] = {}
    with provider(answer) as server:
        server_of["it"] = server
        with pytest.raises(dspy.LMInvalidRequestError):
            run(responses_lm(server))
    assert [call.status for call in server.calls] == [200, 400, 400]
    assert server.calls[2].parent is None


def test_a_conversation_that_grew_too_long_is_not_sent_again(responses_lm: Any):
    def answer(context: tuple[Said, ...]) -> str:
        server_of["it"].fail_next(400, code="context_length_exceeded")
        return LOOK

    server_of: dict[str, Any] = {}
    with provider(answer) as server:
        server_of["it"] = server
        with pytest.raises(dspy.ContextWindowExceededError):
            run(responses_lm(server))
    assert len(server.calls) == 2


def test_a_provider_that_takes_the_parent_and_ignores_it_is_noticed(
    responses_lm: Any, caplog: pytest.LogCaptureFixture
):
    with provider([LOOK, turn("lost", "print('no context')"), MORE, DONE], heeds_parents=False) as server:
        result = run(responses_lm(server))

    assert [step["reasoning"] for step in result.trajectory] == ["look", "more", "enough"]
    assert parents(server.calls) == [None, 0, None, None]
    assert len(warnings_in(caplog)) == 1
    assert "without the conversation" in warnings_in(caplog)[0]


def test_a_provider_that_says_that_it_stores_nothing_is_believed(responses_lm: Any, caplog: pytest.LogCaptureFixture):
    with provider([LOOK, MORE, DONE], stores=False) as server:
        assert run(responses_lm(server)).answer == "42"
    assert parents(server.calls) == [None, None, None]
    assert len(warnings_in(caplog)) == 1


# LMs that cannot be chained


def test_a_chat_lm_runs_without_a_session_as_if_there_were_none_and_that_is_said_once(
    responses_lm: Any, caplog: pytest.LogCaptureFixture
):
    with provider([LOOK, MORE, DONE] * 2) as server:
        lm = responses_lm(server, model_type="chat", temperature=0.5)
        assert run(lm).answer == "42"
        with dspy.context(lm=lm):
            assert agent()(question="what").answer == "42"

    with_session, without = server.calls[:3], server.calls[3:]
    assert [call.body for call in with_session] == [call.body for call in without]
    assert {call.path for call in server.calls} == {"/v1/chat/completions"}
    assert warnings_in(caplog) == [
        "The root LM runs without a stateful session: openai/root is not a Responses LM (model_type is 'chat')."
    ]


def test_a_session_that_is_not_wanted_says_nothing_and_changes_nothing(
    responses_lm: Any, caplog: pytest.LogCaptureFixture
):
    with provider([LOOK, DONE] * 2) as server:
        lm = responses_lm(server)
        run(lm, stateful=False)
        with dspy.context(lm=lm):
            agent()(question="what")
    assert [call.body for call in server.calls[:2]] == [call.body for call in server.calls[2:]]
    assert not warnings_in(caplog)


@pytest.mark.parametrize("setting", [{"store": False}, {"conversation": "conv_1"}, {"n": 2}])
def test_settings_that_rule_a_chain_out_are_kept_and_the_session_says_so(
    responses_lm: Any, caplog: pytest.LogCaptureFixture, setting: dict[str, Any]
):
    with provider([]) as server, RootSession(responses_lm(server, **setting)) as session:
        assert not session.chained
    assert len(warnings_in(caplog)) == 1
    assert next(iter(setting)) in warnings_in(caplog)[0] or "several" in warnings_in(caplog)[0]


def test_store_false_reaches_the_provider_as_the_user_set_it(responses_lm: Any):
    with provider([LOOK, DONE]) as server:
        run(responses_lm(server, store=False))
    assert [call.body["store"] for call in server.calls] == [False, False]
    assert parents(server.calls) == [None, None]


class Scripted:
    """An engine of the user's own."""

    def __init__(self, *answers: str) -> None:
        self.answers = iter(answers)
        self.requests: list[dspy.lm15.Request] = []

    def complete(self, request: dspy.lm15.Request) -> dspy.lm15.Response:
        self.requests.append(request)
        message = dspy.lm15.Message.assistant(next(self.answers))
        usage = dspy.lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2)
        return dspy.lm15.Response("resp_1", request.model, message, "stop", usage)


class Counting(dspy.LM):
    """Has its own way to be called."""

    calls = 0

    def __call__(self, prompt: Any = None, *, messages: Any = None, **options: Any) -> Any:
        assert prompt is None
        self.calls += 1
        return super().__call__(messages=messages, **options)


class Old(dspy.BaseLM):
    """An LM as they were written before engines."""

    def forward(self, prompt: Any = None, messages: Any = None, **options: Any) -> Any:
        assert not options
        text = next(self.kwargs["answers"])
        message = dotdict(content=text, tool_calls=None, reasoning_content=None)
        return dotdict(model="old", usage={}, choices=[dotdict(message=message, logprobs=None)])


def test_a_dummy_lm_and_a_custom_engine_run_unchanged(caplog: pytest.LogCaptureFixture):
    done = {"reasoning": "enough", "code": "SUBMIT(answer='42')"}
    assert run(DummyLM([{"reasoning": "", "code": "print(1)"}, done])).answer == "42"

    engine = Scripted(LOOK, "garbage", "garbage", DONE)
    lm = dspy.LM("offline/root", model_type="responses", engine=engine, cache=False)
    assert run(lm).answer == "42"
    assert all(request.config.extensions is None for request in engine.requests)
    assert len(warnings_in(caplog)) == 2


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
def test_a_custom_subclass_runs_unchanged_also_when_it_is_asked_again():
    lm = Old("old", answers=iter([LOOK, "garbage", "garbage", DONE]))
    assert run(lm).answer == "42"


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message dictionaries:DeprecationWarning")
def test_an_lm_with_its_own_way_to_be_called_is_called_its_own_way(caplog: pytest.LogCaptureFixture):
    with provider([LOOK, DONE]) as server:
        lm = Counting("openai/root", model_type="responses", api_base=server.url, api_key="none", cache=False)
        assert run(lm).answer == "42"
        lm.close()
    assert lm.calls == 2
    assert parents(server.calls) == [None, None]
    assert "Counting makes its calls in its own way" in warnings_in(caplog)[0]


def test_an_adapter_that_formats_in_its_own_way_runs_without_and_that_is_said_once(
    responses_lm: Any, caplog: pytest.LogCaptureFixture
):
    done = {"reasoning": "enough", "code": "SUBMIT(answer='42')"}
    adapter = dspy.TwoStepAdapter(DummyLM([{"reasoning": "", "code": "print(1)"}, done]))
    with provider(["I would print 1", "that is all"]) as server, dspy.context(adapter=adapter):
        assert run(responses_lm(server), multiturn_history=True).answer == "42"
    assert parents(server.calls) == [None, None]
    assert len(warnings_in(caplog)) == 1
    assert "TwoStepAdapter formats its own messages" in warnings_in(caplog)[0]


# Multi-turn history


@pytest.mark.parametrize("model_type", ["chat", "responses"])
def test_multi_turn_history_sends_every_earlier_turn_as_messages(responses_lm: Any, model_type: str):
    with provider([LOOK, MORE, DONE]) as server:
        run(responses_lm(server, model_type=model_type), stateful=False, multiturn_history=True)

    spoken = [[role for role in call.roles if role in ("user", "assistant")] for call in server.calls]
    assert spoken == [["user"], ["user", "assistant", "user"], ["user", "assistant", "user", "assistant", "user"]]
    assert parents(server.calls) == [None, None, None]
    last = [text for _, text in server.calls[2].new][-5:]
    assert "variables_info" in last[0]
    assert "print('one')" in last[1]
    assert "Output (3 chars):\none" in last[2]
    assert "print('two')" in last[3]
    assert "Output (3 chars):\ntwo" in last[4]


def test_a_stateful_session_with_multi_turn_history_sends_only_the_last_result(responses_lm: Any):
    with provider([LOOK, MORE, DONE]) as server:
        run(responses_lm(server), multiturn_history=True)

    assert parents(server.calls) == [None, 0, 1]
    assert [call.roles for call in server.calls] == [["developer", "user"], ["user"], ["user"]]
    assert "repl_history" not in "".join(text for _, text in server.calls[0].new)
    assert "Output (3 chars):\ntwo" in server.calls[2].new[0][1]
    assert "one" not in server.calls[2].new[0][1]


# The extraction when the turns are used up


EXTRACTED = "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"


@pytest.mark.parametrize("multiturn_history", [False, True])
def test_the_extraction_continues_the_conversation_with_its_own_task(responses_lm: Any, multiturn_history: bool):
    with provider([LOOK, MORE, "garbage", as_json(answer="42")]) as server:
        result = run(responses_lm(server), rlm=agent(max_iters=2), multiturn_history=multiturn_history)

    assert result.answer == "42"
    assert parents(server.calls) == [None, 0, 1, 1]
    assert server.calls[2].roles == ["developer", "user"]
    assert "extract the final outputs" in server.calls[2].new[0][1]
    assert "Output (3 chars):\ntwo" in server.calls[2].new[1][1]
    assert "print('one')" not in server.calls[2].new[1][1]


def test_the_extraction_is_told_everything_when_the_conversation_is_lost(responses_lm: Any):
    lose = turn("look", "print('one'); forget()")
    with provider([LOOK, lose, EXTRACTED]) as server:

        def forget() -> None:
            server.forget()

        assert run(responses_lm(server), rlm=agent(max_iters=2, tools=[forget])).answer == "42"
    assert parents(server.answered) == [None, 0, None]
    assert "=== Step 2 ===" in server.answered[2].new[1][1]


def test_the_extraction_works_without_a_session(responses_lm: Any):
    with provider([LOOK, EXTRACTED] * 2) as server:
        for multiturn_history in (False, True):
            lm = responses_lm(server, model_type="chat")
            result = run(lm, rlm=agent(max_iters=1), stateful=False, multiturn_history=multiturn_history)
            assert result.answer == "42"


# Who else uses the LM


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message dictionaries:DeprecationWarning")  # DSPy's sub-agents
def test_sub_lm_calls_and_sub_agents_stay_out_of_the_conversation(responses_lm: Any):
    ask = turn(
        "ask",
        "import dspy\n"
        "print(llm_query('a plain question'), llm_query_batched(['one more', 'and more']))\n"
        "print(dspy.Predict('riddle -> solution')(riddle='what walks').solution)",
    )

    def answer(context: tuple[Said, ...]) -> str:
        last = context[-1][1]
        if "riddle" in last:
            return "[[ ## solution ## ]]\na man\n\n[[ ## completed ## ]]"
        if "execution_result" in last:
            return DONE
        return ask if "variables_info" in last else "plain"

    with provider(answer) as server:
        result = run(responses_lm(server), multiturn_history=True)

    assert "a man" in result.trajectory[0]["output"]
    assert parents(server.calls) == [None, None, None, None, None, 0]
    assert {call.new[-1][1] for call in server.calls[1:4]} == {"a plain question", "one more", "and more"}
    assert all("execution_result" not in text for call in server.calls[1:5] for _, text in call.new)
    assert [role for role, _ in server.calls[5].context[:-1]] == ["developer", "user", "assistant", "user"]


def test_host_tools_see_the_settings_of_the_caller(responses_lm: Any):
    mine, adapter, seen = DummyLM([]), dspy.JSONAdapter(), []

    def peek() -> None:
        seen.append((dspy.settings.lm, dspy.settings.adapter))

    peeking = as_json(reasoning="", code="peek()")
    done = as_json(reasoning="", code="SUBMIT(answer='42')")
    with provider([peeking, done]) as server, dspy.context(lm=mine, adapter=adapter):
        assert run(responses_lm(server), rlm=agent(tools=[peek])).answer == "42"
        assert (dspy.settings.lm, dspy.settings.adapter) == (mine, adapter)
    assert seen == [(mine, adapter)]


def test_two_sessions_at_once_on_one_lm_do_not_mix(responses_lm: Any):
    together = threading.Barrier(2, timeout=100)

    def meet() -> str:
        together.wait()
        return "met"

    def answer(context: tuple[Said, ...]) -> str:
        turns = sum(role == "user" for role, _ in context)
        name = "left" if "left" in context[1][1] else "right"
        return turn(f"{name} {turns}", "print(meet())" if turns < 4 else f"SUBMIT(answer='{name}')")

    with provider(answer) as server:
        lm = responses_lm(server)
        results: dict[str, dspy.Prediction] = {}

        def go(name: str) -> None:
            results[name] = run(lm, name, rlm=agent(tools=[meet]))

        threads = [threading.Thread(target=go, args=(name,)) for name in ("left", "right")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for name in ("left", "right"):
        told = [step["reasoning"] for step in results[name].trajectory]
        assert told == [f"{name} {number}" for number in (1, 2, 3, 4)]
        own = [call for call in server.calls if name in call.context[1][1]]
        assert parents(own) == [None, 0, 1, 2]


@pytest.mark.smoke
def test_the_lm_is_not_changed_and_its_history_and_usage_are_kept_as_ever(responses_lm: Any):
    with provider([LOOK, "garbage", as_json(reasoning="", code="print('two')"), DONE]) as server:
        lm = responses_lm(server, temperature=0.5)
        before = {name: value for name, value in vars(lm).items() if name != "_engine_store"}
        kwargs = dict(lm.kwargs)
        with dspy.track_usage() as usage:
            run(lm)

    assert {name: value for name, value in vars(lm).items() if name != "_engine_store"} == before
    assert lm.kwargs == kwargs
    assert len(lm.history) == 4
    assert [entry["outputs"][0]["text"] for entry in lm.history] == [call.answer for call in server.calls]
    assert "Output (3 chars):\none" in lm.history[1]["messages"][0]["content"]
    tokens = usage.get_total_tokens()["openai/root"]
    assert tokens["total_tokens"] == sum(entry["usage"]["total_tokens"] for entry in lm.history)


def test_the_lms_callbacks_are_called_for_every_turn(responses_lm: Any):
    class Watch(dspy.utils.BaseCallback):
        def __init__(self) -> None:
            self.lms: list[Any] = []

        def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            self.lms.append(instance)

    watch = Watch()
    with provider([LOOK, DONE]) as server:
        lm = responses_lm(server, callbacks=[watch])
        run(lm)
    assert watch.lms == [lm, lm]


# DSPy's cache


def by_turn(context: tuple[Said, ...]) -> str:
    return DONE if sum(role == "user" for role, _ in context) == 3 else LOOK


def test_a_run_is_replayed_from_the_cache_without_a_request(responses_lm: Any):
    with provider(by_turn) as server:
        lm = responses_lm(server, cache=True)
        first = run(lm, "replayed")
        server.forget()
        second = run(lm, "replayed")
    assert len(server.calls) == 3
    assert first.trajectory == second.trajectory
    assert len(lm.history) == 6


def test_an_answer_is_not_served_from_the_cache_to_another_conversation(responses_lm: Any):
    def answer(context: tuple[Said, ...]) -> str:
        turns = sum(role == "user" for role, _ in context)
        name = "left" if "left" in context[1][1] else "right"
        return LOOK if turns == 1 else turn(name, f"SUBMIT(answer='{name}')")

    with provider(answer) as server:
        lm = responses_lm(server, cache=True)
        assert [run(lm, name).answer for name in ("left", "right")] == ["left", "right"]
    said = [call.new for call in server.calls if call.parent]
    assert said[0] == said[1]  # the same words, after something else


def test_a_conversation_from_the_cache_that_the_provider_no_longer_knows_is_taken_up_again(responses_lm: Any):
    def act(lm: dspy.LM, turns: int) -> None:
        told = REPLHistory()
        with RootSession(lm) as session:
            rlm = agent()
            session.attach(rlm)
            for number in range(1, turns + 1):
                asked = {"variables_info": ["taken up"], "repl_history": told, "iteration": f"{number}/20"}
                action = rlm.generate_action(**asked)
                told = told.append(reasoning=action.reasoning, code="print('one')", output="one")

    with provider(by_turn) as server:
        lm = responses_lm(server, cache=True)
        act(lm, turns=1)
        server.forget()
        act(lm, turns=3)
    assert [call.status for call in server.calls] == [200, 400, 200, 200]
    assert parents(server.answered) == [None, None, 1]


def test_an_answer_that_did_not_parse_is_not_served_again_from_the_cache(responses_lm: Any):
    answers = [LOOK, "garbage", "{}", DONE]
    with provider(answers) as server:
        lm = responses_lm(server, cache=True)
        assert run(lm, "asked again").answer == "42"
        assert len(server.calls) == 4
        assert run(lm, "asked again").answer == "42"  # and the way to the good answer is
        assert len(server.calls) == 4
