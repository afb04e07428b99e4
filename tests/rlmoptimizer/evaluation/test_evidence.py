"""Evidence: what the agent reads of an example is what happened, whatever program and metric do to it afterwards."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cloudpickle
import dspy
import pytest
from dspy import lm15
from offline import Asked, field_lm, text_lm

from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.evaluation.evaluator import Evaluator, LMsFailed
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.row_runner import RowRunner
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.records import ExampleResult, StepTrace
from rlmoptimizer.task.dataset import Row, build_dataset

TIMEOUT = 100  # seconds; only a broken test waits so long


def rows_of(*questions: Any, **fields: Any) -> tuple[Row, ...]:
    examples = [dspy.Example(question=question, **fields).with_inputs("question") for question in questions or ["q"]]
    return build_dataset(examples).train


def answering(asked: Asked) -> dict[str, object]:
    """Every output is the number of the words that were asked, so that no two calls look alike."""
    return {name: f"{name}{len(asked.inputs)}" for name in asked.outputs}


def full(example: Any, prediction: Any) -> float:
    return 1.0


def score(
    program: dspy.Module, rows: tuple[Row, ...] | None = None, *, metric: Any = full, lm: Any = None, **options: Any
) -> list[ExampleResult]:
    with Evaluator(metric, lm or field_lm(answering), 2, **options) as evaluator:
        return evaluator.score(program, rows or rows_of())


def steps(program: dspy.Module, rows: tuple[Row, ...] | None = None, **options: Any) -> tuple[StepTrace, ...]:
    return score(program, rows, **options)[0].steps


class Program(dspy.Module):
    """Runs a function of itself and the question; its steps are `one` and `two`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.one = dspy.Predict("question, notes: list[str] -> note")
        self.two = dspy.ChainOfThought("note -> answer")
        self.function = function

    def forward(self, question: Any) -> Any:
        return self.function(self, question)


# A step is taken down as it was when it was called and when it returned.


def test_a_list_that_grows_in_a_loop_is_shown_as_it_was_at_each_call() -> None:
    def function(self: Program, question: str) -> Any:
        notes: list[str] = []
        for _ in range(3):
            notes.append(self.one(question=question, notes=notes).note)
        return dspy.Prediction(answer=notes)

    shown = steps(Program(function))
    assert [step.inputs["notes"] for step in shown] == [[], ["note2"], ["note2", "note2"]]


def test_what_the_program_does_to_a_prediction_afterwards_is_not_shown_in_the_step() -> None:
    def function(self: Program, question: str) -> Any:
        prediction = self.two(note=question)
        prediction.answer = prediction.answer.upper()
        prediction["reasoning"] = None
        return prediction

    (result,) = score(Program(function))
    assert result.steps[0].outputs == {"reasoning": "reasoning1", "answer": "answer1"}
    assert result.predicted == {"reasoning": None, "answer": "ANSWER1"}


def test_a_history_is_shown_as_long_as_it_was() -> None:
    class Chat(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.talk = dspy.Predict("question, history: dspy.History -> answer")

        def forward(self, question: str) -> Any:
            history = dspy.History(messages=[])
            for _ in range(3):
                answer = self.talk(question=question, history=history)
                history.messages.append({"question": question, **dict(answer.items())})
            return answer

    shown = steps(Chat())
    assert [len(step.inputs["history"]["messages"]) for step in shown] == [0, 1, 2]


def test_inputs_are_those_of_the_call_also_when_they_change_while_it_is_under_way() -> None:
    class Meets(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow = dspy.Predict("question, notes: list[str] -> answer")

        async def aforward(self, question: str) -> Any:
            notes = ["before"]
            task = asyncio.create_task(self.slow.acall(question=question, notes=notes))
            await asyncio.wait_for(asked.wait(), TIMEOUT)
            notes.append("after")
            go_on.set()
            return await task

    asked, go_on = asyncio.Event(), threading.Event()
    loops: list[Any] = []

    def respond(request: Asked) -> dict[str, object]:
        loops[0].call_soon_threadsafe(asked.set)
        assert go_on.wait(TIMEOUT)
        return answering(request)

    class Slow(dspy.Predict):
        async def aforward(self, **inputs: Any) -> Any:
            loops.append(asyncio.get_running_loop())
            return await asyncio.to_thread(dspy.Predict.__call__, dspy.Predict(self.signature), **inputs)

    program = Meets()
    program.slow = Slow("question, notes: list[str] -> answer")
    shown = [step for step in steps(program, lm=field_lm(respond)) if step.step_name == "slow"]
    assert [step.inputs["notes"] for step in shown] == [["before"]]


@pytest.mark.parametrize(
    "settings", [{"max_trace_size": 1}, {"max_trace_size": 0}, {"trace": []}, {"trace": None}], ids=str
)
def test_what_dspys_own_trace_keeps_makes_no_difference(settings: dict[str, Any]) -> None:
    def function(self: Program, question: str) -> Any:
        with dspy.context(**settings):
            note = self.one(question=question, notes=[]).note
            return self.two(note=note)

    def clears(self: Program, question: str) -> Any:
        prediction = self.two(note=self.one(question=question, notes=[]).note)
        dspy.settings.trace.clear()
        dspy.settings.trace.append("not a step")
        return prediction

    names = ["one", "two.predict"]
    assert [step.step_name for step in steps(Program(function))] == names
    assert [step.step_name for step in steps(Program(clears))] == names
    with dspy.context(**settings):
        plain = Program(lambda self, q: self.two(note=self.one(question=q, notes=[]).note))
        assert [step.step_name for step in steps(plain)] == names


def test_every_try_of_best_of_n_and_refine_is_a_step_in_the_order_in_which_they_returned() -> None:
    for kind in (dspy.BestOfN, dspy.Refine):
        rewards = iter([0.0, 0.5, 1.0] * 2)
        inner = dspy.ChainOfThought("question -> answer")
        program = kind(inner, N=3, reward_fn=lambda args, prediction, r=rewards: next(r), threshold=1.0)
        shown = steps(program, lm=field_lm(refining))
        assert [step.step_name for step in shown if "predict" in step.step_name] == ["module.predict"] * 3
        assert [step.step_index for step in shown] == list(range(len(shown)))


def refining(asked: Asked) -> dict[str, object]:
    return {name: "{}" if name == "advice" else "x" for name in asked.outputs}


def test_predictors_that_are_made_on_the_way_are_steps_too() -> None:
    def function(self: Program, question: str) -> Any:
        prediction = dspy.Predict("question -> answer")(question=question)
        prediction.answer = "changed"
        shallow = copy.copy(self.one)
        shallow.demos = []
        shallow(question=question, notes=["shallow"])
        type(self.one)("question -> answer")(question="typed")
        return prediction

    shown = steps(Program(function))
    assert [(step.step_name, step.outputs) for step in shown] == [
        ("<Predict(question -> answer)>", {"answer": "answer1"}),
        ("one", {"note": "note2"}),
        ("<Predict(question -> answer)>", {"answer": "answer1"}),
    ]


def test_an_example_leaves_nothing_to_the_garbage_collector() -> None:
    runner = RowRunner(
        Program(two_steps), bind_metric(full), field_lm(answering), limit=TimeLimit(None, LoopThread()), context=None
    )
    (row,) = rows_of()
    for _ in range(3):
        runner.run(row)
    gc.collect()
    gc.disable()
    try:
        assert runner.run(row).result.error is None
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_steps_are_seen_in_threads_and_tasks_that_carry_dspys_settings() -> None:
    class Wide(Program):
        async def both(self, question: str) -> Any:
            asynchronous = dspy.asyncify(self.one)
            return await asyncio.gather(asynchronous(question="b", notes=[]), self.one.acall(question="c", notes=[]))

        def forward(self, question: str) -> Any:
            calls = [(self.one, {"question": name, "notes": []}) for name in ("a", "a")]
            dspy.Parallel(num_threads=2, disable_progress_bar=True)(calls)
            dspy.syncify(AsyncOnly(self.both))(question=question)
            with ThreadPoolExecutor(1) as pool:
                carried = contextvars.copy_context()
                pool.submit(carried.run, lambda: self.one(question="d", notes=[])).result(TIMEOUT)
            return self.two(note="n")

    shown = steps(Wide(full))
    assert sorted(step.inputs.get("question", "") for step in shown) == ["", "a", "a", "b", "c", "d"]
    assert shown[-1].step_name == "two.predict"


class AsyncOnly(dspy.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    async def aforward(self, **inputs: Any) -> Any:
        return await self.function(**inputs)


class Lookup(dspy.Predict):
    """A step that knows the answer without an LM."""

    def forward(self, question: str) -> Any:
        return dspy.Prediction(answer=question * 2)


class Loud(dspy.Predict):
    """A step that works on what its LM answered."""

    def forward(self, **inputs: Any) -> Any:
        prediction = super().forward(**inputs)
        prediction.answer += "!"
        return prediction


def test_steps_without_an_lm_and_steps_of_classes_of_ones_own_are_seen_once() -> None:
    class Both(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lookup = Lookup("question -> answer")
            self.loud = Loud("question -> answer")

        def forward(self, question: str) -> Any:
            assert type(self.lookup).__name__ == "Lookup"
            return self.loud(question=self.lookup(question=question).answer)

    shown = steps(Both())
    assert [(step.step_name, step.inputs, step.outputs) for step in shown] == [
        ("lookup", {"question": "q"}, {"answer": "qq"}),
        ("loud", {"question": "qq"}, {"answer": "answer1!"}),
    ]


def test_the_inputs_of_a_step_are_its_fields_with_their_defaults() -> None:
    class Asks(dspy.Signature):
        """Answer."""

        question: str = dspy.InputField()
        style: str = dspy.InputField(default="short")
        answer: str = dspy.OutputField()

    class Direct(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict(Asks)

        def forward(self, question: str) -> Any:
            self.ask(question=question, config={"temperature": 0.5}, demos=[], lm=dspy.settings.lm)
            return self.ask.forward(question=question, signature=Asks.with_instructions("Guess."))

    shown = steps(Direct())
    assert [step.inputs for step in shown] == [{"question": "q", "style": "short"}] * 2
    assert [step.step_name for step in shown] == ["ask", "ask"]


class Registers(dspy.Predict):
    """A step whose class takes no subclass that does not say what it is."""

    def __init_subclass__(cls, *, kind: str, **options: Any) -> None:
        super().__init_subclass__(**options)


def test_a_class_that_takes_no_subclasses_is_still_seen() -> None:
    shown = steps(Registers("question -> answer"))
    assert [(step.step_name, step.outputs) for step in shown] == [("self", {"answer": "answer1"})]


def test_a_program_may_copy_and_pickle_its_steps_while_it_runs() -> None:
    def function(self: Program, question: str) -> Any:
        copied = copy.deepcopy(self.one)
        unpickled = cloudpickle.loads(cloudpickle.dumps(self.one))
        copied(question="copied", notes=[])
        unpickled(question="unpickled", notes=[])
        return dspy.Prediction(own_class=type(unpickled) is dspy.Predict)

    (result,) = score(Program(function))
    assert result.error is None
    assert result.predicted == {"own_class": True}
    assert [step.inputs["question"] for step in result.steps] == ["copied", "unpickled"]


def test_the_students_own_predictors_are_what_they_were() -> None:
    student = Program(lambda self, question: self.two(note=question))
    score(student)
    assert type(student.one) is dspy.Predict
    assert type(student.two.predict) is dspy.Predict


def two_steps(self: Program, question: str) -> Any:
    return self.two(note=self.one(question=question, notes=[]).note)


# Steps that failed.


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_step_that_cannot_be_parsed_is_shown_with_what_the_lm_wrote(goes_on: bool) -> None:
    def function(self: Program, question: str) -> Any:
        try:
            return self.one(question=question, notes=["n"])
        except dspy.AdapterParseError:
            if not goes_on:
                raise
        return dspy.Prediction(answer="none")

    (result,) = score(Program(function), lm=text_lm(lambda _: "Sorry, I cannot."))
    (step,) = result.steps
    assert step.step_name == "one"
    assert step.inputs == {"question": "q", "notes": ["n"]}
    assert step.outputs == {}
    assert (step.error or "").startswith("AdapterParseError: ")
    assert step.completion == "Sorry, I cannot."
    row = result.as_row()["steps"][0]
    assert (row["error"], row["completion"]) == (step.error, step.completion)
    assert (result.error is None) == goes_on


def test_a_step_that_did_not_fail_has_no_keys_of_failure() -> None:
    (result,) = score(Program(two_steps))
    assert {key for step in result.as_row()["steps"] for key in step} == {
        "step_index",
        "step_name",
        "signature_name",
        "inputs",
        "outputs",
    }


def test_a_step_that_fails_of_its_own_is_shown_with_what_its_lm_answered_before() -> None:
    class Strict(dspy.Predict):
        def forward(self, **inputs: Any) -> Any:
            super().forward(**inputs)
            raise ValueError("not good enough")

    (step,) = steps(Strict("question -> answer"))
    assert (step.error, step.outputs) == ("ValueError: not good enough", {})
    assert step.completion is not None
    assert "answer1" in step.completion


def test_a_step_whose_lm_fails_is_shown_with_its_error() -> None:
    def respond(asked: Asked) -> Mapping[str, object]:
        if "note" in asked.outputs:
            return {"note": "n"}
        raise lm15.ContextLengthError("too long")

    (result,) = score(Program(two_steps), lm=field_lm(respond))
    assert [step.step_name for step in result.steps] == ["one", "two.predict"]
    assert (result.steps[1].error or "").startswith("ContextWindowExceededError: ")
    assert result.steps[1].completion is None
    assert result.steps[1].inputs == {"note": "n"}


def test_a_step_that_was_given_up_by_its_program_is_shown_as_that() -> None:
    class Impatient(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.slow = Endless("question -> answer")

        async def aforward(self, question: str) -> Any:
            task = asyncio.ensure_future(self.slow.acall(question=question))
            await self.slow.begun.wait()
            task.cancel()
            await asyncio.wait([task])
            return dspy.Prediction(answer="gave up")

    class Endless(dspy.Predict):
        begun: Any = asyncio.Event()

        async def aforward(self, **inputs: Any) -> Any:
            self.begun.set()
            await asyncio.Event().wait()

    (step,) = steps(Impatient())
    assert (step.inputs, step.outputs, step.error) == ({"question": "q"}, {}, "CancelledError")


# What the metric does.


def test_a_metric_that_works_in_place_changes_neither_the_data_nor_what_is_shown() -> None:
    rows = rows_of(["Q"], answer=["A"], notes={"deep": [1]})

    def function(question: list[str]) -> Any:
        return dspy.Prediction(answer=["A"], kept=question)

    def metric(example: Any, prediction: Any) -> float:
        for record in (example, prediction):
            record.answer[0] = record.answer[0].lower()
            record.added = True
        example.question.append("more")
        example.notes["deep"].clear()
        del prediction["kept"]
        return float(example.answer == prediction.answer)

    before = [copy.deepcopy(row.example.toDict()) for row in rows]
    results = [score(Scripted(function), rows, metric=metric)[0] for _ in range(2)]
    assert [row.example.toDict() for row in rows] == before
    for result in results:
        assert result.error is None
        assert result.inputs == {"question": ["Q"]}
        assert result.expected == {"answer": ["A"], "notes": {"deep": [1]}}
        assert result.predicted == {"answer": ["A"], "kept": ["Q"]}


class Scripted(dspy.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, question: Any) -> Any:
        return self.function(question)


def test_a_metric_cannot_change_what_the_program_keeps_for_its_next_example() -> None:
    kept = dspy.Prediction(answer=["kept"])

    def metric(example: Any, prediction: Any) -> float:
        prediction.answer.append("by the metric")
        return 1.0

    results = score(Scripted(lambda question: kept), rows_of("a", "b"), metric=metric)
    assert [result.predicted for result in results] == [{"answer": ["kept"]}] * 2


def test_the_metrics_prediction_is_one_of_dspys_with_all_that_belongs_to_it() -> None:
    seen: list[Any] = []

    def metric(example: Any, prediction: Any) -> float:
        seen.append((type(prediction), list(prediction.completions.answer), list(prediction.get_lm_usage())))
        return 1.0

    with dspy.context(track_usage=True):
        score(dspy.Predict("question -> answer"), metric=metric)
    assert seen == [(dspy.Prediction, ["answer1"], ["offline/fields"])]


def test_what_cannot_be_copied_is_shared_and_the_rest_is_not() -> None:
    lock = threading.Lock()
    rows = rows_of({"texts": ["a"], "lock": lock}, answer=[lock, ["A"]])

    def function(question: Any) -> Any:
        question["texts"].append("by the program")
        return dspy.Prediction(answer=question, lock=lock)

    def metric(example: Any, prediction: Any) -> float:
        example.question["texts"].append("by the metric")
        example.answer[1].clear()
        prediction.answer["texts"].clear()
        assert example.question["lock"] is example.answer[0] is prediction.lock is lock
        return 1.0

    (result,) = score(Scripted(function), rows, metric=metric)
    assert result.error is None
    assert result.predicted["answer"]["texts"] == ["a", "by the program"]
    assert rows[0].example.question["texts"] == ["a"]
    assert rows[0].example.answer[1] == ["A"]


def test_what_cannot_be_copied_in_an_object_is_shared_and_the_object_is_not() -> None:
    class Document:
        def __init__(self) -> None:
            self.texts = ["a"]
            self.lock = threading.Lock()

    document = Document()
    rows = rows_of(document, answer={document: "A"})

    def function(question: Any) -> Any:
        question.texts.append("by the program")
        return dspy.Prediction(answer=question)

    def metric(example: Any, prediction: Any) -> float:
        example.question.texts.append("by the metric")
        for key in example.answer:
            key.texts.append("by the metric")
        assert example.question.lock is prediction.answer.lock is document.lock
        return 1.0

    (result,) = score(Scripted(function), rows, metric=metric)
    assert result.error is None
    assert document.texts == ["a"]


def test_a_metric_that_wants_the_steps_gets_them_as_they_were_and_to_keep() -> None:
    seen: list[Any] = []

    def function(self: Program, question: str) -> Any:
        notes: list[str] = []
        for _ in range(2):
            prediction = self.one(question=question, notes=notes)
            notes.append("n")
            prediction.note = "changed"
        return self.two(note="end")

    def metric(example: Any, prediction: Any, *, program_trace: Any) -> float:
        for predictor, inputs, outputs in program_trace:
            seen.append((predictor.signature.instructions, inputs.get("notes"), dict(outputs.items())))
            predictor.demos.append("by the metric")
            inputs.clear()
            outputs["note"] = outputs["answer"] = None
        predictor.signature = None
        return 1.0

    results = score(Program(function), rows_of("a", "b"), metric=metric)
    assert [result.error for result in results] == [None, None]
    told = Program(function).one.signature.instructions
    first = [(told, [], {"note": "note2"}), (told, ["n"], {"note": "note2"})]
    assert seen[:2] == first
    assert seen[3:5] == first
    assert results[1].steps[-1].outputs == {"reasoning": "reasoning1", "answer": "answer1"}


# Threads that do not carry DSPy's settings.


class OwnThreads(Program):
    def forward(self, question: str) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(self.two, note=question).result(TIMEOUT)


@pytest.fixture
def configured() -> Iterator[None]:
    """A configured LM, as a person's script has one; set where every thread sees it."""
    from dspy.dsp.utils.settings import main_thread_config

    before = main_thread_config["lm"]
    main_thread_config["lm"] = field_lm(lambda asked: dict.fromkeys(asked.outputs, "configured"))
    try:
        yield
    finally:
        main_thread_config["lm"] = before


def test_steps_in_threads_without_dspys_settings_are_warned_of_once(
    configured: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"), Evaluator(full, field_lm(answering), 2) as evaluator:
        evaluator.score(Program(two_steps), rows_of("a", "b"))
        assert not evaluator.strays
        results = evaluator.score(OwnThreads(full), rows_of("a", "b"))
        evaluator.score(OwnThreads(full), rows_of("c"))
        assert evaluator.strays
    assert [result.predicted["answer"] for result in results] == ["configured"] * 2
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert "DSPy's settings" in warnings[0]


def test_what_such_a_thread_was_answered_is_not_shown_in_an_example_that_is_free(configured: None) -> None:
    def forward(self: Any, question: str) -> Any:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.two, note=question).result(TIMEOUT).answer
        return self.two(note=f"after {answer}")

    def fail(asked: Any) -> dict[str, object]:
        raise dspy.LMTimeoutError("no answer to it")

    results: list[Any] = []
    with Evaluator(full, field_lm(fail), 1) as evaluator, pytest.raises(LMsFailed):
        evaluator.score(Program(forward), rows_of("a", "b"), on_results=results.extend)
    assert [(result.shows_answers, result.steps, result.error) for result in results] == [
        (False, (), "LMTimeoutError")
    ] * 2


def test_a_metric_may_call_the_programs_steps_and_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    def metric(example: Any, prediction: Any, *, program_trace: Any) -> float:
        program_trace[0][0](note="by the metric")
        return 1.0

    with caplog.at_level(logging.WARNING, "rlmoptimizer"), Evaluator(metric, field_lm(answering), 2) as evaluator:
        (result,) = evaluator.score(Program(lambda self, question: self.two(note=question)), rows_of())
        assert not evaluator.strays
    assert result.error is None
    assert len(result.steps) == 1
