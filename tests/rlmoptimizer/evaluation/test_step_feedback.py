"""Step feedback: a metric in GEPA's form is asked once more about each step that ran."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy import lm15
from offline import Asked, Engine, asked, field_lm, fields_text

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.row_runner import Detail
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.task.dataset import build_dataset


class Program(dspy.Module):
    """Its steps are `one`, called twice, and `two`."""

    def __init__(self) -> None:
        super().__init__()
        self.one = dspy.Predict("question -> note")
        self.two = dspy.Predict("note -> answer")

    def forward(self, question: str) -> Any:
        self.one(question=f"{question}?")
        return self.two(note=self.one(question=question).note)


def answering(asked: Asked) -> dict[str, object]:
    return {name: f"{name} to {'/'.join(asked.inputs.values())}" for name in asked.outputs}


def evaluated(
    metric: Any, program: dspy.Module | None = None, *, detail: Detail = "rows", lm: Any = None, **options: Any
) -> ExampleResult:
    rows = build_dataset([dspy.Example(question="q").with_inputs("question")]).train
    with Evaluator(metric, lm or field_lm(answering), 1, **options) as evaluator:
        evaluator.metric_works = True  # as after a baseline: one bad answer does not end everything
        return evaluator.score(program or Program(), rows, detail=detail)[0]


def said(result: ExampleResult) -> list[tuple[str, str | None]]:
    return [(step.step_name, step.feedback) for step in result.steps]


def metric(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    """Says of each step how often it was called."""
    about = "all" if pred_name is None else f"{pred_name} ran {len(pred_trace)} of {len(trace)} times"
    return dspy.Prediction(score=0.5 if pred_name is None else 0.0, feedback=about)


def test_each_call_of_a_step_has_what_the_metric_says_about_the_step_and_the_score_is_that_of_the_whole() -> None:
    result = evaluated(metric)
    one, two = "one ran 2 of 3 times", "two ran 1 of 3 times"
    assert said(result) == [("one", one), ("one", one), ("two", two)]
    assert (result.score, result.feedback, result.error) == (0.5, "all", None)
    assert result.as_row()["steps"][2]["feedback"] == "two ran 1 of 3 times"


def test_the_metric_gets_the_trace_as_gepa_passes_it() -> None:
    got: dict[str, Any] = {}

    def looks(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        if pred_name is not None:
            got[pred_name] = pred_trace
            assert gold.question == "q"
            assert pred.answer.startswith("answer to")
        return 1.0

    evaluated(looks)
    ((predictor, inputs, prediction),) = got["two"]
    assert isinstance(predictor, dspy.Predict)
    assert list(predictor.signature.output_fields) == ["answer"]
    assert inputs == {"note": "note to q"}
    assert isinstance(prediction, dspy.Prediction)
    assert prediction.answer == "answer to note to q"
    assert [inputs["question"] for _, inputs, _ in got["one"]] == ["q?", "q"]


@pytest.mark.parametrize("answer", [1.0, dspy.Prediction(score=1.0), dspy.Prediction(score=1.0, feedback="the same")])
def test_steps_that_the_metric_says_nothing_of_its_own_about_have_no_feedback(answer: Any) -> None:
    def says(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return answer if pred_name else dspy.Prediction(score=1.0, feedback="the same")

    result = evaluated(says)
    assert {feedback for _, feedback in said(result)} == {None}
    assert all("feedback" not in step for step in result.as_row()["steps"])


def test_what_goes_wrong_is_said_in_the_feedback_and_the_row_stands() -> None:
    def fails(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        if pred_name == "one":
            raise ValueError("no idea of notes")
        return None if pred_name == "two" else 1.0

    result = evaluated(fails)
    one, _, two = (feedback or "" for _, feedback in said(result))
    assert one == "(no feedback: the metric raised ValueError: no idea of notes when it was asked about this step)"
    assert two == "(no feedback: the metric returned None, which holds neither feedback nor a score)"
    assert (result.score, result.passed, result.error, result.feedback) == (1.0, True, None, None)


@pytest.mark.parametrize("ended", [SystemExit, GeneratorExit])
def test_a_metric_that_would_end_the_process_over_a_step_does_not(ended: type[BaseException]) -> None:
    def ends(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        if pred_name:
            raise ended
        return 1.0

    result = evaluated(ends)
    assert ended.__name__ in (result.steps[0].feedback or "")
    assert result.score == 1.0


def test_an_async_metric_is_asked_too() -> None:
    async def later(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return metric(gold, pred, trace, pred_name, pred_trace)

    assert said(evaluated(later)) == said(evaluated(metric))


class PlainEngine:
    """An engine that another process can have."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        return Engine(lambda request: fields_text(answering(asked(request)))).complete(request)


class Elsewhere(Executor):
    """Runs what it is given as another process would: as a copy that went there and came back in bytes."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sent = cloudpickle.dumps((fn, args, kwargs))
        done: Future[Any] = Future()
        function, arguments, named = cloudpickle.loads(sent)
        done.set_result(cloudpickle.loads(cloudpickle.dumps(function(*arguments, **named))))
        return done


def test_a_metric_in_another_process_is_asked_too_and_requests_come_back() -> None:
    details: tuple[Detail, ...] = ("rows", "requests", "totals")
    lm = dspy.LM("offline/there", engine=PlainEngine(), cache=False)
    for detail in details:
        here = evaluated(metric, detail=detail, lm=lm)
        there = evaluated(metric, detail=detail, lm=lm, executor=Elsewhere())
        assert there.steps == here.steps
        assert any(step.request for step in there.steps) == (detail == "requests")
        assert any(step.feedback for step in there.steps) == (detail != "totals")


def test_a_metric_in_another_process_counts_to_the_same_score() -> None:
    lm = dspy.LM("offline/there", engine=PlainEngine(), cache=False)
    assert evaluated(bind_metric(lambda gold, pred: 50, 100.0), lm=lm, executor=Elsewhere()).score == 0.5


def test_nobody_asks_about_the_steps_of_examples_that_nobody_sees() -> None:
    asked: list[Any] = []

    def counts(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        asked.append(pred_name)
        return 1.0

    evaluated(counts, detail="totals")
    assert asked == [None]


def test_nobody_asks_when_the_program_or_the_metric_failed() -> None:
    asked: list[Any] = []

    def refuses(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        asked.append(pred_name)
        return "no score"

    result = evaluated(refuses)
    assert asked == [None]
    assert result.error_kind == "score"


def test_a_step_that_failed_and_a_predictor_that_is_no_step_are_not_asked_about() -> None:
    class Tries(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fails = dspy.Predict("question -> number: int")
            self.works = dspy.Predict("question -> answer")

        def forward(self, question: str) -> Any:
            for _ in range(2):
                try:
                    self.fails(question=question)
                except dspy.AdapterParseError:
                    continue
            dspy.Predict("question -> answer")(question=question)
            return self.works(question=question)

    names = [(name.partition("(")[0], feedback) for name, feedback in said(evaluated(metric, Tries()))]
    assert names == [("fails", None), ("fails", None), ("<Predict", None), ("works", "works ran 1 of 2 times")]


def test_a_metric_that_works_in_place_changes_nothing_that_is_shown() -> None:
    def spoils(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        gold.question = pred.answer = "spoiled"
        if pred_trace:
            pred_trace[0][1].clear()
            pred_trace.clear()
            trace.clear()
        return dspy.Prediction(score=1.0, feedback=pred_name)

    result = evaluated(spoils)
    assert [step.inputs for step in result.steps] == [{"question": "q?"}, {"question": "q"}, {"note": "note to q"}]
    assert said(result) == [("one", "one"), ("one", "one"), ("two", "two")]
    assert result.predicted == {"answer": "answer to note to q"}


def test_what_the_metric_asks_its_own_lm_is_no_step() -> None:
    judge = dspy.Predict("answer -> verdict")

    def judges(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        return dspy.Prediction(score=1.0, feedback=judge(answer=pred_name or "whole").verdict)

    result = evaluated(judges)
    assert said(result) == [("one", "verdict to one"), ("one", "verdict to one"), ("two", "verdict to two")]


# Objectives.


def objectives(of: Callable[[int], Any]) -> Any:
    calls = iter(range(1000))
    return lambda gold, pred: {"score": 1.0, "objective_scores": of(next(calls))}


def test_objectives_are_in_the_row() -> None:
    result = evaluated(objectives(lambda _: {"brevity": 12}))
    assert result.as_row()["objectives"] == {"brevity": 12.0}


def test_objectives_that_are_left_out_are_warned_of_once_without_their_values(caplog: pytest.LogCaptureFixture) -> None:
    rows = build_dataset([dspy.Example(question=str(n)).with_inputs("question") for n in range(5)]).train
    metric = objectives(lambda call: {"fine": 1, f"secret {call}": "quokka"})
    with caplog.at_level(logging.WARNING, "rlmoptimizer"), Evaluator(metric, field_lm(answering), 2) as evaluator:
        results = evaluator.score(Program(), rows)
    assert [result.objectives for result in results] == [{"fine": 1.0}] * 5
    (record,) = caplog.records
    assert "a value is no finite number" in record.getMessage()
    assert "quokka" not in record.getMessage()
    assert "secret" not in record.getMessage()


def test_a_halt_while_the_metric_is_asked_about_steps_asks_no_further() -> None:
    asked: list[str | None] = []
    aborts: list[Callable[[], None]] = []
    delivered = threading.Event()

    def halts(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        asked.append(pred_name)
        if pred_name == "one":
            aborts[0]()
        return 1.0

    rows = build_dataset([dspy.Example(question="q").with_inputs("question")]).train
    with Evaluator(halts, field_lm(answering), 1) as evaluator:
        aborts.append(evaluator.abort)
        results = evaluator.score(Program(), rows, on_results=lambda _: delivered.set())
    assert asked == [None, "one"]
    assert len(results) == int(delivered.is_set())
