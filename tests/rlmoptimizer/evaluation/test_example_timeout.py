"""An example that takes too long is a row with an error, and its place is free again."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from child_process import forked
from desk import desk
from hanging_server import HangingServer, hanging_lm
from offline import Engine, ScriptedRootLM, asked, fields_text

from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.evaluation import time_limit
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.time_limit import TimeLimit
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.dataset import build_dataset

pytestmark = pytest.mark.usefixtures("plain_repl")

SECONDS = 0.5  # where nothing has to keep the limit but what hangs, or what asks no LM
LONG = 5.0  # where LMs that do answer must keep it; with `patience` nobody waits for so long
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
ENGINE = Engine(lambda request: fields_text(toy.respond(asked(request))))
REPLY = "Answer by the topic."  # of the second step
WAITS = ("message 2 ", REPLY)


def rows(count: int = 6) -> Any:
    return build_dataset(toy.trainset(count), None).train


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that is set when the test is over, so that no thread outlives it for long."""
    event = threading.Event()
    yield event
    event.set()


@pytest.fixture(scope="module", autouse=True)
def warm() -> None:
    """The first request of a process takes seconds."""
    with hanging_lm(ENGINE) as (_, lm), Evaluator(toy.metric, lm, 1) as at:
        at.score(toy.Triage(), rows(1))


class Patience:
    """In place of the clock of example_timeout: the time of an example is up once it waits for a server that hangs.

    For one example at a time.
    """

    def __init__(self) -> None:
        self.server: HangingServer | None = None
        self._given_up = 0

    def wait(self, outcomes: Sequence[Future[Any]], seconds: float) -> None:
        assert seconds == LONG
        while not outcomes[0].done():
            if self.server is not None and self.server.hung > self._given_up:
                self._given_up += 1
                return
            time.sleep(0.01)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> Patience:
    patience = Patience()
    monkeypatch.setattr(time_limit, "wait", patience.wait)
    return patience


# hung LM calls


def test_a_hung_call_makes_a_row_with_the_steps_that_ended_and_takes_no_place_away(patience: Patience) -> None:
    hung = WAITS, ("message 3 ",)
    with hanging_lm(ENGINE, *hung) as (patience.server, lm), Evaluator(toy.metric, lm, 1, example_timeout=LONG) as at:
        results = at.score(toy.Triage(), rows())
        assert [(result.error_kind, result.score) for result in results] == [
            (None, 1.0),
            (None, 0.0),
            ("example_timeout", 0.0),
            ("example_timeout", 0.0),
            (None, 1.0),
            (None, 0.0),
        ]
        late = results[2]
        assert late.error == "ExampleTimeout: the program had not returned after 5 s (example_timeout)"
        assert (late.has_verdict, late.passed, late.predicted, late.feedback) == (True, False, None, None)
        assert late.inputs == {"message": "message 2 plainly about praise"}
        assert late.expected["answer"] == "thank you"
        assert [(step.step_name, step.outputs) for step in late.steps] == [("topic", {"topic": "praise"})]
        assert results[3].steps == ()


def test_what_comes_late_is_dropped_and_asks_for_nothing_more(
    patience: Patience, wait_until: Callable[..., None]
) -> None:
    delivered: list[ExampleResult] = []
    with (
        hanging_lm(ENGINE, ("message 2 ", "topic")) as (server, lm),
        Evaluator(toy.metric, lm, 1, example_timeout=LONG) as at,
    ):
        patience.server = server
        at.score(toy.Triage(), rows(3), on_results=delivered.extend)
        assert at._limit.left == 1
        server.release()
        wait_until(lambda: at._limit.left == 0, "the abandoned thread ends")
        assert len(delivered) == 3
        assert [result.steps for result in delivered if result.error_kind == "example_timeout"] == [()]
        asked_for_reply = [call for call in server.calls if REPLY in str(call.body)]
        assert len(asked_for_reply) == 2  # the late example was stopped before its second step


def test_a_late_call_is_counted_as_long_as_the_compile_lasts(patience: Patience) -> None:
    with hanging_lm(ENGINE, WAITS) as (server, lm):
        patience.server = server

        def releasing(_: Any) -> str:
            server.release()
            for thread in threading.enumerate():
                if thread.name == "rlmoptimizer-example":  # it was left behind
                    thread.join(60)
            return SUBMIT

        options: dict[str, Any] = {"eval_lm": lm, "example_timeout": LONG, "num_threads": 1}
        result, _ = toy.compiled([releasing], val=0, trainset=toy.trainset(3), **options)
        assert [log["error_count"] for log in result.trial_logs] == [1]
        assert result.usage["eval"]["calls"] == 6


def test_a_row_that_ran_out_of_time_is_paid_and_shown_to_the_agent(tmp_path: Path, patience: Patience) -> None:
    with hanging_lm(ENGINE) as (server, lm), desk(tmp_path, val=None, lm=lm, threads=1, example_timeout=LONG) as at:
        patience.server, server.hanging = server, (WAITS,)
        answer = at.evaluate(ids="1-3")
        assert (answer["score"], answer["evaluated_count"], answer["remaining_budget"]) == (33.33, 3, 97)
        (row,) = [row for row in answer["examples"] if row["example_id"] == "3"]
        assert "ExampleTimeout" in row["error"]
        assert row["error_kind"] == "example_timeout"
        assert [step["step_name"] for step in row["steps"]] == ["topic"]
        assert at.evaluate(ids="1-3")["run_id"] != answer["run_id"]  # it has a verdict: nothing is left to be done
        state = at.ledger.state()
        assert (state.spent, state.reserved) == (6, 0)


def test_of_a_run_on_val_only_totals_tell_of_it(tmp_path: Path, patience: Patience) -> None:
    with hanging_lm(ENGINE) as (server, lm), desk(tmp_path, lm=lm, threads=1, example_timeout=LONG) as at:
        patience.server, server.hanging = server, (("message 2 ",),)
        answer = at.evaluate("val")
        assert (answer["score"], answer["evaluated_count"], answer["examples"]) == (25.0, 4, [])
        assert "1 with an error" in answer["summary_line"]
        assert "Timeout" not in str(answer)
        assert at.ledger.spent == 4


def test_a_baseline_of_hung_examples_ends_and_warns(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"), hanging_lm(ENGINE, ("message",)) as (_, lm):
        result, _ = toy.compiled(
            [SUBMIT], val=2, eval_lm=lm, example_timeout=SECONDS, trainset=toy.trainset(3), run_storage_dir=tmp_path
        )
        assert [(log["split"], log["score"], log["error_count"]) for log in result.trial_logs] == [
            ("train", 0.0, 3),
            ("val", 0.0, 2),
        ]
    assert "Not one of the 3 examples of train could be scored" in caplog.text
    assert "Examples that did not keep example_timeout and have not ended: 5." in caplog.text
    assert toy.SECRET not in caplog.text
    with StoreReader.open_in(tmp_path) as store:
        assert {one.error_kind for one in store.examples("r1")} == {"example_timeout"}


COMPILE = "import sys, test_example_timeout; test_example_timeout.compile_and_say_so(*sys.argv[1:])"


class AsyncTriage(dspy.Module):
    """The same program, called in a thread of the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self.triage = toy.Triage()

    async def aforward(self, message: str) -> dspy.Prediction:
        return await asyncio.to_thread(self.triage, message=message)


def compile_and_say_so(url: str, student: str) -> None:
    """In a process of its own: it must end although an LM never answers."""
    lm = dspy.LM("openai/eval", api_base=url, api_key="none", cache=False, num_retries=0)
    options: dict[str, Any] = {"eval_lm": lm, "example_timeout": SECONDS, "trainset": toy.trainset(2)}
    result, _ = toy.compiled([SUBMIT], val=0, student=AsyncTriage() if student == "async" else toy.Triage(), **options)
    print("ended", result.best_score, flush=True)


@pytest.mark.parametrize("student", ["sync", "async"])
def test_hung_examples_do_not_keep_the_process_alive(student: str) -> None:
    with HangingServer(ENGINE, ("message",)) as server:
        with forked(COMPILE, server.url, student) as child:
            child.wait_for("ended 0.0")
            assert child.wait() == 0
        assert server.calls == []


# async programs


class Async(dspy.Module):
    """Waits for ever, in the way that it is given."""

    def __init__(self, wait: Callable[[str], Any]) -> None:
        super().__init__()
        self.topic = dspy.Predict("message -> topic")
        self._wait = wait

    async def aforward(self, message: str) -> dspy.Prediction:
        await self._wait(message)
        return dspy.Prediction(answer=message)

    def __deepcopy__(self, memo: Any) -> Async:
        return Async(self._wait)


def shown(gold: Any, prediction: Any) -> float:
    return float(prediction.answer == gold.message)


def test_async_work_is_cancelled() -> None:
    cancelled: list[str] = []
    told = threading.Event()

    async def wait(message: str) -> None:
        if "message 1 " in message:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(message)
                told.set()
                raise

    with Evaluator(shown, toy.eval_lm(), 2, example_timeout=SECONDS) as at:
        results = at.score(Async(wait), rows(3))
        assert [result.error_kind for result in results] == [None, "example_timeout", None]
        assert told.wait(60)
        assert cancelled == ["message 1 at length about bug"]


def test_async_work_that_blocks_its_event_loop_does_not_block_the_others(
    never: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    async def wait(message: str) -> None:
        if "message 0 " in message:
            never.wait(120)

    with caplog.at_level(logging.WARNING), Evaluator(shown, toy.eval_lm(), 1, example_timeout=SECONDS) as at:
        results = at.score(Async(wait), rows(3))
        assert [result.error_kind for result in results] == ["example_timeout", None, None]
        assert "is blocked; it is left behind" in caplog.text


# the metric


@pytest.mark.parametrize("is_async", [False, True])
def test_the_limit_is_for_program_and_metric_together(is_async: bool, never: threading.Event) -> None:
    def hangs(gold: Any, prediction: Any) -> float:
        if gold.message.startswith("message 1 "):
            never.wait(120)
        return 1.0

    async def hangs_too(gold: Any, prediction: Any) -> float:
        if gold.message.startswith("message 1 "):
            await asyncio.Event().wait()
        return 1.0

    metric = hangs_too if is_async else hangs
    with Evaluator(metric, toy.eval_lm(), 1, example_timeout=SECONDS) as at:
        results = at.score(toy.Triage(), rows(3))
    assert [result.score for result in results] == [1.0, 0.0, 1.0]
    late = results[1]
    assert late.error == f"ExampleTimeout: the metric had not returned after {SECONDS:g} s (example_timeout)"
    assert late.predicted["answer"] == "what do you mean?"
    assert [step.step_name for step in late.steps] == ["topic", "reply"]


def test_a_score_stands_where_only_the_words_about_single_steps_come_too_late(never: threading.Event) -> None:
    def metric(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        if pred_name is not None:
            never.wait(120)
        return dspy.Prediction(score=0.5, feedback="half")

    with Evaluator(metric, toy.eval_lm(), 1, example_timeout=SECONDS) as at:
        (result,) = at.score(toy.Triage(), rows(1))
    assert (result.score, result.error, result.feedback) == (0.5, None, "half")
    assert [step.step_name for step in result.steps] == ["topic", "reply"]


# executors


def hanging_metric(gold: Any, prediction: Any) -> float:
    if gold.message.startswith("message 1 "):
        threading.Event().wait(60)
    return 1.0


class Plain(dspy.Module):
    """Asks no LM."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict("message -> topic")

    def forward(self, message: str) -> dspy.Prediction:
        return dspy.Prediction(answer=message)


@pytest.mark.parametrize("kind", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_the_limit_holds_on_any_executor(kind: Any) -> None:
    with (
        kind(1) as executor,
        Evaluator(hanging_metric, dspy.LM("openai/none"), 2, executor=executor, example_timeout=LONG) as at,
    ):
        results = at.score(Plain(), rows(3))
    assert [(result.score, result.error_kind) for result in results] == [
        (1.0, None),
        (0.0, "example_timeout"),
        (1.0, None),
    ]


# the limit itself


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


def test_without_a_limit_everything_runs_on_the_calling_thread(loop: LoopThread) -> None:
    limit = TimeLimit(None, loop)
    assert (
        limit.call(threading.current_thread, threading.current_thread, threading.Event()) is threading.current_thread()
    )


def test_what_a_function_raises_passes_also_its_own_timeout(loop: LoopThread) -> None:
    def fails() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        TimeLimit(60, loop).call(fails, lambda: None, threading.Event())


def test_a_limit_of_ages_is_a_limit(loop: LoopThread) -> None:
    assert TimeLimit(1e300, loop).call(lambda: "done", lambda: "given up", threading.Event()) == "done"


def test_no_more_than_so_many_threads_are_left_behind_at_once(
    loop: LoopThread, caplog: pytest.LogCaptureFixture
) -> None:
    limit, ends = TimeLimit(0.01, loop, most_left=1), threading.Event()
    given: list[str] = []

    def give_up() -> str:
        given.append("up")
        return "up"

    assert limit.call(lambda: str(ends.wait(120)), give_up, threading.Event()) == "up"
    second = threading.Thread(target=limit.call, args=(lambda: str(ends.wait(120)), give_up, threading.Event()))
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        second.start()
        second.join(1.0)
        assert second.is_alive()  # it keeps its place
        assert limit.left == 1
        ends.set()
        second.join(60)
    assert not second.is_alive()
    assert given == ["up", "up"]
    assert "1 examples did not keep example_timeout" in caplog.text


def test_a_halt_ends_the_wait_for_those_that_were_left_behind(loop: LoopThread, never: threading.Event) -> None:
    limit, halt = TimeLimit(0.01, loop, most_left=0), threading.Event()
    halt.set()
    assert limit.call(lambda: str(never.wait(120)), lambda: "up", halt) == "up"
    assert limit.left == 1


def test_hung_examples_leave_the_rest_of_a_compile_as_it_was(patience: Patience) -> None:
    with hanging_lm(ENGINE, WAITS) as (patience.server, lm):
        fix = f"update_prompt('topic', {toy.FIX!r}); print(evaluate_program()['score'])"
        result, root = toy.compiled([fix, SUBMIT], val=0, eval_lm=lm, example_timeout=LONG, num_threads=1)
        assert result.agent_trajectory[0]["output"].strip() == "83.33"
        assert isinstance(root, ScriptedRootLM)
        assert result.trial_logs[-1]["remaining_budget"] == 24
