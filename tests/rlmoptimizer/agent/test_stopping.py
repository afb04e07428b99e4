"""What ends the agent's work before the agent does: a target, patience, a deadline."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from desk import desk
from hypothesis import given
from hypothesis import strategies as st
from offline import ScriptedRootLM

from rlmoptimizer import AgentError
from rlmoptimizer.agent import stopping
from rlmoptimizer.agent.stopping import StoppingLimits, WorkStop, runs_without_better
from rlmoptimizer.compilation import parts
from rlmoptimizer.errors import OptimizationEnded, TimeExceededError
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

FIX = {"topic": toy.FIX}
FIXED = {"topic": toy.FIX, "reply": "Answer by the topic."}
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


class Clock:
    """Shows what it was set to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# a target


def test_a_run_on_val_that_reaches_the_target_is_answered_and_nothing_after_it(tmp_path: Path) -> None:
    with desk(tmp_path, limits=StoppingLimits(target_score=100)) as at:
        assert at.evaluate("val")["score"] == 50.0
        assert at.evaluate(prompts=FIX)["score"] == 100.0  # train is not what counts
        assert at.evaluate("val", prompts=FIX)["score"] == 100.0
        for call in (at.evaluate, at.bench.tools.optimization_status, at.meter.reserve, at.meter.check):
            with pytest.raises(OptimizationEnded, match="target_score is 100") as refused:
                call()
            assert refused.value.reason == "target_score"
            assert isinstance(refused.value, AgentError)
        at.bench.submission.validate({"optimized_dspy_program": FIXED})  # may still be submitted
        assert at.ledger.state().reserved == 0


def test_without_val_the_whole_of_train_is_what_reaches_the_target(tmp_path: Path) -> None:
    with desk(tmp_path, val=None, limits=StoppingLimits(target_score=100)) as at:
        assert at.evaluate(ids="1", prompts=FIX)["score"] == 100.0
        assert at.bench.stop.look() is None
        assert at.evaluate(prompts=FIX)["score"] == 100.0
        with pytest.raises(OptimizationEnded, match=r"run r3 scored 100\.00 on all of train"):
            at.evaluate()


def test_a_baseline_that_reaches_the_target_ends_the_work_before_it_begins(tmp_path: Path) -> None:
    with desk(tmp_path, limits=StoppingLimits(target_score=50)) as at:
        ending = at.bench.stop.look()
        assert ending is not None
        assert (ending.reason, at.bench.gate.closed.is_set()) == ("target_score", True)


def test_a_compile_ends_at_its_target_with_the_best_candidate(caplog: pytest.LogCaptureFixture) -> None:
    tried = f"print(evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})['score'])"
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = toy.compiled([tried], target_score=95)
    assert (len(root.seen), root.extracts) == (1, 0)
    assert result.agent_trajectory[0]["output"].strip() == "100.0"
    assert result.optimized_dspy_program == FIXED
    assert "run r3 scored 100.00 on all of val, and target_score is 95" in caplog.text
    assert result.optimization_result.stop_reason == "target_score"


def test_a_compile_whose_baseline_is_good_enough_asks_no_agent(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = toy.compiled([SUBMIT], target_score=50)
    assert root.seen == []
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    assert "target_score is 50" in caplog.text
    assert result.optimization_result.stop_reason == "target_score"


def test_a_submission_in_the_cell_that_reached_the_target_counts() -> None:
    code = f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})\nSUBMIT(optimized_dspy_program={FIXED!r})"
    result, root = toy.compiled([code], target_score=95)
    assert len(root.seen) == 1
    assert result.agent_final_reasoning == "turn 1"
    assert result.optimization_result.stop_reason == "submitted"
    assert result.optimized_dspy_program == FIXED


def test_a_lucky_run_of_prompts_that_ran_before_reaches_no_target(tmp_path: Path) -> None:
    lm = toy.luck_on_val({"fixed": ["ab", "abcd"]})
    with desk(tmp_path, lm=lm, limits=StoppingLimits(target_score=80)) as at:
        assert at.evaluate("val", prompts={"topic": "fixed"})["score"] == 50.0
        assert at.evaluate("val", prompts={"topic": "fixed"})["score"] == 100.0
        assert at.bench.stop.look() is None


# patience


@given(st.floats(0, 1), st.lists(st.floats(0, 1), max_size=8))
def test_patience_counts_the_scores_since_the_last_that_was_better_than_all_before(
    before: float, scores: list[float]
) -> None:
    better = [place for place, score in enumerate(scores) if score > max([before, *scores[:place]])]
    assert runs_without_better(before, scores) == len(scores) - 1 - (better[-1] if better else -1)


def test_checkpoints_that_are_not_better_use_up_the_patience(tmp_path: Path) -> None:
    same, worse = {"topic": "Say it."}, {"reply": "explode"}
    with desk(tmp_path, limits=StoppingLimits(patience=2)) as at:
        at.evaluate("val", prompts=same)  # as good as the baseline is not better
        at.evaluate(prompts=same)
        at.evaluate("val", prompts=FIX)  # better: the count begins anew
        at.evaluate("val", prompts=same)
        assert at.bench.stop.look() is None
        assert at.evaluate("val", prompts=worse)["run_id"] == "r7"
        with pytest.raises(OptimizationEnded, match="the last 2 runs were not better than the best before") as refused:
            at.evaluate()
        assert refused.value.reason == "patience"


def test_a_lucky_run_is_no_longer_what_is_to_be_beaten_when_its_prompts_ran_again(tmp_path: Path) -> None:
    lm = toy.luck_on_val({"lucky": ["abcd", ""], "steady": ["abc"], "other": ["abc"]})
    with desk(tmp_path, lm=lm, limits=StoppingLimits(patience=3)) as at:
        for topic, score in (("lucky", 100.0), ("lucky", 0.0), ("steady", 75.0), ("other", 75.0)):
            assert at.evaluate("val", prompts={"topic": topic})["score"] == score
        assert at.bench.stop.look() is None


def test_the_checkpoints_of_an_earlier_process_count(tmp_path: Path) -> None:
    with desk(tmp_path, limits=StoppingLimits(patience=2)) as at:
        at.evaluate("val", prompts={"topic": "Say it."})
    with desk(tmp_path, again=True, baseline=False, limits=StoppingLimits(patience=2)) as at:
        assert at.bench.stop.look() is None
        at.evaluate("val", prompts={"topic": "Say it now."})
        ending = at.bench.stop.look()
        assert ending is not None
        assert ending.reason == "patience"


def test_a_score_that_is_read_again_uses_up_no_patience(tmp_path: Path) -> None:
    with desk(tmp_path, limits=StoppingLimits(patience=1)) as at:
        at.evaluate("val", prompts=FIX)
        for _ in range(2):
            assert at.evaluate("val", prompts=FIX, reuse=True)["score"] == 100.0
        at.evaluate("val")
        with pytest.raises(OptimizationEnded, match="patience is 1"):
            at.evaluate("val", prompts=FIX)


def test_a_compile_ends_when_its_patience_does(caplog: pytest.LogCaptureFixture) -> None:
    tried = "evaluate_program('val', prompts={'topic': 'Say it.'})"
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = toy.compiled([tried], patience=1)
    assert len(root.seen) == 1
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    assert "the last run was not better than the best before, and patience is 1" in caplog.text
    assert result.optimization_result.stop_reason == "patience"


# a deadline


class Gate:
    """A metric that waits in each example but those of the baseline."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.opened = threading.Event()
        self.waits = False

    def __call__(self, gold: Any, prediction: Any) -> Any:
        if self.waits:
            self.entered.release()
            assert self.opened.wait(60)
        return toy.metric(gold, prediction)


def asked_for(call: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(call())
        except AgentError as error:
            answers.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_at_the_deadline_a_run_on_train_begins_no_further_example(tmp_path: Path) -> None:
    clock, gate = Clock(), Gate()
    with desk(tmp_path, threads=2, metric=gate, limits=StoppingLimits(max_seconds=60), clock=clock) as at:
        gate.waits = True
        thread, answers = asked_for(at.evaluate)
        assert gate.entered.acquire(timeout=60)
        assert gate.entered.acquire(timeout=60)
        clock.now += 60
        ending = at.bench.stop.look()
        gate.opened.set()
        thread.join(60)
        assert ending is not None
        assert (ending.reason, ending.said) == ("max_seconds", "max_seconds=60 is used up")
        assert isinstance(answers[0], OptimizationEnded)
        assert at.store.runs()[-1].state == "cancelled"
        assert (at.ledger.spent, at.ledger.state().reserved) == (2, 0)  # what was under way is paid


def test_a_run_on_val_that_has_begun_comes_to_its_end_after_the_deadline(tmp_path: Path) -> None:
    clock, gate = Clock(), Gate()
    with desk(tmp_path, threads=1, metric=gate, limits=StoppingLimits(max_seconds=60), clock=clock) as at:
        gate.waits = True
        thread, answers = asked_for(functools.partial(at.evaluate, "val"))
        assert gate.entered.acquire(timeout=60)
        clock.now += 60
        at.bench.stop.look()
        gate.opened.set()
        thread.join(60)
        assert isinstance(answers[0], OptimizationEnded)
        record = at.store.runs()[-1]
        assert (record.split, record.state, record.evaluated_count) == ("val", "finished", 4)


def test_a_run_on_val_that_would_not_end_in_time_is_not_begun(tmp_path: Path) -> None:
    clock = Clock()
    with desk(tmp_path, limits=StoppingLimits(max_seconds=1e-6), clock=clock) as at:  # the baseline took longer
        with pytest.raises(TimeExceededError, match="s of max_seconds are left; val always runs whole"):
            at.evaluate("val")
        assert at.evaluate(ids="1")["evaluated_count"] == 1  # there are still as many seconds left
        assert at.ledger.spent == 1
        assert at.bench.tools.optimization_status()["remaining_seconds"] == pytest.approx(1e-6, abs=1e-7)


def test_repeats_of_val_must_end_in_time_too_and_what_is_reused_takes_none(tmp_path: Path) -> None:
    clock = Clock()
    with desk(tmp_path, limits=StoppingLimits(max_seconds=3600), clock=clock) as at:
        at.evaluate("val", prompts=FIX)
        whole = [run for run in at.store.runs() if run.split == "val" and run.finished_at is not None]
        quickest = min((run.finished_at or 0.0) - run.started_at for run in whole)
        clock.now += 3600 - 1.5 * quickest  # one more fits, two do not
        with pytest.raises(TimeExceededError):
            at.evaluate("val", prompts=FIX, repeats=2)
        with pytest.raises(TimeExceededError):
            at.evaluate("val", prompts=FIX, repeats=3, reuse=True)  # one round is there
        assert at.evaluate("val", prompts=FIX, reuse=True)["score"] == 100.0
        clock.now += quickest
        with pytest.raises(TimeExceededError):  # there is nothing to reuse
            at.evaluate("val", prompts={"topic": "another"}, reuse=True)


def clocked(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the deadlines of all compiles in this test."""
    clock = Clock()
    monkeypatch.setattr(parts, "WorkStop", functools.partial(WorkStop, clock=clock))
    return clock


def late(clock: Clock, calls: int) -> Callable[..., Any]:
    """A metric that lets the deadline pass in a certain call of it."""
    lock = threading.Lock()
    left = calls

    def metric(gold: Any, prediction: Any) -> Any:
        nonlocal left
        with lock:
            left -= 1
            if not left:
                clock.now += 1e6
        return toy.metric(gold, prediction)

    return metric


def test_the_cell_is_interrupted_at_the_deadline(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    code = "print(evaluate_program(ids='1')['score'])\nwhile True: pass"
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        metric = late(clocked(monkeypatch), 6 + 4 + 1)
        result, root = toy.compiled([code], metric=metric, max_seconds=3600, kernel=KERNEL)
    assert len(root.seen) == 1
    assert "KeyboardInterrupt" in result.agent_trajectory[0]["output"]
    assert result.optimization_result.stop_reason == "max_seconds"
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    assert "max_seconds=3600 is used up" in caplog.text
    assert "is lost" not in caplog.text
    assert "rlmoptimizer-deadline" not in {thread.name for thread in threading.enumerate()}


def test_a_cell_that_takes_no_interrupt_is_ended_with_its_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stopping, "_GRACE_SECONDS", 0.5)
    code = """
evaluate_program(ids='1')
while True:
    try:
        while True: pass
    except KeyboardInterrupt:
        pass
"""
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        metric = late(clocked(monkeypatch), 6 + 4 + 1)
        result, root = toy.compiled([code], metric=metric, max_seconds=3600, kernel=KERNEL)
    assert (len(root.seen), root.extracts) == (1, 0)
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    assert "max_seconds=3600 is used up" in caplog.text
    assert result.optimization_result.stop_reason == "max_seconds"


def test_an_answer_of_the_root_lm_that_comes_after_the_deadline_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = clocked(monkeypatch)

    def thinking(_: Any) -> str:
        clock.now += 1e6
        return SUBMIT

    result, root = toy.compiled([thinking], max_seconds=3600)
    assert len(root.seen) == 1
    assert "This was not run: max_seconds=3600 is used up" in result.agent_trajectory[0]["output"]
    assert result.optimization_result.stop_reason == "max_seconds"


def test_a_baseline_is_not_cut_by_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    result, root = toy.compiled([SUBMIT], metric=late(clocked(monkeypatch), 1), max_seconds=3600)
    assert root.seen == []
    assert [(log["split"], log["evaluated_count"]) for log in result.trial_logs] == [("train", 6), ("val", 4)]
    assert result.optimization_result.stop_reason == "max_seconds"


def test_the_agent_is_told_of_the_limits_that_are_set() -> None:
    result, _ = toy.compiled(["print(task_facts)", SUBMIT], max_seconds=3600.0, patience=3)
    shown = result.agent_trajectory[0]["output"]
    assert "'patience': 3, 'max_seconds': 3600.0" in shown
    assert "target_score" not in shown


# the time of earlier processes


def test_the_time_that_earlier_processes_worked_is_what_lies_between_their_beginnings_and_their_last_words(
    tmp_path: Path,
) -> None:
    clock = Clock()
    with RunStore.create(tmp_path / "runs-0001.sqlite", clock=clock) as store:
        assert store.worked_seconds() == 0
        store.record_event("CompileStarted", {})
        clock.now += 20
        store.record_event("LMUsageCounted", {})
        assert store.worked_seconds() == 20
        clock.now += 500  # killed, and later begun again
        store.record_event("CompileStarted", {})
        clock.now += 3
        store.charge(1, "llm_query")
        assert store.worked_seconds() == 23


def test_a_compile_that_goes_on_has_what_is_left_of_the_time_and_may_be_given_more(tmp_path: Path) -> None:
    root = ScriptedRootLM(["pass", RuntimeError("the key was revoked")])
    with pytest.raises(Exception, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments())
    with StoreReader.open_in(tmp_path) as store:
        worked = store.worked_seconds()
    assert worked > 0
    for seconds, asked in ((worked / 2, 0), (3600.0, 1)):
        copy = tmp_path / f"{asked}"
        copy.mkdir()
        (copy / "runs-0001.sqlite").write_bytes((tmp_path / "runs-0001.sqlite").read_bytes())
        root = ScriptedRootLM([SUBMIT])
        optimizer = toy.optimizer(root, run_storage_dir=copy, max_seconds=seconds)
        optimizer.compile(toy.Triage(), **toy.arguments(), resume=True)
        assert len(root.seen) == asked
