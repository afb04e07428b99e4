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
from rlmoptimizer.evaluation.metric import Verdict, bind_metric, read_verdict

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
        ((0.5, "text"), "of type tuple"),
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
