"""The evaluation engine: what a result says, whose fault an error was, and what threads may not mix."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMServerError, LMTimeoutError
from offline import Asked, field_lm

from rlmoptimizer.errors import InvalidSetup, MetricFailed, notes_of
from rlmoptimizer.evaluation import evaluator as evaluation
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.fan_out import FanOut
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.task.dataset import Row, build_dataset
from rlmoptimizer.task.program import apply_prompts, step_names

TIMEOUT = 100  # seconds; only a broken test waits so long


def rows_of(*examples: Mapping[str, Any], count: int | None = None) -> tuple[Row, ...]:
    fields = list(examples) or [{"question": f"q{n}", "answer": f"q{n}"} for n in range(count or 3)]
    return build_dataset([dspy.Example(**each).with_inputs("question") for each in fields]).train


def echo(asked: Asked) -> dict[str, object]:
    """Every output field is the last input."""
    last = list(asked.inputs.values())[-1]
    return dict.fromkeys(asked.outputs, last)


def same_answer(example: Any, prediction: Any, trace: Any = None) -> bool:
    return example.answer == prediction.answer


def always(score: Any) -> Callable[..., Any]:
    return lambda example, prediction: score


class Scripted(dspy.Module):
    """A program without an LM."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, question: Any) -> Any:
        return self.function(question)


def evaluate(
    function: Callable[[Any], Any], metric: Any = None, rows: tuple[Row, ...] | None = None, **options: Any
) -> list[ExampleResult]:
    on_results = options.pop("on_results", None)
    with Evaluator(metric or always(1), None, options.pop("num_threads", 2), **options) as evaluator:
        return evaluator.score(Scripted(function), rows or rows_of(), on_results=on_results)


class TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict("question -> keywords")
        self.answer = dspy.ChainOfThought("keywords -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(keywords=self.extract(question=question).keywords)


# What a result holds.


@pytest.mark.smoke
def test_a_result_holds_the_example_the_prediction_the_score_and_every_step() -> None:
    rows = rows_of({"question": "q1", "answer": "q1", "id": "a7"}, {"question": "q2", "answer": "other"})
    with Evaluator(same_answer, field_lm(echo), 4) as evaluator:
        good, bad = evaluator.score(TwoSteps(), rows)
    assert good.as_row() == {
        "example_id": "1",
        "source_example_id": "a7",
        "inputs": {"question": "q1"},
        "expected": {"answer": "q1", "id": "a7"},
        "predicted": {"reasoning": "q1", "answer": "q1"},
        "score": 1.0,
        "passed": True,
        "error": None,
        "feedback": None,
        "steps": [
            {
                "step_index": 0,
                "step_name": "extract",
                "signature_name": "StringSignature",
                "inputs": {"question": "q1"},
                "outputs": {"keywords": "q1"},
            },
            {
                "step_index": 1,
                "step_name": "answer.predict",
                "signature_name": "StringSignature",
                "inputs": {"keywords": "q1"},
                "outputs": {"reasoning": "q1", "answer": "q1"},
            },
        ],
    }
    assert good.seconds > 0
    assert (bad.example_id, bad.score, bad.passed, bad.error, bad.error_kind) == ("2", 0.0, False, None, None)


def test_results_come_in_the_order_of_the_rows_however_they_finish() -> None:
    last_done = threading.Event()

    def function(question: str) -> dspy.Prediction:
        if question == "q2":
            last_done.set()
        assert last_done.wait(TIMEOUT)
        return dspy.Prediction(answer=question)

    with Evaluator(same_answer, None, 3) as evaluator:
        order: list[str] = []
        results = evaluator.score(
            Scripted(function), rows_of(count=3), on_results=lambda some: order.extend(one.example_id for one in some)
        )
    assert [result.example_id for result in results] == ["1", "2", "3"]
    assert sorted(order) == ["1", "2", "3"]


class Loop(dspy.Module):
    """Calls predictors in a loop, out of a list, a dict, under a second name, and one that is a frozen step."""

    def __init__(self) -> None:
        super().__init__()
        shared = dspy.Signature("text -> text2", "shared")
        self.once = dspy.Predict(shared)
        self.twin = dspy.Predict(shared)
        self.stages = [dspy.Predict(shared), dspy.ChainOfThought(shared)]
        self.by_kind = {"a": dspy.Predict(shared)}
        self.alias = self.once
        self.frozen = dspy.Predict(shared)
        self.frozen_module = dspy.ChainOfThought(shared)
        self.frozen_module._compiled = True

    def forward(self, question: str) -> dspy.Prediction:
        for predictor in [self.once, self.once, self.alias, self.twin, *self.stages, self.by_kind["a"]]:
            question = predictor(text=question).text2
        self.frozen_module(text=question)
        return dspy.Prediction(answer=question)


def test_steps_are_named_by_what_update_prompt_takes() -> None:
    program = Loop()
    with Evaluator(always(1), field_lm(echo)) as evaluator:
        (result,) = evaluator.score(program, rows_of(count=1))
    names = [step.step_name for step in result.steps]
    assert names == [
        "once",
        "once",
        "once",
        "twin",
        "stages[0]",
        "stages[1].predict",
        "by_kind['a']",
        "frozen_module.predict",
    ]
    assert [step.step_index for step in result.steps] == list(range(8))
    assert set(names) - {"frozen_module.predict"} <= set(step_names(program))


def test_the_steps_of_an_agent_are_named_too() -> None:
    def act(asked: Asked) -> dict[str, object]:
        fields = {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": "{}"}
        return {name: fields.get(name, "x") for name in asked.outputs}

    def search(query: str) -> str:
        return query

    with Evaluator(always(1), field_lm(act)) as evaluator:
        (result,) = evaluator.score(dspy.ReAct("question -> answer", tools=[search]), rows_of(count=1))
    assert [step.step_name for step in result.steps] == ["react", "extract.predict"]
    assert result.steps[0].outputs == {"next_thought": "done", "next_tool_name": "finish", "next_tool_args": {}}


class Best(dspy.Module):
    """Runs copies that DSPy makes of two modules, of which one is a copy of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.left = dspy.ChainOfThought("question -> answer")
        self.right = self.left.deepcopy()
        reward = lambda args, prediction: 1.0  # noqa: E731
        self.best_left = dspy.BestOfN(self.left, N=2, reward_fn=reward, threshold=1.0)
        self.best_right = dspy.BestOfN(self.right, N=2, reward_fn=reward, threshold=1.0)

    def forward(self, question: str) -> dspy.Prediction:
        self.best_left(question=question)
        return self.best_right(question=question)


def test_copies_that_are_made_on_the_way_keep_the_names_of_their_steps() -> None:
    with Evaluator(always(1), field_lm(echo)) as evaluator:
        (result,) = evaluator.score(Best(), rows_of(count=1))
    assert [step.step_name for step in result.steps] == ["left.predict", "right.predict"]


@pytest.mark.parametrize(
    ("answer", "predicted"),
    [
        (dspy.Prediction(answer=dspy.Prediction(deep=[1, {2}])), {"answer": {"deep": [1, [2]]}}),
        ({"answer": "x"}, {"answer": "x"}),
        ("text", "text"),
        (None, None),
        (["a", 1.5], ["a", 1.5]),
        (dspy.Prediction(answer="\ud800 alone"), {"answer": "\ud800 alone"}),
        (dspy.Prediction(answer=10**6000), {"answer": 10**6000}),
        (dspy.Prediction(answer=b"\xff\x00"), {"answer": b"\xff\x00"}),
    ],
    ids=["nested", "dict", "str", "none", "list", "surrogate", "huge", "bytes"],
)
def test_a_program_may_predict_anything(answer: Any, predicted: Any) -> None:
    results = evaluate(lambda question: answer)
    assert [result.predicted for result in results] == [predicted] * 3
    assert all(result.passed for result in results)


def test_nan_in_a_prediction_survives() -> None:
    (result,) = evaluate(lambda question: dspy.Prediction(answer=math.nan), rows=rows_of(count=1))
    assert math.isnan(result.predicted["answer"])


def test_an_example_passes_at_a_full_score_only() -> None:
    scores = {"q0": 1.0, "q1": 1 - 1e-12, "q2": 0.999}
    results = evaluate(lambda q: q, lambda example, prediction: scores[example.question])
    assert [result.passed for result in results] == [True, True, False]


def test_no_rows_give_no_results() -> None:
    with Evaluator(always(1), None) as evaluator:
        assert evaluator.score(Scripted(str), []) == []


# Feedback and scores.


@pytest.mark.parametrize(
    "answer", [dspy.Prediction(score=0.5, feedback="half"), {"score": 0.5, "feedback": "half"}], ids=["record", "dict"]
)
def test_feedback_reaches_the_result(answer: Any) -> None:
    (result,) = evaluate(str, always(answer), rows_of(count=1))
    assert (result.score, result.feedback, result.passed) == (0.5, "half", False)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (math.nan, "the metric returned nan"),
        (None, "the metric returned None"),
        (7, "the metric returned 7.0"),
        ("good", "'good' of type str"),
    ],
)
def test_what_is_no_score_makes_an_error_row_that_keeps_the_prediction(answer: Any, error: str) -> None:
    results = evaluate(str, lambda example, prediction: 1.0 if example.question == "q2" else answer)
    assert results[2].passed
    for result in results[:2]:
        assert result.error is not None
        assert result.error.startswith("InvalidScore: ")
        assert error in result.error
        assert (result.error_kind, result.score, result.passed) == ("score", 0.0, False)
        assert result.predicted == result.inputs["question"]


async def async_metric(example: Any, prediction: Any, trace: Any = None) -> float:
    await asyncio.sleep(0)
    return 0.75


def test_an_async_metric_is_awaited() -> None:
    (result,) = evaluate(str, async_metric, rows_of(count=1))
    assert result.score == 0.75


def test_the_steps_reach_a_metric_that_asks_for_them_and_its_own_calls_are_no_steps() -> None:
    judge = dspy.Predict("answer -> verdict")

    def metric(example: Any, prediction: Any, *, program_trace: Any) -> float:
        judge(answer=prediction.answer)
        return len(program_trace) / 4

    with Evaluator(metric, field_lm(echo)) as evaluator:
        (result,) = evaluator.score(TwoSteps(), rows_of(count=1))
    assert result.score == 0.5
    assert len(result.steps) == 2


# Errors.


def fails_on(*questions: str) -> Callable[[Any], Any]:
    def function(question: str) -> Any:
        if question in questions:
            raise KeyError(question)
        return dspy.Prediction(answer=question)

    return function


def test_a_program_that_raises_makes_an_error_row_of_that_example_only() -> None:
    first, second, third = evaluate(fails_on("q1"), same_answer)
    assert (first.passed, third.passed) == (True, True)
    assert second.error == "KeyError: 'q1'"
    assert (second.error_kind, second.predicted, second.score, second.passed) == ("program", None, 0.0, False)


def test_an_error_row_keeps_the_steps_that_were_done() -> None:
    def answer(asked: Asked) -> dict[str, object]:
        return {"keywords": "k"} if "keywords" in asked.outputs else {}

    with Evaluator(always(1), field_lm(answer)) as evaluator:
        (result,) = evaluator.score(TwoSteps(), rows_of(count=1))
    assert result.error is not None
    assert result.error.startswith("AdapterParseError: ")
    assert [(step.step_name, step.error is None) for step in result.steps] == [
        ("extract", True),
        ("answer.predict", False),
    ]


def test_a_program_that_always_raises_is_no_failure_of_the_metric() -> None:
    results = evaluate(fails_on("q0", "q1", "q2"), same_answer)
    assert [result.error_kind for result in results] == ["program"] * 3


def test_no_lm_at_all_is_an_error_in_every_row() -> None:
    with Evaluator(same_answer, None) as evaluator:
        results = evaluator.score(TwoSteps(), rows_of())
    assert all("No LM is loaded" in (result.error or "") for result in results)
    assert {result.error_kind for result in results} == {"program"}


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no message for you")


class _Group(Exception):
    """What a task group raises, as far as this package looks at it (Python 3.10 has none)."""

    exceptions = (_Unreadable(),)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SystemExit(3), "SystemExit: 3"),
        (GeneratorExit("over"), "GeneratorExit: over"),
        (asyncio.CancelledError(), "CancelledError"),
        (StopIteration("x"), "StopIteration: x"),
        (RecursionError("deep"), "RecursionError: deep"),
        (ValueError("\ud800"), "ValueError: \ud800"),
        (_Unreadable(), "_Unreadable: (its message cannot be read: RuntimeError)"),
        (_Group(), "_Unreadable: (its message cannot be read: RuntimeError)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_a_program_raises_ends_as_a_row(error: BaseException, text: str) -> None:
    def function(question: str) -> Any:
        raise error

    (result,) = evaluate(function, rows=rows_of(count=1))
    assert result.error == text


class _Fatal(BaseException):
    """What nobody catches."""


def _raises(error: BaseException) -> Callable[[Any], Any]:
    def function(question: Any) -> Any:
        if question == "q1":
            raise error
        return dspy.Prediction(answer=question)

    return function


class _Async(dspy.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    async def aforward(self, question: Any) -> Any:
        await asyncio.sleep(0)
        return self.function(question)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, _Fatal], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("at", ["program", "async program", "metric", "async metric"])
def test_what_is_meant_to_end_the_process_ends_the_run_and_says_at_which_example(
    kind: type[BaseException], at: str
) -> None:
    error = kind("stop")  # no copy of one: where Dask is loaded, copies of an error share its notes
    raises = _raises(error)

    async def asynchronous(example: Any, prediction: Any) -> float:
        raises(example.question)
        return 1.0

    metrics: dict[str, Any] = {"metric": lambda example, _: raises(example.question), "async metric": asynchronous}
    program = _Async(raises) if at == "async program" else Scripted(raises if at == "program" else str)
    with Evaluator(metrics.get(at, same_answer), None, 2) as evaluator, pytest.raises(kind) as raised:
        evaluator.score(program, rows_of(count=4))
    assert raised.value is error
    assert notes_of(error) == ["Raised while example 2 of trainset was evaluated"]


def failing_lm(error: Exception) -> dspy.LM:
    def respond(asked: Asked) -> Mapping[str, object]:
        raise error

    return field_lm(respond)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (lm15.RateLimitError("slow down"), "rate_limit"),
        (lm15.AuthError("no key"), "auth"),
        (lm15.ServerError("503"), "server"),
        (lm15.TransportError("connection reset"), "transport"),
        (lm15.ContextLengthError("too long"), "context_window_exceeded"),
        (ZeroDivisionError("engine bug"), "unexpected"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_failure_of_the_lm_is_told_from_one_of_the_program(error: Exception, kind: str) -> None:
    results: list[ExampleResult] = []
    with Evaluator(same_answer, failing_lm(error)) as evaluator, contextlib.suppress(LMsFailed):
        evaluator.score(TwoSteps(), rows_of(count=1), on_results=results.extend)
    assert [result.error_kind for result in results] == [kind]


@pytest.mark.parametrize(("error", "kind"), [(LMTimeoutError("60 s"), "timeout"), (LMServerError("500"), "server")])
def test_an_lm_failure_is_seen_through_what_the_program_made_of_it(error: Exception, kind: str) -> None:
    def function(question: str) -> Any:
        try:
            raise error
        except LMTimeoutError as timeout:
            raise RuntimeError("could not answer") from timeout

    results: list[ExampleResult] = []
    with pytest.raises(LMsFailed):
        evaluate(function, rows=rows_of(count=1), on_results=results.extend)
    assert [result.error_kind for result in results] == [kind]


def fussy(*questions: str) -> Callable[..., Any]:
    def metric(example: Any, prediction: Any) -> float:
        if example.question in questions:
            raise LookupError(f"no verdict on {example.question}")
        return 1.0

    return metric


def test_a_metric_that_raises_on_some_makes_error_rows() -> None:
    first, second, _ = evaluate(str, fussy("q1"))
    assert first.passed
    assert second.error == "LookupError: no verdict on q1"
    assert (second.error_kind, second.predicted) == ("metric", "q1")


def test_a_metric_that_raises_on_all_stops_with_a_traceback_of_its_own_frames() -> None:
    delivered: list[ExampleResult] = []
    with Evaluator(fussy("q0", "q1", "q2"), None) as evaluator, pytest.raises(MetricFailed) as failed:
        evaluator.score(Scripted(str), rows_of(), on_results=delivered.extend)
    assert failed.value.failed == 3
    assert "LookupError: no verdict on q" in failed.value.traceback_text
    assert "in metric" in failed.value.traceback_text
    assert "row_runner.py" not in failed.value.traceback_text
    assert len(delivered) == 3


@pytest.mark.parametrize("answer", [None, 85, "good"])
def test_a_metric_that_never_returns_a_score_stops_with_what_it_returned(answer: Any) -> None:
    with pytest.raises(MetricFailed, match=f"gave no score on all 3 .*\nInvalidScore: the metric returned {answer!r}"):
        evaluate(Scripted(str), lambda example, prediction: answer)


def test_an_async_metrics_traceback_has_its_own_frames_only() -> None:
    async def metric(example: Any, prediction: Any) -> float:
        raise LookupError("async")

    with Evaluator(metric, None) as evaluator, pytest.raises(MetricFailed) as failed:
        evaluator.score(Scripted(str), rows_of())
    lines = [line for line in failed.value.traceback_text.splitlines() if line.startswith("  File")]
    assert len(lines) == 1
    assert "test_evaluator.py" in lines[0]


def test_a_metric_that_has_worked_before_may_fail_on_all_of_a_later_selection() -> None:
    rows = rows_of()
    with Evaluator(fussy("q1"), None) as evaluator:
        evaluator.score(Scripted(str), rows)
        (result,) = evaluator.score(Scripted(str), rows[1:2])
    assert result.error == "LookupError: no verdict on q1"


def test_a_metric_is_judged_by_the_examples_that_reach_it() -> None:
    with pytest.raises(MetricFailed, match="the only example"):
        evaluate(fails_on("q0", "q1"), fussy("q2"))


# Async programs.


class OnlyAsync(dspy.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function
        self.predict = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        await self.function(question)
        return await self.predict.acall(question=question)


class AsyncForward(OnlyAsync):
    async def forward(self, question: str) -> dspy.Prediction:
        return await self.aforward(question)


@pytest.mark.parametrize("kind", [OnlyAsync, AsyncForward])
def test_an_async_program_runs_on_one_loop_as_parallel_as_any_other(kind: type[OnlyAsync]) -> None:
    loops: set[Any] = set()
    together = asyncio.Semaphore(0)  # bound to the first loop that waits for it
    inside = 0

    async def meet(question: str) -> None:
        nonlocal inside
        loops.add(asyncio.get_running_loop())
        inside += 1
        if inside == 3:
            for _ in range(3):
                together.release()
        await asyncio.wait_for(together.acquire(), TIMEOUT)

    with Evaluator(same_answer, field_lm(echo), 3) as evaluator:
        results = evaluator.score(kind(meet), rows_of(count=3))
    assert [result.passed for result in results] == [True] * 3
    assert [[step.step_name for step in result.steps] for result in results] == [["predict"]] * 3
    assert len(loops) == 1


def test_an_async_program_that_raises_or_exits_leaves_the_loop_running() -> None:
    async def function(question: str) -> None:
        if question == "q0":
            raise SystemExit(1)
        if question == "q1":
            raise ValueError(question)

    with Evaluator(same_answer, field_lm(echo), 1) as evaluator:
        results = evaluator.score(OnlyAsync(function), rows_of(count=3))
    assert [result.error for result in results] == ["SystemExit: 1", "ValueError: q1", None]


def test_scoring_works_inside_a_running_event_loop() -> None:
    async def main() -> list[ExampleResult]:
        with Evaluator(async_metric, field_lm(echo)) as evaluator:
            return evaluator.score(OnlyAsync(lambda question: asyncio.sleep(0)), rows_of())

    assert [result.score for result in asyncio.run(main())] == [0.75] * 3


# What may not mix.


class Counter(dspy.Module):
    """A program that keeps state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.predict = dspy.Predict("question -> answer")
        self.seen: list[str] = []
        self.meet: Any = None

    def forward(self, question: str) -> dspy.Prediction:
        self.seen.append(question)
        if self.meet is not None:
            self.meet.wait(TIMEOUT)
        return dspy.Prediction(answer=",".join(self.seen))


def test_the_state_of_a_program_neither_leaks_into_the_student_nor_into_the_next_run() -> None:
    student = Counter()
    with Evaluator(always(1), None, 1) as evaluator:
        runs = [evaluator.score(student, rows_of(count=2)) for _ in range(2)]
    assert [[result.predicted["answer"] for result in run] for run in runs] == [["q0", "q0,q1"]] * 2
    assert student.seen == []


def test_evaluations_at_the_same_time_never_mix() -> None:
    student = Counter()
    student.meet = threading.Barrier(2)  # cannot be copied, so both clones meet at the same one
    with Evaluator(always(1), None, 2) as evaluator, ThreadPoolExecutor(2) as callers:
        first = callers.submit(evaluator.score, student, rows_of({"question": "left"}))
        second = callers.submit(evaluator.score, student, rows_of({"question": "right"}))
        answers = [run.result(TIMEOUT)[0].predicted["answer"] for run in (first, second)]
    assert answers == ["left", "right"]


def test_candidates_at_the_same_time_use_their_own_prompts() -> None:
    student = dspy.Predict("question -> answer")
    other = student.deepcopy()
    apply_prompts(student, {"self": "one"})
    apply_prompts(other, {"self": "two"})
    lm = field_lm(lambda asked: {"answer": asked.instructions})
    with Evaluator(always(1), lm, 4) as evaluator, ThreadPoolExecutor(2) as callers:
        runs = list(callers.map(lambda program: evaluator.score(program, rows_of(count=20)), [student, other]))
    assert [{result.predicted["answer"] for result in run} for run in runs] == [{"one"}, {"two"}]


def test_a_program_that_changes_its_inputs_changes_neither_the_data_nor_what_is_shown() -> None:
    rows = rows_of({"question": ["a"], "answer": 1})

    def function(question: list[str]) -> dspy.Prediction:
        question.append("b")
        return dspy.Prediction(answer=len(question))

    with Evaluator(always(1), None) as evaluator:
        results = [evaluator.score(Scripted(function), rows)[0] for _ in range(2)]
    assert [result.inputs for result in results] == [{"question": ["a"]}] * 2
    assert [result.predicted for result in results] == [{"answer": 2}] * 2
    assert rows[0].example.question == ["a"]


# Settings and context.


def test_settings_and_context_variables_of_the_caller_reach_the_program_and_the_metric() -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    seen: set[Any] = set()

    def function(question: str) -> str:
        seen.add(("program", variable.get(), dspy.settings.max_errors))
        return question

    def metric(example: Any, prediction: Any) -> float:
        seen.add(("metric", variable.get(), dspy.settings.max_errors))
        return 1.0

    variable.set("set")
    with dspy.context(max_errors=77):
        evaluate(function, metric)
    assert seen == {("program", "set", 77), ("metric", "set", 77)}


def test_a_context_given_to_the_evaluator_shields_from_the_callers() -> None:
    seen: set[int] = set()

    def function(question: str) -> str:
        seen.add(dspy.settings.max_errors)
        return question

    with dspy.context(max_errors=11):
        quiet = contextvars.copy_context()
    with dspy.context(max_errors=99):
        evaluate(function, context=quiet)
    assert seen == {11}


def test_the_program_runs_under_the_evaluation_lm_and_the_metric_under_the_callers() -> None:
    own, given, callers = (field_lm(lambda asked, n=name: {"answer": n}, name) for name in ("own", "given", "callers"))
    judge = dspy.Predict("question -> answer")
    verdicts: list[str] = []

    class Mixed(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.usual = dspy.Predict("question -> answer")
            self.special = dspy.Predict("question -> answer")
            self.special.lm = own

        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(
                usual=self.usual(question=question).answer, special=self.special(question=question).answer
            )

    def metric(example: Any, prediction: Any) -> float:
        verdicts.append(judge(question="?").answer)
        return 1.0

    with Evaluator(metric, given) as evaluator:
        (result,) = evaluator.score(Mixed(), rows_of(count=1))
        with dspy.context(lm=callers):
            evaluator.score(Mixed(), rows_of(count=1))
    assert result.predicted == {"usual": "given", "special": "own"}
    assert verdicts == ["given", "callers"]


# Stopping.


class Gate:
    """A program's function that lets nothing through until it is opened."""

    def __init__(self, parties: int) -> None:
        self.inside = threading.Semaphore(0)
        self.opened = threading.Event()
        self.parties = parties
        self.calls = 0

    def __deepcopy__(self, memo: Any) -> Gate:
        return self

    def __call__(self, question: str) -> str:
        self.calls += 1
        self.inside.release()
        assert self.opened.wait(TIMEOUT)
        return question

    def wait_full(self) -> None:
        for _ in range(self.parties):
            assert self.inside.acquire(timeout=TIMEOUT)


@pytest.fixture(params=["own pool", "given executor"])
def executor_option(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    if request.param == "own pool":
        yield {}
        return
    with ThreadPoolExecutor(9) as pool:
        yield {"executor": pool}


def test_a_cancelled_run_finishes_what_is_under_way_and_starts_nothing_more(executor_option: dict[str, Any]) -> None:
    gate, cancelled = Gate(3), threading.Event()
    delivered: list[str] = []
    with Evaluator(always(1), None, 3, **executor_option) as evaluator, ThreadPoolExecutor(1) as caller:
        run = caller.submit(
            evaluator.score,
            Scripted(gate),
            rows_of(count=50),
            on_results=lambda some: delivered.extend(one.example_id for one in some),
            cancelled=cancelled,
        )
        gate.wait_full()
        cancelled.set()
        gate.opened.set()
        results = run.result(TIMEOUT)
    assert [result.example_id for result in results] == ["1", "2", "3"]
    assert sorted(delivered) == ["1", "2", "3"]
    assert gate.calls == 3


def test_a_run_cancelled_before_it_begins_runs_nothing(executor_option: dict[str, Any]) -> None:
    cancelled = threading.Event()
    cancelled.set()
    with Evaluator(always(1), None, **executor_option) as evaluator:
        assert evaluator.score(Scripted(str), rows_of(), cancelled=cancelled) == []


def test_no_more_than_num_threads_examples_run_at_once(executor_option: dict[str, Any]) -> None:
    lock = threading.Lock()
    inside = most = 0

    def function(question: str) -> str:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        pause.wait(0.001)
        with lock:
            inside -= 1
        return question

    pause = threading.Event()
    evaluate(function, rows=rows_of(count=60), num_threads=3, **executor_option)
    assert 1 <= most <= 3


def test_an_observer_that_raises_ends_the_run(executor_option: dict[str, Any]) -> None:
    gate = Gate(0)
    gate.opened.set()

    def refuse(result: ExampleResult) -> None:
        raise OSError("disk full")

    with Evaluator(always(1), None, 1, **executor_option) as evaluator:
        with pytest.raises(OSError, match="disk full"):
            evaluator.score(Scripted(gate), rows_of(count=5000), on_results=refuse)
        assert gate.calls < 5000
        assert len(evaluator.score(Scripted(str), rows_of())) == 3


def test_results_are_delivered_each_once_as_they_come_never_two_calls_at_a_time() -> None:
    at_once = threading.Semaphore(1)
    batches: list[list[str]] = []

    def on_results(results: Any) -> None:
        assert at_once.acquire(blocking=False)
        batches.append([result.example_id for result in results])
        at_once.release()

    with Evaluator(always(1), None) as evaluator:
        evaluator.score(Scripted(str), rows_of(count=40), on_results=on_results)
    assert sorted((one for batch in batches for one in batch), key=int) == [str(n) for n in range(1, 41)]


def test_results_are_delivered_in_the_order_in_which_examples_finish() -> None:
    batches: list[list[str]] = []
    with Evaluator(always(1), None, num_threads=1) as evaluator:
        evaluator.score(
            Scripted(str),
            rows_of(count=40),
            on_results=lambda results: batches.append([result.example_id for result in results]),
        )
    assert [one for batch in batches for one in batch] == [str(n) for n in range(1, 41)]


def test_what_finishes_during_a_delivery_is_delivered_together_in_the_order_in_which_it_finished() -> None:
    delivering, last_begun = threading.Event(), threading.Event()
    batches: list[list[int]] = []

    def answer(question: str) -> str:
        if question == "q1":
            assert delivering.wait(TIMEOUT)  # of q0
        if question == "q9":
            last_begun.set()
        return question

    def on_results(results: Any) -> None:
        batches.append([int(result.example_id) for result in results])
        delivering.set()
        assert last_begun.wait(TIMEOUT)

    with Evaluator(always(1), None, num_threads=1) as evaluator:
        evaluator.score(Scripted(answer), rows_of(count=10), on_results=on_results)
    assert batches == [sorted(batch) for batch in batches]
    assert len(batches) <= 3  # the first, those that waited for it, and the last


def test_closing_without_waiting_gives_all_runs_together_the_time_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    given: list[float] = []
    delivering, go_on = threading.Semaphore(0), threading.Event()
    abandon = FanOut.abandon

    def stuck(results: Any) -> None:
        delivering.release()
        assert go_on.wait(TIMEOUT)

    def abandoned(self: FanOut[Any, Any], seconds: float = 0.0) -> None:
        nonlocal now
        given.append(seconds)
        now += seconds  # it takes all that it is given
        abandon(self, 0.0)

    evaluator = Evaluator(always(1.0), None, 3)
    score = partial(evaluator.score, Scripted(str), rows_of(count=1), on_results=stuck)
    threads = [threading.Thread(target=score) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert delivering.acquire(timeout=TIMEOUT)
    monkeypatch.setattr(FanOut, "abandon", abandoned)
    monkeypatch.setattr(evaluation, "time", SimpleNamespace(monotonic=lambda: now))
    evaluator.close(wait=False)
    assert [second > 0 for second in given] == [True, False, False]
    go_on.set()
    for thread in threads:
        thread.join(TIMEOUT)
        assert not thread.is_alive()


def test_a_closed_evaluator_scores_nothing_more() -> None:
    evaluator = Evaluator(always(1), None)
    evaluator.close()
    evaluator.close()
    with pytest.raises(RuntimeError, match="closed"):
        evaluator.score(Scripted(str), rows_of())


@pytest.mark.parametrize("num_threads", [0, -1, True, 2.0, "8", None])
def test_a_number_of_threads_that_makes_no_sense_is_refused(num_threads: Any) -> None:
    with pytest.raises(InvalidSetup, match="num_threads"):
        Evaluator(always(1), None, num_threads)


# Executors.


class Inline(Executor):
    """Runs everything at once, on the thread that submits."""

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:  # noqa: BLE001
            future.set_exception(error)
        return future


def test_an_executor_that_runs_everything_within_submit_works_for_any_number_of_rows() -> None:
    with Evaluator(same_answer, None, executor=Inline()) as evaluator:
        results = evaluator.score(Scripted(lambda q: dspy.Prediction(answer=q)), rows_of(count=3000))
    assert sum(result.passed for result in results) == 3000


def test_an_executor_that_takes_nothing_ends_the_run_with_its_own_error() -> None:
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with Evaluator(same_answer, None, executor=pool) as evaluator, pytest.raises(InvalidSetup, match="shutdown"):
        evaluator.score(Scripted(str), rows_of())


class PlainEngine:
    """An engine that another process can have."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        text = "[[ ## answer ## ]]\nfrom there\n\n[[ ## completed ## ]]"
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0, total_tokens=0),
        )


def test_rows_can_run_in_another_process() -> None:
    program = dspy.Predict("question -> answer")
    apply_prompts(program, {"self": "a prompt that has to travel"})
    bonus = 0.5
    lm = dspy.LM("offline/there", engine=PlainEngine(), cache=False)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        Evaluator(lambda example, prediction: bonus, lm, executor=pool) as evaluator,
        dspy.context(adapter=dspy.ChatAdapter()),
    ):
        results = evaluator.score(program, rows_of(count=5))
    assert [result.example_id for result in results] == ["1", "2", "3", "4", "5"]
    assert {(result.predicted["answer"], result.score) for result in results} == {("from there", 0.5)}
    assert results[0].steps[0].step_name == "self"
