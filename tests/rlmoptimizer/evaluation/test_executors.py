"""Evaluations on executors: what comes back from other processes is what comes from threads, and what dies there."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import dspy
import pytest
import toy
from deadly import Deadly
from executor_runs import Provider, process_pool, provider

from rlmoptimizer import InvalidSetup, WorkersLost
from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.fan_out import FanOutJob
from rlmoptimizer.evaluation.workers.executor_fan_out import ExecutorFanOut
from rlmoptimizer.evaluation.workers.tasks import LoadTask, RowTask
from rlmoptimizer.evaluation.workers.transport import SendAgain
from rlmoptimizer.evaluation.workers.worker_pool import WorkerPool
from rlmoptimizer.lms.failures import failure_line
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import LM_FAILURES, dollars
from rlmoptimizer.spending.call_meter import HeardCall
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.task.dataset import build_dataset


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider() as at:
        yield at


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Two processes that no test kills."""
    with process_pool() as executor:
        yield executor


class Elsewhere(Executor):
    """Runs what it is given as another process would: as a copy that went there and came back in bytes."""

    def __init__(self, spoil: Callable[[Any], Any] = lambda answer: answer) -> None:
        self.sent: list[tuple[Any, int]] = []  # what, and how many bytes
        self._spoil = spoil

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        sent = cloudpickle.dumps(fn)
        self.sent.append((fn, len(sent)))
        done: Future[Any] = Future()
        try:
            done.set_result(self._spoil(cloudpickle.loads(sent)()))
        except Exception as error:  # noqa: BLE001 - as an executor does
            done.set_exception(error)
        return done


# what comes back


def test_other_processes_give_the_same_results_and_the_same_dollars_as_threads(
    served: Provider, pool: ProcessPoolExecutor
) -> None:
    here = served.evaluate()
    assert here.usage.calls == 16
    assert here.usage.cost > 0
    with ThreadPoolExecutor(3) as threads:
        for executor in (pool, threads, Elsewhere()):
            asked = served.asked
            there = served.evaluate(executor=executor)
            assert there == here
            assert served.asked - asked == 16


def test_one_request_of_each_step_comes_back_though_no_worker_knows_which_row_was_the_first(
    served: Provider, pool: ProcessPoolExecutor
) -> None:
    there = served.evaluate(executor=pool, detail="requests")
    first = {step.step_name: step.request for step in there.results[0].steps}
    assert first["topic"] is not None
    assert first["reply"] is not None
    with_requests = [one for one in there.results if any(step.request for step in one.steps)]
    assert len(with_requests) <= 4  # as with 4 threads


def test_a_traceback_names_the_same_file_and_lines_in_another_process(
    served: Provider, pool: ProcessPoolExecutor
) -> None:
    class Tells(dspy.Module):  # a class of a function travels by value, as those of a script do
        def __init__(self) -> None:
            super().__init__()
            self.topic = dspy.Predict("message -> topic")

        def forward(self, message: str) -> dspy.Prediction:
            try:
                (lambda text: text[len(text)])(message)
            except IndexError:
                told = traceback.format_exc()
                return dspy.Prediction(topic=self.topic(message=told).topic, answer=told)
            raise AssertionError

    here = served.evaluate(program=Tells())
    assert served.evaluate(program=Tells(), executor=pool) == here
    assert all(__file__ in result.predicted["answer"] for result in here.results)


class Judge:
    """A metric that asks an LM."""

    def __call__(self, gold: dspy.Example, prediction: dspy.Prediction) -> float:
        dspy.Predict("message -> topic")(message=gold.message)
        return 1.0


class Asks(dspy.Module):
    """A step is called, and then the program fails on every second message."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict(dspy.Signature("message -> topic", "Say what the message is about."))

    def forward(self, message: str) -> dspy.Prediction:
        found = self.topic(message=message)
        if "at length" in message:
            raise RuntimeError(f"cannot go on with {message}")
        return found


class Later(dspy.Module):
    """Only async."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict("message -> topic")

    async def aforward(self, message: str) -> dspy.Prediction:
        return await self.topic.acall(message=message)


@pytest.mark.parametrize("program", [Asks(), Later()], ids=["failing", "async"])
def test_calls_of_failed_examples_async_programs_and_judges_are_counted(
    program: dspy.Module, served: Provider, pool: ProcessPoolExecutor
) -> None:
    here = served.evaluate(Judge(), program=program)
    there = served.evaluate(Judge(), program=program, executor=pool)
    assert there == here
    assert there.usage.calls == (8 + 4 if isinstance(program, Asks) else 16)


def test_calls_are_counted_before_the_results_that_they_belong_to_are_delivered(served: Provider) -> None:
    seen: list[tuple[int, int]] = []
    with served.evaluator(executor=Elsewhere()) as (evaluator, usage):
        rows = build_dataset(toy.trainset(12)).train
        done: list[Any] = []

        def look(results: Any) -> None:
            done.extend(results)
            seen.append((len(done), usage().calls))

        evaluator.score(toy.Triage(), rows, on_results=look)
    assert seen[-1] == (12, 24)
    assert all(calls >= 2 * count for count, calls in seen)


class Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class Wraps(dspy.Module):
    """Wraps what an LM raises in an error that does not unpickle."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict("message -> topic")

    def forward(self, message: str) -> dspy.Prediction:
        try:
            return self.topic(message=message)
        except dspy.LMError as error:
            raise Unpicklable(1, 2) from error


def test_an_lm_that_fails_in_a_worker_is_the_error_of_the_run_with_its_kind(pool: ProcessPoolExecutor) -> None:
    from rlmoptimizer.evaluation.evaluator import LMsFailed

    rows = build_dataset(toy.trainset(2)).train
    lm = dspy.LM("openai/gpt-4o-mini", api_base="http://127.0.0.1:9/v1", api_key="none", cache=False, num_retries=0)
    for program in (toy.Triage(), Wraps()):
        with Evaluator(toy.metric, lm, 2, executor=pool) as evaluator, pytest.raises(LMsFailed) as failed:
            evaluator.score(program, rows)
        cause: Any = failed.value.__cause__
        if isinstance(program, toy.Triage):
            assert isinstance(cause, dspy.LMError)
            assert type(cause).default_code in LM_FAILURES
            assert "gpt-4o-mini" in (failure_line(cause) or "")
        else:
            assert str(cause) == "Unpicklable: 1 and 2"
            assert isinstance(cause.__cause__, dspy.LMError)


def test_what_a_worker_asks_in_one_space_of_the_cache_answers_nothing_in_another(
    served: Provider, pool: ProcessPoolExecutor
) -> None:
    rows = build_dataset(toy.trainset(1)).train
    lm = served.lm(cache=True)
    counts: list[int] = []
    with process_pool(1) as executor, served.evaluator(lm=lm, executor=executor) as (evaluator, usage):
        for space in ("rlmoptimizer val", "rlmoptimizer train", "rlmoptimizer val", "rlmoptimizer train"):
            before = served.asked
            evaluator.score(toy.Triage(), rows, space=space)
            counts.append(served.asked - before)
        assert counts == [2, 2, 0, 0]
        assert (usage().calls, usage().cached_calls) == (8, 4)


def test_a_keyboard_interrupt_of_the_program_ends_the_run_and_says_where(pool: ProcessPoolExecutor) -> None:
    def interrupts(gold: Any, prediction: Any) -> float:
        raise KeyboardInterrupt

    rows = build_dataset(toy.trainset(1)).train
    lm = toy_lm()
    with Evaluator(interrupts, lm, 1, executor=pool) as evaluator, pytest.raises(KeyboardInterrupt) as raised:
        evaluator.score(NoLM(), rows)
    assert raised.value.__notes__ == ["Raised while example 1 of trainset was evaluated"]


class NoLM(dspy.Module):
    """Asks nothing. It may be large."""

    def __init__(self, ballast: bytes = b"") -> None:
        super().__init__()
        self.topic = dspy.Predict("message -> topic")
        self.ballast = ballast

    def forward(self, message: str) -> dspy.Prediction:
        return dspy.Prediction(answer=message)


def toy_lm() -> dspy.LM:
    return dspy.LM("openai/none", api_key="none")


def right(gold: Any, prediction: Any) -> float:
    return 1.0


def test_a_program_goes_to_a_worker_once_however_many_runs_and_examples_there_are() -> None:
    ballast, executor = os.urandom(1_000_000), Elsewhere()
    rows, program = build_dataset(toy.trainset(30)).train, NoLM(ballast)
    with Evaluator(right, toy_lm(), 4, executor=executor) as evaluator:
        for _ in range(2):  # from the first time on, the classes that were loaded in this very process pickle otherwise
            evaluator.prepare(program, rows)
        assert [type(what) for what, size in executor.sent if size > len(ballast)] == [LoadTask] * 2
        executor.sent.clear()
        for number in range(5):
            assert len(evaluator.score(program, rows, prompts=Prompts({"topic": f"prompt {number}"}))) == 30
    assert {type(what) for what, _ in executor.sent} == {RowTask}
    assert len(executor.sent) == 150
    assert sum(size for _, size in executor.sent) < len(ballast)


def test_a_worker_that_has_nothing_is_sent_all_of_it_and_the_row_again() -> None:
    executor = Elsewhere()
    rows, program = build_dataset(toy.trainset(6)).train, NoLM(os.urandom(1000))
    with Evaluator(right, toy_lm(), 2, executor=executor) as evaluator:
        assert [one.score for one in evaluator.score(program, rows)] == [1.0] * 6
    assert 6 < len(executor.sent) <= 1 + 6 + 2  # a greeting, the rows, and those that were sent again


# what cannot go there


def _with_lock(program: Any, place: Callable[[Any], Any]) -> Any:
    place(program).lock = threading.Lock()
    return program


@pytest.mark.parametrize(
    ("program", "metric", "settings", "named"),
    [
        (_with_lock(toy.Triage(), lambda at: at), right, {}, "'lock' of 'self' of the student, a lock,"),
        (_with_lock(toy.Triage(), lambda at: at.reply), right, {}, "'lock' of 'self.reply' of the student, a lock,"),
        (toy.Triage(), threading.Lock().__class__, {}, "the metric"),
        (toy.Triage(), right, {"own": threading.Lock()}, "dspy.settings.own, a lock,"),
    ],
)
def test_what_does_not_pickle_is_named_before_anything_is_spent(
    program: Any, metric: Any, settings: dict[str, Any], named: str
) -> None:
    if metric is not right:
        lock = threading.Lock()

        def locked(gold: Any, prediction: Any) -> float:
            with lock:
                return 1.0

        metric = locked
    rows = build_dataset(toy.trainset(1)).train
    with (
        dspy.context(**settings),
        Evaluator(metric, toy_lm(), executor=Elsewhere()) as evaluator,
        pytest.raises(InvalidSetup, match=rf"^{named} cannot be sent to the executor's workers: TypeError: "),
    ):
        evaluator.prepare(program, rows)


def test_an_example_that_does_not_pickle_is_named() -> None:
    example = dspy.Example(message="m", extra=threading.Lock()).with_inputs("message")
    rows = build_dataset([example]).train
    with (
        Evaluator(right, toy_lm(), executor=Elsewhere()) as evaluator,
        pytest.raises(InvalidSetup, match=r"^example 1 of trainset cannot be sent"),
    ):
        evaluator.prepare(NoLM(), rows)


def test_threads_get_what_does_not_pickle() -> None:
    program = _with_lock(NoLM(), lambda at: at)
    rows = build_dataset(toy.trainset(3)).train
    with ThreadPoolExecutor(2) as threads, Evaluator(right, toy_lm(), executor=threads) as evaluator:
        evaluator.prepare(program, rows)
        assert [one.score for one in evaluator.score(program, rows)] == [1.0] * 3


def test_a_worker_without_a_key_is_said_before_anything_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with (
        Evaluator(right, dspy.LM("openai/gpt-4o-mini"), executor=Elsewhere()) as evaluator,
        pytest.raises(InvalidSetup, match=r"a worker of the executor cannot work: the LM openai/gpt-4o-mini .* no key"),
    ):
        evaluator.prepare(NoLM(), build_dataset(toy.trainset(1)).train)


def _raise() -> None:
    raise RuntimeError("not here")


def test_workers_that_end_at_once_are_said_before_anything_is_spent() -> None:
    context = multiprocessing.get_context("forkserver")
    with (
        ProcessPoolExecutor(1, context, initializer=os._exit, initargs=(3,)) as broken,
        Evaluator(right, toy_lm(), executor=broken) as evaluator,
        pytest.raises(InvalidSetup, match=r"end before they run anything.*__name__"),
    ):
        evaluator.prepare(NoLM(), build_dataset(toy.trainset(1)).train)


# what is no answer


@pytest.mark.parametrize("spoilt", [b"\x80garbage", "text", None], ids=["bytes", "text", "nothing"])
def test_an_answer_that_is_none_is_a_row_with_an_error(spoilt: Any) -> None:
    executor = Elsewhere(lambda answer: spoilt if hot and isinstance(answer, bytes) else answer)
    hot: list[bool] = []
    rows = build_dataset(toy.trainset(3)).train
    with Evaluator(right, toy_lm(), 2, executor=executor) as evaluator:
        evaluator.prepare(NoLM(), rows)
        hot.append(True)
        found = evaluator.score(NoLM(), rows)
    assert [(one.error_kind, one.score, one.has_verdict) for one in found] == [("worker_lost", 0.0, True)] * 3


# workers that die


def test_an_example_whose_worker_dies_runs_again_once_and_the_others_are_not_harmed(
    served: Provider, tmp_path: Path
) -> None:
    # So far apart that the second is not under way when the first dies: it would be lost with it, and then by itself.
    metric = Deadly(tmp_path, "message 2 ", "message 20 ")
    here = served.evaluate(rows=24)
    there = served.evaluate(metric, rows=24, executor=process_pool)
    assert there == here
    assert metric.deaths == 2


def test_an_example_whose_worker_dies_twice_is_a_failed_row_and_no_other_is(
    served: Provider, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    metric = Deadly(tmp_path, "message 2 ", times=9)
    there = served.evaluate(metric, executor=process_pool)
    assert there.kinds == [None, None, "worker_lost", *[None] * 5]
    lost = there.results[2]
    assert (lost.score, lost.passed, lost.steps, lost.inputs["message"][:9]) == (0.0, False, (), "message 2")
    assert metric.deaths == 2
    assert there.usage.calls == 14
    assert caplog.text.count("A worker has died") == 1


class Scripted(Executor):
    """Keeps what it is given, for a test to answer."""

    def __init__(self) -> None:
        self.given: queue.Queue[Future[Any]] = queue.Queue()
        self.on_submit: Callable[[Future[Any]], None] = self.given.put

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.on_submit(future)
        return future


class OneAnswer:
    """A transport whose workers lack something once, and answer with the item then."""

    def task(self, value: int, attached: frozenset[str], halts: Any) -> Callable[[], int]:
        return lambda: value

    def outcome(self, value: int, answer: Any) -> int:
        if answer == "missing":
            raise SendAgain(frozenset({"part"}))
        return answer

    def lost(self, value: int, error: BaseException) -> int:
        return -1

    def unwanted(self, answer: Any) -> None: ...


def test_an_item_that_is_to_be_sent_again_does_not_hold_up_one_that_must_run_alone() -> None:
    outcomes: list[tuple[int, int]] = []
    executor = Scripted()
    work: FanOutJob[int, int] = FanOutJob([0, 1], outcomes.extend, 2)
    fan_out = ExecutorFanOut(work, WorkerPool(lambda: executor), OneAnswer())
    fan_out.start()
    first, second = executor.given.get(timeout=60), executor.given.get(timeout=60)
    first.set_result("missing")
    second.set_exception(BrokenExecutor("a worker died"))
    with ThreadPoolExecutor(1) as waiting:
        ended = waiting.submit(fan_out.wait)
        executor.given.get(timeout=60).set_result(1)  # alone
        executor.given.get(timeout=60).set_result(0)
        assert ended.result(60)
    fan_out.stop()
    assert outcomes == [(1, 1), (0, 0)]


class Tells(OneAnswer):
    """Calls something whenever a task is made."""

    def __init__(self, made: Callable[[], Any]) -> None:
        self._made = made

    def task(self, value: int, attached: frozenset[str], halts: Any) -> Callable[[], int]:
        self._made()
        return super().task(value, attached, halts)


def test_an_item_of_one_run_is_alone_until_it_is_known_whether_it_was_the_cause() -> None:
    """Whenever one run is about to hand an item over, or asks whether it was the cause, the other tries to as well."""
    executor = Scripted()
    pool = WorkerPool(lambda: executor)
    outcomes: list[tuple[int, int]] = []
    runs: list[ExecutorFanOut[int, int]] = []
    for number in range(2):
        work: FanOutJob[int, int] = FanOutJob([number], outcomes.extend, 1)
        beside = Tells(lambda number=number: runs[1 - number].wait(0) if len(runs) == 2 else None)
        runs.append(ExecutorFanOut(work, pool, beside))
    one, other = runs
    one.start()
    other.start()
    begun = [executor.given.get(timeout=60) for _ in runs]
    for future in begun:
        future.set_exception(BrokenExecutor("a worker died"))
    one.wait(0)
    other.wait(0)
    alone = executor.given.get(timeout=60)
    assert executor.given.empty()

    def question(future: Future[Any]) -> None:
        assert executor.given.empty()
        one.wait(0)
        assert executor.given.empty()
        future.set_result(None)

    executor.on_submit = question
    alone.set_exception(BrokenExecutor("its worker died too"))
    other.wait(0)
    assert outcomes == [(0, -1)]
    executor.on_submit = executor.given.put
    one.wait(0)
    executor.given.get(timeout=60).set_result(5)
    assert one.wait(60)
    assert other.wait(60)
    assert outcomes == [(0, -1), (0, 5)]


def test_an_executor_of_the_callers_that_breaks_is_said_and_what_was_delivered_is_kept(
    served: Provider, tmp_path: Path
) -> None:
    kept: list[Any] = []
    with process_pool(1) as executor, pytest.raises(WorkersLost, match="pass a callable that makes one") as lost:
        served.evaluate(Deadly(tmp_path, "message 6 "), executor=executor, on_results=kept.extend)
    assert lost.value.is_broken
    assert len(kept) <= 6
    assert all(one.error is None for one in kept)


def test_two_runs_at_once_blame_no_example_for_what_another_did(served: Provider, tmp_path: Path) -> None:
    metric = Deadly(tmp_path, "message 2 ", times=9)
    rows = build_dataset(toy.trainset(6)).train
    with (
        served.evaluator(metric, executor=process_pool) as (evaluator, _),
        ThreadPoolExecutor(2) as callers,
    ):
        runs = [callers.submit(evaluator.score, toy.Triage(), rows) for _ in range(2)]
        for run in runs:
            assert [one.error_kind for one in run.result()] == [None, None, "worker_lost", None, None, None]


def test_a_callable_that_makes_no_executor_is_refused() -> None:
    make: Any = dict
    with Evaluator(right, toy_lm(), executor=make) as evaluator, pytest.raises(InvalidSetup, match="got dict"):
        evaluator.prepare(NoLM(), ())


class Hangs:
    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, gold: Any, prediction: Any) -> float:
        self._file.write_text(str(os.getpid()))
        time.sleep(600)
        return 1.0


def test_workers_that_hang_do_not_hold_up_an_end(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    file = tmp_path / "began"
    rows = build_dataset(toy.trainset(1)).train
    evaluator = Evaluator(Hangs(file), toy_lm(), 1, executor=process_pool)

    def score() -> None:
        with contextlib.suppress(RuntimeError):
            evaluator.score(NoLM(), rows)

    caller = threading.Thread(target=score)
    caller.start()
    wait_until(file.exists, "an example has begun")
    evaluator.close(wait=False)
    caller.join(60)
    assert not caller.is_alive()


def test_examples_that_a_halt_finds_at_work_are_finished_and_kept(served: Provider, pool: ProcessPoolExecutor) -> None:
    halt = threading.Event()
    rows = build_dataset(toy.trainset(12)).train
    with served.evaluator(executor=pool) as (evaluator, usage):
        found = evaluator.score(toy.Triage(), rows, on_results=lambda _: halt.set(), cancelled=halt)
        assert 1 <= len(found) < 12
        assert usage().calls == 2 * len(found)


def test_once_the_dollars_are_spent_other_processes_begin_no_example(
    served: Provider, pool: ProcessPoolExecutor
) -> None:
    lm, rows = served.lm(), build_dataset(toy.trainset(20)).train
    one = served.evaluate(rows=1, executor=pool).usage.cost
    meter = UsageMeter(CostLedger(dollars(3 * one)), [lm])
    reached = threading.Event()

    def count(calls: Iterable[HeardCall]) -> None:
        meter.count_heard(calls)
        if meter.ledger.reached:
            reached.set()

    asked = served.asked
    with Evaluator(toy.metric, lm, 2, executor=pool, count=count) as evaluator:
        found = evaluator.score(toy.Triage(), rows, cancelled=reached)
    assert 3 <= len(found) <= 3 + 2 + 1  # two are under way at that moment; and one may cost less than the first
    assert meter.ledger.usage()["eval"].calls == served.asked - asked == 2 * len(found)
