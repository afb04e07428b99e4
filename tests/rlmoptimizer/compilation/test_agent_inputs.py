"""What the agent is given at its start, also in a process that goes on with the work of another one."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, ScriptedRootLM, field_lm

from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
REQUESTS = """
for step in program_steps:
    request = step["example_request"]
    print("REQUEST", step["step"], request and [message["role"] for message in request["messages"]])
    print(request and request["messages"][-1]["content"].split("Respond")[0], request and request["completion"])
"""
WARNINGS = "print('WARNINGS', task_facts['warnings'])"


def interrupted(directory: Path, turns: list[Any], **options: Any) -> None:
    """A compile whose root LM fails after these turns."""
    arguments = toy.arguments(**{name: options.pop(name) for name in ("metric",) if name in options})
    student = options.pop("student", None) or toy.Triage()
    root = ScriptedRootLM([*turns, RuntimeError("the key was revoked")])
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir=directory, **options).compile(student, **arguments)


def resumed(directory: Path, turns: list[Any], *, student: Any = None, **changed: Any) -> ScriptedRootLM:
    root = ScriptedRootLM([*turns, SUBMIT])
    optimizer = toy.optimizer(root, run_storage_dir=directory)
    optimizer.compile(student or toy.Triage(), **toy.arguments(**changed), resume=True)
    return root


def test_the_agent_can_read_a_request_of_each_step_of_the_first_example() -> None:
    _, root = toy.compiled([REQUESTS, SUBMIT])
    assert "REQUEST topic ['system', 'user']" in root.history
    assert "REQUEST reply ['system', 'user']" in root.history
    assert root.history.count("message 0 plainly about billing") >= 2
    assert "we refund you" in root.history


def test_a_request_is_too_long_to_stand_in_every_turn() -> None:
    _, root = toy.compiled([SUBMIT])
    assert "example_request" in root.seen[0].text
    assert "message 0 plainly" not in root.seen[0].text


def test_a_process_that_goes_on_has_the_same_requests(tmp_path: Path) -> None:
    interrupted(tmp_path, [])
    root = resumed(tmp_path, [REQUESTS])
    _, new = toy.compiled([REQUESTS, SUBMIT])
    assert root.history.partition("REQUEST topic")[2] == new.history.partition("REQUEST topic")[2] != ""


def test_a_process_that_goes_on_with_a_baseline_that_was_cut_has_them_too(tmp_path: Path) -> None:
    judged: list[Any] = []

    def metric(gold: dspy.Example, prediction: dspy.Prediction) -> bool:
        judged.append(gold)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return prediction.answer == gold.answer

    optimizer = toy.optimizer(ScriptedRootLM([]), run_storage_dir=tmp_path, num_threads=1)
    with pytest.raises(KeyboardInterrupt):
        optimizer.compile(toy.Triage(), **toy.arguments(metric=metric))
    root = ScriptedRootLM([REQUESTS, SUBMIT])
    again = toy.optimizer(root, run_storage_dir=tmp_path, num_threads=1)
    again.compile(toy.Triage(), **toy.arguments(metric=metric), resume=True)
    assert root.history.count("message 0 plainly about billing") >= 2


def test_no_request_of_another_split_is_kept(tmp_path: Path) -> None:
    toy.compiled([SUBMIT], run_storage_dir=tmp_path)
    with StoreReader.open_in(tmp_path) as store:
        kept = [
            (run.split, example.example_id)
            for run in store.runs()
            for example in store.examples(run.run_id)
            for step in example.steps
            if step.request is not None
        ]
    assert set(kept) <= {("train", str(number)) for number in range(1, 7)}
    assert ("train", "1") in kept


def test_step_feedback_and_requests_of_val_reach_nobody(tmp_path: Path) -> None:
    asked: list[tuple[bool, Any]] = []

    def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        asked.append((toy.SECRET in gold.message, pred_name))
        return dspy.Prediction(score=0.0, feedback=f"{pred_name}: {gold.message}")

    show = "print(program_steps, run_data(baseline_runs['train']['run_id']), evaluate_program(split='val'))"
    _, root = toy.compiled([show, SUBMIT], metric=metric)
    assert toy.SECRET not in root.history
    assert "topic: message" in root.history
    assert {name for of_val, name in asked if of_val} == {None}
    assert {name for of_val, name in asked if not of_val} == {None, "topic", "reply"}


# Warnings.


class Hidden(toy.Triage):
    """Keeps a predictor where DSPy does not look, and makes another while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = {dspy.Predict("message -> mood")}

    def forward(self, message: str) -> dspy.Prediction:
        for predictor in self.kept:
            predictor(message=message)
        dspy.Predict("message -> size")(message=message)
        return super().forward(message=message)


class Threaded(toy.Triage):
    """Calls its first step in a thread of its own."""

    def forward(self, message: str) -> dspy.Prediction:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(self.topic, message=message).result(100)
        return super().forward(message=message)


def respond(question: Asked) -> dict[str, object]:
    return toy.respond(question) if "answer" in question.outputs else {name: "x" for name in question.outputs}


def partial(gold: Any, prediction: Any) -> float:
    return 0.5


def test_predictors_that_dspy_does_not_find_are_told_to_the_agent_and_the_person(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, root = toy.compiled([WARNINGS, SUBMIT], student=Hidden(), eval_lm=field_lm(respond, "eval"))
    for told in (root.history.partition("WARNINGS")[2], caplog.text):
        assert "predictors that are no steps" in told
        assert "<Predict(message -> mood)>" in told
        assert "<Predict(message -> size)>" in told


def test_partial_scores_without_feedback_are_told_to_both(caplog: pytest.LogCaptureFixture) -> None:
    _, root = toy.compiled([WARNINGS, SUBMIT], metric=partial)
    assert "partial scores and no feedback" in root.history.partition("WARNINGS")[2]
    assert "partial scores and no feedback" in caplog.text


def test_threads_without_dspys_settings_are_told_and_known_to_a_process_that_goes_on(tmp_path: Path) -> None:
    dspy.configure(lm=toy.eval_lm())
    try:
        interrupted(tmp_path, [], student=Threaded())
        root = resumed(tmp_path, [WARNINGS], student=Threaded())
    finally:
        dspy.configure(lm=None)
    assert "threads of its own" in root.history.partition("WARNINGS")[2]
    with StoreReader.open_in(tmp_path) as store:
        assert any("threads of its own" in warning for warning in OptimizationResult.of(store).warnings)


def test_a_program_with_nothing_to_beware_of_has_no_warnings(caplog: pytest.LogCaptureFixture) -> None:
    _, root = toy.compiled([WARNINGS, SUBMIT])
    assert "WARNINGS []" in root.history
    assert "The agent is told" not in caplog.text


def test_the_person_is_told_once_also_when_the_work_is_interrupted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    interrupted(tmp_path, ["pass"], metric=partial)
    assert caplog.text.count("partial scores and no feedback") == 1
    root = resumed(tmp_path, [WARNINGS], metric=partial)
    assert caplog.text.count("partial scores and no feedback") == 1
    assert "partial scores and no feedback" in root.history.partition("WARNINGS")[2]


# Scores that do not count to 1.


def test_scores_are_divided_by_the_perfect_one() -> None:
    def percent(gold: Any, prediction: Any) -> float:
        return 100.0 if prediction.answer == gold.answer else 20.0

    show = "print('RUN', baseline_runs['train']['score'], baseline_runs['train']['passed_count'])"
    optimized, root = toy.compiled([show, SUBMIT], metric=percent, perfect_score=100)
    assert "RUN 60.0 3" in root.history
    assert optimized.best_score == 60.0
