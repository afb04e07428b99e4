"""Metrics: every form they come in, and every kind of answer they give."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
import operator
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any, NamedTuple

import dspy
import numpy as np
import pytest
from annotations import defined, needs_late_annotations
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.errors import InvalidScore, InvalidSetup
from rlmoptimizer.evaluation.metric import Verdict, bind_metric, read_feedback, read_verdict

EXAMPLE, PREDICTION, STEPS = dspy.Example(a=1), dspy.Prediction(a=1), [("predictor", {}, {})]


class CallableMetric:
    def __call__(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return ("object", example, pred, trace)

    def method(self, example: Any, pred: Any) -> Any:
        return ("method", example, pred)

    @staticmethod
    def static(example: Any, pred: Any, trace: Any) -> Any:
        return ("static", example, pred, trace)


class ModuleMetric(dspy.Module):
    def forward(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return ("module", example, pred, trace)


class AsyncModuleMetric(dspy.Module):
    async def aforward(self, example: Any, pred: Any, trace: Any = None) -> Any:
        return ("async module", example, pred, trace)


def judged(judge: str, example: Any, pred: Any, *, strict: bool, trace: Any = None) -> Any:
    return (judge, strict, example, pred, trace)


def gepa(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
    return (gold, pred, trace, pred_name, pred_trace)


def gepa_with_steps(gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any, program_trace: Any) -> Any:
    return (gold, pred, trace, pred_name, pred_trace, program_trace)


def keyword_only(example: Any, pred: Any, *, trace: Any, pred_name: Any, threshold: float = 0.5) -> Any:
    return (example, pred, trace, pred_name, threshold)


def everything(*args: Any, **kwargs: Any) -> Any:
    return (args, kwargs)


def positional_only(example: Any, pred: Any, trace: Any, /) -> Any:
    return (example, pred, trace)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (lambda example, pred: (example, pred), (EXAMPLE, PREDICTION)),
        (lambda example, pred, trace=None: (example, pred, trace), (EXAMPLE, PREDICTION, None)),
        (lambda e, p, trace="kept": trace, "kept"),
        (lambda e, p, anything: anything, None),
        (CallableMetric(), ("object", EXAMPLE, PREDICTION, None)),
        (CallableMetric().method, ("method", EXAMPLE, PREDICTION)),
        (CallableMetric.static, ("static", EXAMPLE, PREDICTION, None)),
        (functools.partial(judged, "j", strict=True), ("j", True, EXAMPLE, PREDICTION, None)),
        (gepa, (EXAMPLE, PREDICTION, None, None, None)),
        (gepa_with_steps, (EXAMPLE, PREDICTION, None, None, None, STEPS)),
        (lambda e, p, *, program_trace=None: program_trace, STEPS),
        (keyword_only, (EXAMPLE, PREDICTION, None, None, 0.5)),
        (everything, ((EXAMPLE, PREDICTION), {})),
        (positional_only, (EXAMPLE, PREDICTION, None)),
        (operator.eq, True),
        (ModuleMetric(), ("module", EXAMPLE, PREDICTION, None)),
    ],
)
def test_a_metric_is_called_the_way_it_wants(metric: Any, expected: Any) -> None:
    assert bind_metric(metric)(EXAMPLE, PREDICTION, STEPS) == expected


async def async_metric(example: Any, pred: Any, trace: Any = None) -> Any:
    await asyncio.sleep(0)
    return ("async", example, pred, trace)


@pytest.mark.parametrize(
    ("metric", "name"), [(async_metric, "async"), (AsyncModuleMetric(), "async module")], ids=["function", "module"]
)
def test_an_async_metric_gives_something_to_await(metric: Any, name: str) -> None:
    answer = bind_metric(metric)(EXAMPLE, PREDICTION, STEPS)
    assert inspect.isawaitable(answer)

    async def wait() -> Any:
        return await answer

    assert asyncio.run(wait()) == (name, EXAMPLE, PREDICTION, None)


def test_a_metric_is_bound_once() -> None:
    scorer = bind_metric(gepa)
    assert bind_metric(scorer) is scorer


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (None, "of type NoneType"),
        ("accuracy", "of type str"),
        (CallableMetric, "the class CallableMetric"),
        (lambda: 1.0, "it takes no positional arguments"),
        (lambda example: 1.0, "it takes one positional argument"),
        (lambda e, p, t, n, pt, more: 1.0, "it also needs more"),
        (functools.partial(judged, "j"), "it also needs strict"),
    ],
)
def test_what_cannot_be_called_as_a_metric_is_refused_before_anything_runs(metric: Any, message: str) -> None:
    with pytest.raises(InvalidSetup, match=message):
        bind_metric(metric)


class Graded(NamedTuple):
    score: float
    feedback: str


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        (True, Verdict(1.0, None)),
        (False, Verdict(0.0, None)),
        (1, Verdict(1.0, None)),
        (0.25, Verdict(0.25, None)),
        (np.float32(0.5), Verdict(0.5, None)),
        (np.bool_(True), Verdict(1.0, None)),
        (np.array(0.75), Verdict(0.75, None)),
        (Decimal("0.5"), Verdict(0.5, None)),
        (Fraction(1, 4), Verdict(0.25, None)),
        (1 + 1e-12, Verdict(1.0, None)),
        (-1e-12, Verdict(0.0, None)),
        (dspy.Prediction(score=0.5, feedback="so so"), Verdict(0.5, "so so")),
        (dspy.Prediction(score=True), Verdict(1.0, None)),
        (dspy.Prediction(score=np.float64(0.5), feedback=None), Verdict(0.5, None)),
        ({"score": 0.5, "feedback": "so so"}, Verdict(0.5, "so so")),
        ({"score": 1, "feedback": 404}, Verdict(1.0, "404")),
        (SimpleNamespace(score=0.5, feedback=""), Verdict(0.5, "")),
        (SimpleNamespace(score=0.5), Verdict(0.5, None)),
        (Graded(0.5, "so so"), Verdict(0.5, "so so")),
    ],
)
def test_every_form_of_score_is_read(answer: Any, verdict: Verdict) -> None:
    assert read_verdict(answer) == verdict
    assert type(read_verdict(answer).score) is float


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "the metric returned None; a score is a number from 0 to 1"),
        (math.nan, "returned nan"),
        (math.inf, "returned inf"),
        (Decimal("NaN"), "returned nan"),
        (1.5, "returned 1.5"),
        (-0.1, "returned -0.1"),
        (87, r"returned 87\.0"),
        (10**400, "not a single number"),
        ("0.5", "'0.5' of type str"),
        (b"1", "of type bytes"),
        (1j, "of type complex"),
        ([0.5], "of type list"),
        ((0.5, "text"), r"of type tuple; .*; with feedback, return dspy\.Prediction\(score=\.\.\., feedback=\.\.\.\)"),
        ({}, "without a 'score'"),
        ({"feedback": "x"}, "without a 'score'"),
        ({"score": None}, "returned None"),
        (dspy.Prediction(feedback="x"), "not a single number"),
        (dspy.Prediction(score="good"), "'good' of type str"),
        (np.array([0.5, 0.6]), "not a single number"),
        (object(), "of type object"),
    ],
)
def test_what_is_no_score_is_refused_in_words(answer: Any, message: str) -> None:
    with pytest.raises(InvalidScore, match=message):
        read_verdict(answer)


@given(st.floats(0, 1))
def test_a_fraction_is_its_own_score(score: float) -> None:
    assert read_verdict(score).score == score


@given(st.floats() | st.integers() | st.text() | st.binary() | st.none() | st.lists(st.floats()) | st.complex_numbers())
def test_any_answer_is_a_score_in_range_or_refused(answer: Any) -> None:
    try:
        verdict = read_verdict(answer)
    except InvalidScore:
        return
    assert 0.0 <= verdict.score <= 1.0


@needs_late_annotations
@pytest.mark.smoke
def test_a_metric_with_annotations_that_only_a_type_checker_knows_is_bound_as_any_other() -> None:
    metric = defined("def metric(gold: Row, pred: Answer, *, trace: Trace) -> float: return trace", "metric")
    assert bind_metric(metric)(EXAMPLE, PREDICTION, STEPS) is None


# GEPA's form: asked about one step.


def gepa_defaults(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    return (gold, pred, trace, pred_name, pred_trace)


def own_words(gold: Any, pred: Any, trace: Any = None, step_name: Any = None, step_trace: Any = None) -> Any:
    return (gold, pred, trace, step_name, step_trace)


def by_name(example: Any, pred: Any, *, pred_name: Any = None, pred_trace: Any = None, weight: float = 1.0) -> Any:
    return (example, pred, pred_name, pred_trace, weight)


def with_judge(example: Any, pred: Any, trace: Any = None, judge: Any = None, cache: Any = None) -> Any:
    return (judge, cache)


class GepaObject:
    def __call__(self, gold: Any, pred: Any, trace: Any, pred_name: Any, pred_trace: Any) -> Any:
        return ("object", gold, pred, trace, pred_name, pred_trace)


async def gepa_async(gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
    return (pred_name, pred_trace)


ONE = [("one", {}, {})]
WHOLE = (EXAMPLE, PREDICTION, STEPS, "one", ONE)


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (gepa, WHOLE),
        (gepa_defaults, WHOLE),
        (own_words, WHOLE),
        (lambda g, p, t, n, pt: (g, p, t, n, pt), WHOLE),
        (gepa_with_steps, (*WHOLE, STEPS)),
        (by_name, (EXAMPLE, PREDICTION, "one", ONE, 1.0)),
        (functools.partial(by_name, weight=2.0), (EXAMPLE, PREDICTION, "one", ONE, 2.0)),
        (functools.partial(gepa_defaults, trace=None), WHOLE),
        (GepaObject(), ("object", *WHOLE)),
    ],
)
def test_a_metric_in_gepas_form_is_asked_about_a_step_the_way_it_wants(metric: Any, expected: Any) -> None:
    assert bind_metric(metric).about_step(*WHOLE) == expected


def test_an_async_metric_is_asked_about_a_step() -> None:
    assert asyncio.run(bind_metric(gepa_async).about_step(*WHOLE)) == ("one", ONE)


@pytest.mark.parametrize(
    "metric",
    [
        lambda e, p: 1.0,
        lambda e, p, trace=None: 1.0,
        with_judge,
        lambda e, p, trace=None, weight=0.3, strict=True: 1.0,
        lambda e, p, trace=None, pred_name=None: 1.0,
        keyword_only,
        everything,
        operator.eq,
    ],
)
def test_a_metric_that_takes_no_step_is_asked_about_none(metric: Any) -> None:
    assert bind_metric(metric).step_call is None


# Other scales, and scores beside the score.


@pytest.mark.parametrize(
    ("answer", "score"), [(100, 1.0), (50.0, 0.5), (0, 0.0), (True, 1.0), (np.bool_(True), 1.0), ({"score": 25}, 0.25)]
)
def test_scores_are_divided_by_the_perfect_one_and_a_bool_is_not(answer: Any, score: float) -> None:
    assert read_verdict(answer, 100.0).score == score


@given(st.floats(0.001, 1e6), st.floats(0, 1))
def test_every_part_of_a_perfect_score_is_a_score_in_range(perfect: float, part: float) -> None:
    assert read_verdict(part * perfect, perfect).score == pytest.approx(part)


@pytest.mark.parametrize(
    ("answer", "perfect", "message"),
    [
        (87, 1.0, r"returned 87\.0; a score is a number from 0 to 1, or a bool; .* pass perfect_score=100"),
        (100.5, 1.0, r"from 0 to 1, or a bool$"),
        (101, 100.0, r"returned 101\.0; a score is a number from 0 to 100, or a bool$"),
        (-3, 10.0, r"from 0 to 10, or a bool$"),
    ],
)
def test_a_score_off_the_scale_is_refused_and_a_percentage_is_told_what_to_do(
    answer: Any, perfect: float, message: str
) -> None:
    with pytest.raises(InvalidScore, match=message):
        read_verdict(answer, perfect)


@pytest.mark.parametrize(
    "answer",
    [
        dspy.Prediction(score=0.5, feedback="f", objective_scores={"brevity": 3, "truth": np.float32(0.5)}),
        {"score": 0.5, "feedback": "f", "objective_scores": {"brevity": 3, "truth": 0.5}},
        SimpleNamespace(score=0.5, feedback="f", objective_scores={"brevity": 3, "truth": Decimal("0.5")}),
    ],
)
def test_objectives_are_read_and_not_divided(answer: Any) -> None:
    verdict = read_verdict(answer, 1.0)
    assert (verdict.objectives, verdict.dropped) == ({"brevity": 3.0, "truth": 0.5}, None)
    assert all(type(value) is float for value in (verdict.objectives or {}).values())


@pytest.mark.parametrize("objectives", [None, {}])
def test_no_objectives_are_none(objectives: Any) -> None:
    verdict = read_verdict({"score": 1, "objective_scores": objectives})
    assert (verdict.objectives, verdict.dropped) == (None, None)


@pytest.mark.parametrize(
    ("objectives", "kept", "why"),
    [
        ({"a": math.nan, "b": 1}, {"b": 1.0}, "a value is no finite number"),
        ({"a": "high", "b": 1}, {"b": 1.0}, "a value is no finite number"),
        ({"a": -1e308, "b": 1}, {"b": 1.0}, "a value is no finite number of at most 1e+100"),  # two have no sum
        ({"a": 10**400, "b": 1}, {"b": 1.0}, "a value is no finite number of at most 1e+100"),
        ({1: 1, "b": 1}, {"b": 1.0}, "a name is no text of at most 100 characters"),
        ({"a" * 101: 1}, None, "a name is no text of at most 100 characters"),
        ({str(number): number for number in range(30)}, {str(n): float(n) for n in range(20)}, "more than 20"),
        ([0.5], None, "they are no dict"),
    ],
)
def test_what_is_no_objective_is_left_out_and_the_reason_shows_no_value(objectives: Any, kept: Any, why: str) -> None:
    verdict = read_verdict({"score": 1, "objective_scores": objectives})
    assert verdict.objectives == kept
    assert why in (verdict.dropped or "")


@pytest.mark.parametrize(
    ("answer", "feedback"),
    [
        (dspy.Prediction(score=0.5, feedback="vague"), "vague"),
        (dspy.Prediction(score=400, feedback="vague"), "vague"),
        ({"feedback": 4}, "4"),
        (dspy.Prediction(score=0.5), None),
        (400, None),
        (True, None),
    ],
)
def test_feedback_about_a_step_is_read_whatever_its_score(answer: Any, feedback: str | None) -> None:
    assert read_feedback(answer) == feedback


@pytest.mark.parametrize("answer", [None, "vague", object(), math.nan, {}])
def test_an_answer_about_a_step_that_says_nothing_is_refused(answer: Any) -> None:
    with pytest.raises(InvalidScore, match="neither feedback nor a score"):
        read_feedback(answer)
