"""DSPy's callbacks of evaluations: one start and one end for each run, in the shape that `dspy.Evaluate` has."""

from __future__ import annotations

import inspect
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import desk
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

from rlmoptimizer.evaluation.evaluate_callbacks import RunCut
from rlmoptimizer.records import RunRecord

TURN = f"""
update_prompt("topic", {toy.FIX!r})
evaluate_program(limit=2)
evaluate_program(repeats=2)
evaluate_program(split="val")
SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])
"""


@dataclass
class Call:
    call_id: str
    parent: str | None
    instance: Any
    inputs: dict[str, Any]
    ended: list[tuple[Any, BaseException | None]] = field(default_factory=list)

    @property
    def outputs(self) -> Any:
        ((outputs, exception),) = self.ended
        assert exception is None
        return outputs


class Recorder(BaseCallback):
    """Keeps the evaluations, and the ids of the calls in which modules were called."""

    def __init__(self) -> None:
        self.compile_id: str | None = None
        self.calls: dict[str, Call] = {}
        self.callers: set[str | None] = set()

    def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.compile_id = call_id

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self.calls[call_id] = Call(call_id, ACTIVE_CALL_ID.get(), instance, inputs)

    def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        self.calls[call_id].ended.append((outputs, exception))

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if isinstance(instance, toy.Triage):
            self.callers.add(ACTIVE_CALL_ID.get())


@dataclass
class Compiled:
    program: Any
    heard: Recorder
    calls: dict[str, Call]  # by run id


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    heard = Recorder()
    with pytest.MonkeyPatch.context() as patch, dspy.context(callbacks=[heard]):
        patch.setattr(toy, "KERNEL", dspy.LocalInterpreter)
        program, _ = toy.compiled([TURN], testset=[toy.example(number, marker=f"{toy.SECRET} ") for number in (7, 8)])
    return Compiled(program, heard, {call.inputs["callback_metadata"]["run_id"]: call for call in heard.calls.values()})


def test_every_run_is_one_evaluation_with_its_score(compiled: Compiled) -> None:
    scores = {run_id: call.outputs.score for run_id, call in compiled.calls.items()}
    assert scores == {run["run_id"]: pytest.approx(run["score"], abs=0.01) for run in compiled.program.trial_logs}
    series = [compiled.calls[run["run_id"]].inputs["callback_metadata"] for run in compiled.program.trial_logs]
    keys = ["eval_train", "eval_val", "eval_train_part", "eval_train", "eval_val", "eval_test", "eval_test"]
    assert [metadata["metric_key"] for metadata in series] == keys
    assert [metadata["baseline"] for metadata in series] == [True, True, False, False, False, True, False]


def test_an_evaluation_has_the_shape_of_dspys(compiled: Compiled) -> None:
    theirs = Recorder()
    trainset = toy.trainset()
    with dspy.context(callbacks=[theirs], lm=toy.eval_lm()):
        evaluate = dspy.Evaluate(devset=trainset, metric=lambda gold, seen: toy.metric(gold, seen).score, num_threads=2)
        evaluate(toy.Triage(), callback_metadata={"metric_key": "eval"})
    (their,) = theirs.calls.values()
    our = compiled.calls["r1"]
    assert isinstance(our.instance, dspy.Evaluate)
    assert set(our.inputs) == set(their.inputs)
    assert inspect.signature(type(our.instance).__call__).parameters.keys() - {"self"} == set(our.inputs)
    assert isinstance(our.inputs["program"], toy.Triage)
    assert type(our.outputs) is type(their.outputs)
    assert our.outputs.score == their.outputs.score == 50.0
    assert [example.toDict() for example in our.instance.devset] == [example.toDict() for example in trainset]

    def plain(results: list[Any]) -> list[Any]:
        return [(example.toDict(), example.inputs().toDict(), seen.toDict(), score) for example, seen, score in results]

    assert plain(our.outputs.results) == plain(their.outputs.results)


def test_the_program_has_the_prompts_of_the_run_and_is_nobody_elses(compiled: Compiled) -> None:
    prompts = {run["run_id"]: run["prompts"]["topic"] for run in compiled.program.trial_logs}
    programs = {run_id: call.inputs["program"] for run_id, call in compiled.calls.items()}
    assert {run_id: program.topic.signature.instructions for run_id, program in programs.items()} == prompts
    assert len({id(program) for program in programs.values()}) == len(programs)


def test_of_val_and_test_there_are_scores_and_no_rows(compiled: Compiled) -> None:
    for call in compiled.calls.values():
        if call.inputs["callback_metadata"]["split"] != "train":
            assert (call.instance.devset, call.outputs.results) == ([], [])
        else:
            assert len(call.outputs.results) > 0
        assert toy.SECRET not in repr((call.instance.devset, call.inputs, dict(call.outputs)))


def test_each_rollout_of_an_example_is_a_result(compiled: Compiled) -> None:
    assert [len(compiled.calls[run_id].outputs.results) for run_id in ("r1", "r3", "r4")] == [6, 2, 12]


def test_evaluations_belong_to_the_compile_and_the_programs_calls_to_them(compiled: Compiled) -> None:
    assert {call.parent for call in compiled.calls.values()} == {compiled.heard.compile_id}
    assert compiled.heard.callers == {call.call_id for call in compiled.calls.values()}


def test_a_run_that_is_cut_ends_with_an_exception_and_one_that_goes_on_is_another_evaluation(tmp_path: Path) -> None:
    heard, cut = Recorder(), threading.Event()

    def metric(gold: Any, seen: Any, trace: Any = None) -> float:
        if not cut.is_set():
            cut.set()
            at.bench.runs.kernel_died()  # nobody waits any more
        return 1.0

    with dspy.context(callbacks=[heard]), desk(tmp_path, baseline=False, metric=metric, threads=1) as at:
        assert at.evaluate()["evaluated_count"] < 6
        (first,) = heard.calls.values()
        ((outputs, exception),) = first.ended
        assert outputs is None
        assert isinstance(exception, RunCut)
        assert at.evaluate()["score"] == 100.0
    second = list(heard.calls.values())[1]
    assert second.inputs["callback_metadata"]["run_id"] == first.inputs["callback_metadata"]["run_id"]
    assert len(second.outputs.results) == 6


def test_rows_that_fail_have_an_empty_prediction_and_odd_fields_are_fields(tmp_path: Path) -> None:
    class Odd(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("message -> topic")

        def forward(self, message: str) -> dspy.Prediction:
            if "message 0" in message:
                raise RuntimeError("not this one")
            return dspy.Prediction(**{"score": 1, "items": "two"})

    heard = Recorder()
    with dspy.context(callbacks=[heard]), desk(tmp_path, baseline=False, program=Odd(), metric=lambda *_: 1.0) as at:
        at.evaluate(limit=2)
    (call,) = heard.calls.values()
    (_, failed, nothing), (_, odd, one) = call.outputs.results
    assert (failed.toDict(), nothing) == ({}, 0.0)
    assert (odd.toDict(), one) == ({"score": 1, "items": "two"}, 1.0)


def test_a_callback_that_fails_or_changes_what_it_gets_changes_no_result(tmp_path: Path) -> None:
    class Rude(BaseCallback):
        def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            inputs["program"].topic.signature = inputs["program"].topic.signature.with_instructions("rude")
            for example in instance.devset:
                example.answer = "rude"
            raise RuntimeError("rude")

        def on_evaluate_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            outputs.results.clear()
            raise RuntimeError("rude")

    records: list[RunRecord] = []
    for callbacks in ([], [Rude()]):
        with dspy.context(callbacks=callbacks), desk(tmp_path / str(len(callbacks)), baseline=False) as at:
            at.evaluate()
            records += at.store.runs()
            rows = at.store.examples("r1")
            assert "rude" not in repr(rows)
    assert records[0].score == records[1].score == 0.5
