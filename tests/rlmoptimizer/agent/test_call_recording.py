"""What is kept of the agent's calls: every answer can be given again, exactly, and no more than fits is kept."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer.agent import call_recording
from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.agent.llm_tools import checked_llm_tools
from rlmoptimizer.errors import AgentError, StoreCorrupt
from rlmoptimizer.show.notebook.recording import NotInTheRecording, RecordedError, Recording
from rlmoptimizer.store.calls import ToolCall, ToolReply
from rlmoptimizer.store.store_reader import StoreReader


def tools_of(made: Desk, answer: Callable[[str], str] = "heard: {}".format) -> dict[str, Callable[..., Any]]:
    """The agent's tools as its kernel gets them, in its first turn."""
    tools = {tool.__name__: tool for tool in made.bench.tools.all}
    tools |= checked_llm_tools(answer, made.meter.reserve)
    made.bench.calls.agent_began({"program_steps": []}, tools, [{"name": "optimized_dspy_program"}])
    made.bench.turns.count += 1
    return {name: made.bench.calls.recorded(name, tool) for name, tool in tools.items()}


def replayed(made: Desk) -> tuple[StoreReader, Recording]:
    reader = StoreReader.open(made.store.path)
    recording = Recording(reader)
    recording.begin(1)
    return reader, recording


def got(tool: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call gives, or what it raises."""
    try:
        return tool(*args, **kwargs)
    except (AgentError, RecordedError, TypeError) as error:
        return type(error).__name__, str(error)


def test_every_answer_is_given_again(tmp_path: Path) -> None:
    with desk(tmp_path, budget=200) as made:
        tools = tools_of(made)
        asked: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
            ("evaluate_program", (), {"limit": 3}),
            ("evaluate_program", ("train", 2), {"repeats": 3}),
            ("evaluate_program", ("val",), {}),
            ("evaluate_program", (), {"limit": 10**9, "repeats": 10**6}),
            ("evaluate_program", (), {"failed_from_run": "r99"}),
            ("run_data", ("r1",), {"ids": "1-2"}),
            ("run_data", ("r2",), {"ids": "1"}),
            ("compare_runs", ("r1", "r3"), {}),
            ("race_prompts", ([None, {"topic": toy.FIX}],), {"limit": 4}),
            ("try_program", ({"message": "message 1 at length about bug"},), {}),
            ("update_prompt", ("topic", toy.FIX), {}),
            ("update_prompt", ("topic",), {"text": toy.FIX}),
            ("update_prompt", ("nosuch", "x"), {}),
            ("optimization_status", (), {}),
            ("llm_query", ("lone \ud800",), {}),
            ("llm_query", (7,), {}),
            ("llm_query_batched", (["a", "b"],), {}),
        ]
        answers = [got(tools[name], args, kwargs) for name, args, kwargs in asked]
        with made.bench.calls.cell():
            answers.append(tools["optimization_status"]())
        asked.append(("optimization_status", (), {}))
        reader, recording = replayed(made)
        with reader:
            again = recording.tools()
            assert [got(again[name], args, kwargs) for name, args, kwargs in asked] == answers
            for name, args, kwargs in asked:
                with pytest.raises(NotInTheRecording):
                    again[name](*args, **kwargs)
        assert toy.SECRET not in str([made.store.call_reply(call.number) for call in made.store.calls()])


def test_an_answer_without_verdicts_is_given_as_it_was_also_after_they_came(tmp_path: Path) -> None:
    failing = threading.Event()
    failing.set()

    def respond(question: Asked) -> dict[str, object]:
        if failing.is_set() and "1 at length" in question.inputs["message"]:
            raise dspy.LMRateLimitError("busy", model="offline/eval")
        return toy.respond(question)

    with desk(tmp_path, baseline=False, lm=field_lm(respond, "eval")) as made:
        evaluate = tools_of(made)["evaluate_program"]
        before = evaluate(limit=2)
        failing.clear()
        after = evaluate(limit=2)
        assert before["run_id"] == after["run_id"]
        assert before["examples"] != after["examples"]
        reader, recording = replayed(made)
        with reader:
            evaluate = recording.tools()["evaluate_program"]
            assert [evaluate(limit=2), evaluate(limit=2)] == [before, after]


def test_a_thread_that_outlives_its_cell_gets_its_answers_in_any_turn(tmp_path: Path) -> None:
    with desk(tmp_path) as made:
        ask = tools_of(made)["llm_query"]
        with made.bench.calls.cell():
            ask("in its turn")
        made.bench.turns.count += 1
        ask("while the root LM thinks")
        assert [made.call.stray for made in made.store.calls()] == [False, True]
        reader, recording = replayed(made)
        with reader:
            ask = recording.tools()["llm_query"]
            assert ask("while the root LM thinks") == "heard: while the root LM thinks"
            with pytest.raises(NotInTheRecording, match="not so often"):
                ask("while the root LM thinks")


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_recording, "_MOST_ANSWER", 1000)
    monkeypatch.setattr(call_recording, "_MOST_BYTES", 1500)
    monkeypatch.setattr(call_recording, "_MOST_CALLS", 4)
    with desk(tmp_path) as made:
        ask = tools_of(made, lambda prompt: prompt[0] * int(prompt[1:]))["llm_query"]
        for prompt in ("a900", "b2000", "c900", "d400", "e1"):
            ask(prompt)
        assert made.store.calls_size() == (4, 902 + 402)
        reader, recording = replayed(made)
        with reader:
            ask = recording.tools()["llm_query"]
            assert [ask("a900"), ask("d400")] == ["a" * 900, "d" * 400]
            for prompt, size in (("b2000", "2,002 bytes"), ("c900", "902 bytes")):
                with pytest.raises(NotInTheRecording, match=size):
                    ask(prompt)
            with pytest.raises(NotInTheRecording, match="did not make this call"):
                ask("e1")


def test_what_an_agent_was_given_is_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_recording, "_MOST_VARIABLE", 100)
    with desk(tmp_path) as made:
        made.bench.calls.agent_began({"task_facts": {"a": 1}, "program_source": "x" * 200}, {}, [])
        reader, recording = replayed(made)
        with reader:
            assert recording.variables(1) == {"task_facts": {"a": 1}, "previous_trajectory": []}
            start = recording.start_of(1)
            assert start is not None
            assert start.left_out == {"program_source": 202}


def test_a_disk_that_takes_no_more_stops_the_compile_and_tells_the_agent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(call: ToolCall, reply: ToolReply) -> int:
        raise StoreCorrupt("the store", "the disk is full")

    with desk(tmp_path) as made:
        monkeypatch.setattr(made.store, "record_call", full)
        with pytest.raises(OptimizationStopped):
            tools_of(made)["optimization_status"]()
        assert isinstance(made.bench.gate.failure, StoreCorrupt)
