"""Runs on the validation set through whole compiles: alone, whole, and brought to their end by whoever goes on."""

from __future__ import annotations

import functools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import toy
from offline import Asked, ScriptedRootLM, field_lm
from stoppable import killed

from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.submission import SubmissionCheck
from rlmoptimizer.agent.tools import AgentTools
from rlmoptimizer.evaluation.run_request import asked_for
from rlmoptimizer.records import LMCall
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.dataset import Selection

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
FIX = f"prompts={{'topic': {toy.FIX!r}}}"


def is_last_of_val(question: Asked) -> bool:
    marked = question.inputs["message"].startswith(f"{toy.SECRET} message 3 ")
    return "one word" in question.instructions and marked


def test_a_submission_waits_for_the_run_on_val_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, submitted, judged = threading.Event(), threading.Event(), threading.Event()
    wait_quiet, check = CallGate.wait_quiet, SubmissionCheck.prompts_in

    def waits(self: CallGate) -> None:
        submitted.set()
        wait_quiet(self)

    @functools.wraps(check)
    def checks(self: SubmissionCheck, fields: Any) -> Any:
        judged.set()
        return check(self, fields)

    def respond(question: Asked) -> dict[str, object]:
        if is_last_of_val(question):
            entered.set()
            assert submitted.wait(60)
            assert not judged.wait(0.3)
        return toy.respond(question)

    monkeypatch.setattr(CallGate, "wait_quiet", waits)
    monkeypatch.setattr(SubmissionCheck, "prompts_in", checks)
    def run_data(self: AgentTools, run_id: Any) -> Any:
        assert entered.wait(60)

    monkeypatch.setattr(AgentTools, "run_data", run_data)  # the agent's way to know that val runs, which it has not
    cell = f"""
import threading
prompts = optimization_status()["current_prompts"]
threading.Thread(target=evaluate_program, args=("val",), kwargs=dict({FIX})).start()
run_data("r3")
SUBMIT(optimized_dspy_program=prompts)
"""
    result, _ = toy.compiled([cell], eval_lm=field_lm(respond), run_storage_dir=tmp_path, num_threads=1)
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    with StoreReader.open_in(tmp_path) as store:
        assert [(run.state, run.passed_count) for run in store.runs()[2:]] == [("finished", 4)]


def test_a_run_on_val_that_ctrl_c_has_cut_is_whole_before_the_agents_next_turn(tmp_path: Path) -> None:
    pressed = threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if is_last_of_val(question) and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
            threading.Event().wait(3)
        return toy.respond(question)

    options: dict[str, Any] = {"eval_lm": field_lm(respond), "run_storage_dir": tmp_path, "num_threads": 1}
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "valset": toy.valset(), "metric": toy.metric}
    with pytest.raises(KeyboardInterrupt):
        toy.compiled([f"evaluate_program('val', {FIX})"], **options)
    with StoreReader.open_in(tmp_path) as store:
        (cut,) = [run for run in store.runs() if not run.baseline]
        assert cut.evaluated_count < 4
    look = f"""
status = optimization_status()
print([(run["run_id"], run["passed_count"]) for run in status["runs"][2:]], status["spent_budget"])
again = evaluate_program("val", {FIX})
print(again["run_id"], again["passed_count"], again["remaining_budget"])
"""
    root = ScriptedRootLM([look, SUBMIT])
    result = toy.optimizer(root, **options).compile(toy.Triage(), **arguments, resume=True)
    shown = result.agent_trajectory[1]["output"].splitlines()
    assert shown == ["[('r3', 4)] 4", f"r3 4 {5 * 6 + 4 - 4}"]
    assert "r3 on val: score 100.00 on 4 of 4" in root.seen[0].text


def test_a_run_on_val_whose_host_was_killed_is_told_whole_or_not_at_all(tmp_path: Path) -> None:
    def kept() -> tuple[list[tuple[str, str, int]], int]:
        with StoreReader.open_in(tmp_path) as store:
            return [(run.run_id, run.state, run.evaluated_count) for run in store.runs()[4:]], store.spent()

    for _ in range(2):  # the second time while the rest of it is done, before the agent is asked
        killed(tmp_path, "validation")
        assert kept() == ([("r5", "running", 3)], 2 + 6 + 3)
    look = """
status = optimization_status()
print([(run["run_id"], run["passed_count"]) for run in status["runs"][4:]], status["spent_budget"])
again = evaluate_program("val")
print(again["run_id"], again["passed_count"], again["remaining_budget"], again["examples"])
"""
    root = ScriptedRootLM([look, SUBMIT])
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "valset": toy.valset(), "metric": toy.metric}
    result = toy.optimizer(root, run_storage_dir=tmp_path, rlm_max_iterations=20).compile(
        toy.Triage(), **arguments, resume=True
    )
    shown = result.agent_trajectory[-2]["output"].splitlines()
    assert shown == ["[('r5', 4)] 12", f"r5 4 {5 * 6 + 4 - 12} []"]
    assert "r5 on val: score 100.00 on 4 of 4" in root.seen[0].text
    assert "was cut; val" not in root.seen[0].text
    assert kept() == ([("r5", "finished", 4)], 12)
    assert toy.SECRET not in "".join(question.text for question in root.seen)


def test_a_kernel_full_of_calls_behind_a_run_on_val_goes_on_with_all_of_them(tmp_path: Path) -> None:
    cell = f"""
import threading
told = []
def look(): told.append(optimization_status()["budget"])
def val(): told.append(evaluate_program("val", {FIX})["passed_count"])
threads = [threading.Thread(target=val if number in (20, 50, 75) else look) for number in range(80)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(told), told.count(4))
"""
    result, _ = toy.compiled([cell, SUBMIT])
    assert result.agent_trajectory[0]["output"].strip() == "80 3"


def test_a_failure_while_cut_runs_on_val_are_finished_is_what_compile_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.compiled(["pass", KeyboardInterrupt()], run_storage_dir=tmp_path)
    with RunStore.open_in(tmp_path) as store:
        baseline = store.runs()[1]
        ids = [result.example_id for result in store.examples(baseline.run_id)]
        for text in ("Try this.", "Try that."):
            prompts = {**baseline.prompts, "topic": text}
            asked = asked_for(Selection(), repeats=1, reuse=False)
            store.begin_run("val", baseline.config, prompts, planned_ids=ids, request=asked, turn=1)

    record, full = RunStore.record_lm_calls, [True]

    def full_once(self: RunStore, *calls: LMCall) -> None:
        if full and full.pop():
            raise OSError("no space left on device")
        record(self, *calls)

    monkeypatch.setattr(RunStore, "record_lm_calls", full_once)
    root = ScriptedRootLM([SUBMIT])
    with pytest.raises(OSError, match="no space left"):
        toy.optimizer(root, run_storage_dir=tmp_path).compile(
            toy.Triage(), trainset=toy.trainset(), valset=toy.valset(), metric=toy.metric, resume=True
        )
    assert root.seen == []
