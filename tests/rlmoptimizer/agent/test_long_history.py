"""An agent that works for long: what its requests leave out, and that it can read all of it in its REPL."""

from __future__ import annotations

from pathlib import Path

import dspy
import pytest
import toy
from offline import ScriptedRootLM
from responses_server import ResponsesServer, turn

from rlmoptimizer.errors import SelectionError
from rlmoptimizer.outcome.turn_rows import TurnRows
from rlmoptimizer.show.notebook.recording import Recording
from rlmoptimizer.store.store_reader import StoreReader

NOISY = "print('begin', {n}, 'x' * 2000, 'end')"
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
READ = "print([(t['turn'], t['output'][:8], len(t['output'])) for t in previous_trajectory])"


def noisy(count: int) -> list[str]:
    return [NOISY.format(n=n) for n in range(1, count + 1)]


@pytest.mark.parametrize("multiturn", [False, True])
def test_what_a_request_leaves_out_is_in_the_repl(multiturn: bool) -> None:
    turns = [*noisy(9), READ, "print(previous_trajectory[0]['code'])", SUBMIT]
    result, root = toy.compiled(
        turns, rlm_max_iterations=14, rlm_max_history_chars=10_000, rlm_multiturn_history=multiturn
    )
    told = "".join(str(message.text) for message in root.requests[-3].messages)
    assert 'left out; print previous_trajectory[0]["output"]' in told
    assert told.count("x" * 2000) < 9
    assert "begin 9" in told
    read = result.agent_trajectory[9]["output"]
    count = read.count("(")
    assert read.strip() == str([(n, f"begin {n} "[:8], 2012) for n in range(1, count + 1)])
    assert count == told.count("left out; print")
    assert NOISY.format(n=1) in result.agent_trajectory[10]["output"]


def test_a_session_that_goes_on_leaves_out_turns_behind_those_of_earlier_processes(tmp_path: Path) -> None:
    root = ScriptedRootLM([*noisy(3), RuntimeError("the key was revoked")])
    options = {"run_storage_dir": tmp_path, "rlm_max_iterations": 20, "rlm_max_history_chars": 6_000}
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, **options).compile(toy.Triage(), **toy.arguments())
    root = ScriptedRootLM([*noisy(5), READ, SUBMIT])
    result = toy.optimizer(root, **options).compile(toy.Triage(), **toy.arguments(), resume=True)
    told = root.requests[-2].messages[-1].text or ""
    assert 'left out; print previous_trajectory[3]["output"]' in told
    read = result.agent_trajectory[8]["output"]
    assert "(1, 'begin 1 '" in read
    assert "(4, 'begin 1 '" in read  # the first turn of the second process


def test_long_turns_are_read_in_pages_of_the_store_and_in_a_replay_too(tmp_path: Path) -> None:
    long = "print('begin', {n}, 'x' * 200_000, 'end')"
    read = (
        "print(len(previous_trajectory), repr(previous_trajectory)[:8])\n"
        "print(previous_trajectory[0]['output'][:8], len(previous_trajectory[-1]['output']))"
    )
    turns = [*(long.format(n=n) for n in range(1, 7)), read, SUBMIT]
    result, _ = toy.compiled(turns, rlm_max_iterations=14, rlm_max_history_chars=10_000, run_storage_dir=tmp_path)
    assert result.agent_trajectory[6]["output"].split("\n")[:2] == ["5 <list of", "begin 1  200012"]
    with StoreReader.open_in(tmp_path) as store:
        recording = Recording(store)
        given = [recording.variables(turn)["previous_trajectory"] for turn in range(1, 8)]
    assert [len(rows) for rows in given] == [0, 0, 1, 2, 3, 4, 5]


def test_pages_of_turns_are_given_only_of_turns_that_have_ended(tmp_path: Path) -> None:
    toy.compiled([*noisy(2), SUBMIT], run_storage_dir=tmp_path)
    with StoreReader.open_in(tmp_path) as store:
        rows = TurnRows(store)
        assert [row["turn"] for row in rows.read_page(None, 0, 2)] == [1, 2]
        assert [row["turn"] for row in rows.read_page(None, 1, 10**9)] == [2, 3]
        for key, start, stop in [
            ("r1", 0, 1), (None, -1, 1), (None, 0, 0), (None, 1, 0), (None, 0.0, 1), (None, True, 2),
            (None, 0, 10**30), (None, "0", 1), (None, 3, 4), (None, 0, float("nan")), ([], 0, 1),
        ]:  # fmt: skip
            with pytest.raises(SelectionError):
                rows.read_page(key, start, stop)


def test_a_limit_that_is_not_reached_changes_no_request() -> None:
    turns = [*noisy(3), SUBMIT]
    _, bounded = toy.compiled(turns)
    _, unbounded = toy.compiled(turns, rlm_max_history_chars=None)
    assert [request.messages[-1].text for request in bounded.requests] == [
        request.messages[-1].text for request in unbounded.requests
    ]


def test_a_conversation_that_the_provider_keeps_begins_anew_when_it_has_grown_too_long() -> None:
    answers = [turn("more", code) for code in [*noisy(12), SUBMIT]]
    with ResponsesServer(answers) as server:
        lm = dspy.LM("openai/root", model_type="responses", api_base=server.url, api_key="k", cache=False)
        root = ScriptedRootLM([])
        optimizer = toy.optimizer(root, root_lm=lm, rlm_max_iterations=14, rlm_max_history_chars=10_000)
        optimizer.compile(toy.Triage(), **toy.arguments())
        lm.close()
    first = [number for number, call in enumerate(server.calls) if call.parent is None]
    assert first[0] == 0
    assert 2 <= len(first) <= 5
    for number in first[1:]:
        text = "".join(text for _, text in server.calls[number].new)
        assert "left out; print previous_trajectory" in text
        assert len(text) < 10_000 + sum(len(text) for _, text in server.calls[0].new) + 2_200


def test_another_interpreter_has_the_turns_too() -> None:
    turns = [*noisy(9), READ, SUBMIT]
    result, _ = toy.compiled(
        turns, rlm_max_iterations=14, rlm_max_history_chars=10_000, kernel=lambda: dspy.LocalInterpreter()
    )
    assert "(1, 'begin 1 '" in result.agent_trajectory[9]["output"]


def test_older_calls_of_the_root_lm_stay_in_dspys_history_without_what_was_sent() -> None:
    _, root = toy.compiled([*noisy(5), SUBMIT])
    entries = root.lm.history
    assert len(entries) == 6
    assert [("x" * 2000) in str(entry["messages"]) for entry in entries] == [False] * 3 + [True] * 3
    assert all("code" in str(entry["outputs"]) for entry in entries)
    assert all("usage" in entry for entry in entries)
    dspy.inspect_history(n=6)
