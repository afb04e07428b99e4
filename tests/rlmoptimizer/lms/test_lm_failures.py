"""LMs that fail, over HTTP and through a whole compile: nobody pays for it, and nobody takes it for a wrong answer."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy import lm15
from flaky_server import FAILURES, FlakyServer
from offline import Asked, ScriptedRootLM, field_lm

from rlmoptimizer.errors import notes_of
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
ERRORS = {
    "rate_limit": "LMRateLimitError",
    "server": "LMServerError",
    "auth": "LMAuthError",
    "transport": "LMTransportError",
    "timeout": "LMTransportError",  # as DSPy's own client calls it
}
BUDGET = 5 * 6 + 4


@pytest.fixture
def server() -> Iterator[FlakyServer]:
    with FlakyServer(toy.eval_lm().engine) as running:
        yield running


def reached(server: FlakyServer, *, kind: str, model: str = "openai/program", retries: int = 0) -> dspy.LM:
    timeout = 3 if kind == "timeout" else 60
    return dspy.LM(
        model, api_base=server.url, api_key="none", cache=False, num_retries=retries, timeout=timeout
    )


def message(number: int) -> str:
    """What only the requests for this example of train hold; its id is one more."""
    return f"message {number} "


def compiled(server: FlakyServer, turns: list[Any], *, kind: str, retries: int = 0, **options: Any) -> Any:
    """A compile whose program asks the server; its agent's turns may break and mend it."""
    return toy.compiled(turns, eval_lm=reached(server, kind=kind, retries=retries), **options)[0]


def breaks(server: FlakyServer, kind: str, *numbers: int, code: str) -> Any:
    def turn(_: Asked) -> str:
        server.kind, server.failing = kind, tuple(message(number) for number in numbers)
        return code

    return turn


def mends(server: FlakyServer, code: str) -> Any:
    return breaks(server, "server", code=code)


def outputs(result: Any) -> list[str]:
    return [entry["output"].strip() for entry in result.agent_trajectory]


TELL = """
print([row['example_id'] for row in run['examples'] if 'error_kind' in row], run['evaluated_count'],
      run.get('unanswered_count'), run['remaining_budget'])
print({row['error_kind'] for row in run['examples'] if 'error_kind' in row})
print(run['summary_line'])
"""


# A timeout is for a short limit, which on a slow machine the others might not keep.
IN_ONE_COMPILE = [[kind for kind in FAILURES if kind != "timeout"], ["timeout"]]


@pytest.mark.parametrize("kinds", IN_ONE_COMPILE, ids=", ".join)
def test_examples_of_which_an_lm_call_failed_are_told_refunded_and_can_be_picked(
    server: FlakyServer, kinds: list[str]
) -> None:
    turns: list[Any] = []
    for kind in kinds:
        prompts = f"prompts={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic: {kind}.'}}"
        turns += [
            breaks(server, kind, 1, 4, code=f"run = evaluate_program({prompts})\n{TELL}"),
            mends(
                server,
                f"again = evaluate_program(failed_from_run=run['run_id'], {prompts})\n"
                "print([row['example_id'] for row in again['examples']], again['score'], again['remaining_budget'])\n"
                "print(run_data(run['run_id']).get('unanswered_count'))",
            ),
        ]
    result = compiled(server, [*turns, SUBMIT], kind=kinds[0], rlm_max_iterations=20)
    assert len(result.trial_logs) == 2 + 2 * len(kinds)
    for number, kind in enumerate(kinds):
        left = BUDGET - 6 * number
        first, second = outputs(result)[2 * number : 2 * number + 2]
        ids, told, line = first.splitlines()
        assert ids == f"['2', '5'] 4 2 {left - 4}"
        assert told == f"{{{kind!r}}}"
        assert "score 100.00" in line  # of those that have a verdict
        assert kind in line
        assert second.splitlines() == [f"['2', '5'] 100.0 {left - 6}", "2"]
        logs = result.trial_logs[2 + 2 * number : 4 + 2 * number]
        assert [(log["evaluated_count"], log["unanswered_count"], log["passed_count"]) for log in logs] == [
            (4, 2, 4),
            (2, 0, 2),
        ]
        assert [log["remaining_budget"] for log in logs] == [left - 4, left - 6]


@pytest.mark.parametrize("numbers", [(1,), range(6)])
def test_the_person_is_told_once_of_examples_that_their_lm_failed_on(
    server: FlakyServer, numbers: Sequence[int], caplog: pytest.LogCaptureFixture
) -> None:
    ask = f"try:\n    evaluate_program(prompts={{'topic': {toy.FIX!r}}})\nexcept LMUnavailable:\n    pass"
    compiled(server, [breaks(server, "server", *numbers, code=ask), ask, mends(server, ask), SUBMIT], kind="server")
    (said,) = [record.getMessage() for record in caplog.records if "runs the program" in record.getMessage()]
    assert f"failed on {len(numbers)} of the evaluations of r3 (LMServerError" in said
    assert "\n" not in said


@pytest.mark.parametrize("kinds", IN_ONE_COMPILE, ids=", ".join)
def test_when_all_of_them_fail_the_tool_raises_with_the_cause_and_nothing_is_spent(
    server: FlakyServer, kinds: list[str]
) -> None:
    turns: list[Any] = []
    for kind in kinds:
        ask = (
            f"evaluate_program(limit=3, prompts={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic: {kind}.'}})"
        )
        caught = f"try:\n    {ask}\nexcept Exception as e:\n    print(type(e).__name__, e)"
        turns += [
            breaks(server, kind, *range(6), code=f"{caught}\nprint(optimization_status()['spent_budget'])"),
            mends(server, f"run = {ask}\nprint(run['run_id'], run['score'], run['remaining_budget'])"),
        ]
    result = compiled(server, [*turns, SUBMIT], kind=kinds[0], kernel=KERNEL, rlm_max_iterations=20)
    for number, kind in enumerate(kinds):
        run_id = f"r{3 + number}"
        first, second = outputs(result)[2 * number : 2 * number + 2]
        refused, spent = first.splitlines()[0], first.splitlines()[-1]
        said = f"LMUnavailable the LM that runs the program failed on all 3 examples of run {run_id}"
        assert refused.startswith(said)
        assert ERRORS[kind] in refused
        assert int(spent) == 3 * number
        # Asked for once more it goes on under its id.
        assert second == f"{run_id} 100.0 {BUDGET - 3 * (number + 1)}"


def test_a_failure_that_a_retry_mends_is_none(server: FlakyServer) -> None:
    server.times = 1
    turns = [
        breaks(server, "rate_limit", 1, 4, code=f"run = evaluate_program()\n{TELL}"),
        SUBMIT,
    ]
    result = compiled(server, turns, kind="rate_limit", retries=2)
    assert outputs(result)[0].splitlines()[:2] == [f"[] 6 None {BUDGET - 6}", "set()"]
    assert server.failed == {message(1): 1, message(4): 1}


@pytest.mark.parametrize("kinds", IN_ONE_COMPILE, ids=", ".join)
def test_a_validation_run_says_how_many_failed_and_not_which(server: FlakyServer, kinds: list[str]) -> None:
    code = "print(evaluate_program('val', prompts={{'reply': 'Answer by the topic: {}.'}}))"
    turns = [breaks(server, kind, 2, code=code.format(kind)) for kind in kinds]
    result = compiled(server, [*turns, SUBMIT], kind=kinds[0])
    assert len(outputs(result)) == len(kinds) + 1
    for number, told in enumerate(outputs(result)[:-1], start=1):
        assert "'unanswered_count': 1" in told
        assert f"'remaining_budget': {BUDGET - 3 * number}" in told
        assert toy.SECRET not in told


@pytest.mark.parametrize("kind", FAILURES)
def test_a_baseline_that_no_lm_answers_raises_the_lms_own_error_and_can_be_resumed(
    server: FlakyServer, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.kind, server.failing = kind, ("message ",)
    with pytest.raises(getattr(dspy, ERRORS[kind])):
        compiled(server, [SUBMIT], kind=kind, run_storage_dir=tmp_path)
    assert "compile(..., resume=True)" in capsys.readouterr().err
    server.failing = ()
    optimizer = toy.optimizer(ScriptedRootLM([SUBMIT]), eval_lm=reached(server, kind=kind), run_storage_dir=tmp_path)
    result: Any = optimizer.compile(
        toy.Triage(), trainset=toy.trainset(), valset=toy.valset(), metric=toy.metric, resume=True
    )
    assert [(log["run_id"], log["evaluated_count"]) for log in result.trial_logs] == [("r1", 6), ("r2", 4)]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_root_lm_that_fails_after_its_retries_raises_its_own_error_and_the_work_goes_on_later(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ScriptedRootLM(["print(evaluate_program(limit=2)['run_id'])", SUBMIT])
    given: dict[str, Any] = {
        "trainset": toy.trainset(),
        "valset": toy.valset(),
        "metric": toy.metric,
        "resume": True,
    }
    with FlakyServer(root.engine) as server:
        lm = reached(server, kind=kind, model="openai/root")
        optimizer = toy.optimizer(root, root_lm=lm, run_storage_dir=tmp_path)
        server.kind, server.failing = kind, ("r3",)  # once it has seen its first turn's output
        with pytest.raises(getattr(dspy, ERRORS[kind])):
            optimizer.compile(toy.Triage(), **given)
        said = capsys.readouterr().err
        assert f"RLMDocstringOptimizer stopped ({ERRORS[kind]})" in said
        assert str(tmp_path) in said
        with StoreReader.open_in(tmp_path) as store:
            assert (store.spent(), len(store.iterations()), store.outcome()) == (2, 1, None)
        server.failing = ()
        result: Any = optimizer.compile(toy.Triage(), **given)
    assert [log["run_id"] for log in result.trial_logs] == ["r1", "r2", "r3"]
    assert len(result.agent_trajectory) == 2


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
@pytest.mark.parametrize("kind", FAILURES)
def test_a_root_lm_that_cannot_be_reached_for_the_conclusion_is_asked_again_where_the_work_is_kept(
    kind: str, kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    tried = {"topic": toy.FIX, "reply": "Be brief."}
    turn = f"print(evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})['run_id'])"
    root = ScriptedRootLM([turn], extract={"optimized_dspy_program": json.dumps(tried)})
    given: dict[str, Any] = {"trainset": toy.trainset(), "valset": toy.valset(), "metric": toy.metric}
    with FlakyServer(root.engine) as server:
        lm = reached(server, kind=kind, model="openai/root")
        directory = tmp_path if kept else None
        optimizer = toy.optimizer(root, root_lm=lm, rlm_max_iterations=1, run_storage_dir=directory)
        server.kind, server.failing = kind, ("r3",)  # once there is the only turn's output
        if not kept:
            result: Any = optimizer.compile(toy.Triage(), **given)  # else what was paid would be lost
            assert (result.optimized_dspy_program["topic"], result.best_run_id) == (toy.FIX, "r3")
            assert "no valid submission" in caplog.text
            return
        with pytest.raises(getattr(dspy, ERRORS[kind])):
            optimizer.compile(toy.Triage(), **given)
        assert f"RLMDocstringOptimizer stopped ({ERRORS[kind]})" in capsys.readouterr().err
        server.failing = ()
        result = optimizer.compile(toy.Triage(), **given, resume=True)
    assert result.optimized_dspy_program == tried
    assert [log["run_id"] for log in result.trial_logs] == ["r1", "r2", "r3", "r4"]  # the last one is the final check
    assert len(result.agent_trajectory) == 1


@pytest.mark.parametrize("kind", ["server", "transport"])
def test_a_sub_lm_that_cannot_be_reached_is_told_to_the_agent_each_time_and_to_its_person_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    ask = "for text in ('one', 'two'):\n    try: llm_query(text)\n    except Exception as e: print(type(e).__name__)"
    with FlakyServer(toy.eval_lm().engine) as server:
        server.kind, server.failing = kind, ("one", "two")
        result, _ = toy.compiled([ask, SUBMIT], sub_lm=reached(server, kind=kind, model="openai/sub"), kernel=KERNEL)
    assert result.agent_trajectory[0]["output"].split() == [ERRORS[kind]] * 2
    (said,) = [record.getMessage() for record in caplog.records if "sub-LM" in record.getMessage()]
    assert ERRORS[kind] in said


@pytest.mark.parametrize("role", ["root", "eval"])
def test_an_lm_that_cannot_be_reached_is_named_first_and_its_traceback_is_short(
    role: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    dead = dspy.LM("openai/dead", api_base="http://127.0.0.1:9/v1", api_key="none", cache=False, num_retries=0)
    root = ScriptedRootLM([SUBMIT])
    root.lm = dead if role == "root" else root.lm
    options = {"eval_lm": dead} if role == "eval" else {}
    with pytest.raises(dspy.LMError) as raised:
        toy.optimizer(root, run_storage_dir=tmp_path, **options).compile(
            toy.Triage(), trainset=toy.trainset(), metric=toy.metric
        )
    error = raised.value
    line = f"the {role} LM openai/dead cannot be reached (transport): failed to connect to 127.0.0.1:9"
    shown = "".join(traceback.format_exception(error))
    assert len(shown.splitlines()) < 25
    assert "another exception" not in shown
    notes = notes_of(error)
    assert notes[0].startswith(line)
    assert notes[1].startswith("To go on: ")
    told = capfd.readouterr().err.splitlines()
    assert next(text for text in told if line in text).startswith("RLMDocstringOptimizer: the ")
    # What it came from is still there, with its frames.
    cause, found = error.__context__, []
    while cause is not None:
        found.append(type(cause))
        cause = cause.__cause__ or cause.__context__
    assert ConnectionRefusedError in found


def test_the_text_of_an_lm_that_could_not_be_had_is_cut(capfd: pytest.CaptureFixture[str]) -> None:
    def page(asked: Asked) -> dict[str, object]:
        raise lm15.TransportError("<html>\n" + "proxy says no\n" * 10_000)

    with pytest.raises(dspy.LMError, match="characters left out") as raised:
        toy.compiled([SUBMIT], eval_lm=field_lm(page))
    assert len("".join(traceback.format_exception(raised.value))) < 6000
    assert "cannot be reached (transport): <html>\n" in capfd.readouterr().err
