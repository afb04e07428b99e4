"""The quality benchmark: every arm on a toy task, what is counted, how it is resumed, who answers in files."""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import offline
import pytest
import toy
from dspy import lm15
from hypothesis import given
from hypothesis import strategies as st

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    from quality import run as driver
    from quality.answer_files import AnswerDirectory, FilesEngine
    from quality.arms import ARMS
    from quality.arms.mipro import plan_trials
    from quality.arms.ours import plan
    from quality.counter import MetricCounter, five_arguments, score_of
    from quality.heldout import held_out
    from quality.metered_lm import CallLog, MeteredLM
    from quality.models import ModelNames, opened_models
    from quality.report import report_rows, summary_rows
    from quality.results import Result, read_results
    from quality.run import Conditions, run_arm
    from quality.task import Task, check_task
finally:
    sys.path.remove(str(BENCH))

ROWS = 12
BUDGET = 80
SUBMISSION = f"SUBMIT(optimized_dspy_program={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic.'}})"


def five_argument_metric(
    gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> dspy.Prediction:
    return toy.metric(gold, prediction)


def toy_task(*, rows: int = ROWS, metric: Callable[..., Any] = five_argument_metric) -> Task:
    return Task(
        name="toy",
        description="Answers a message by its topic.",
        program=toy.Triage(),
        metric=metric,
        train=[toy.example(number) for number in range(rows)],
        val=[toy.example(number) for number in range(100, 100 + rows)],
        test=[toy.example(number) for number in range(200, 200 + rows)],
        hand_written={"topic": toy.FIX},
    )


class InProcess:
    """Models that answer in this process: the program by toy's rules, the proposer with the right prompt."""

    def __init__(self, turns: tuple[offline.Turn, ...] = (SUBMISSION,)) -> None:
        self.engines: dict[str, offline.Engine] = {
            "eval": offline.Engine(_evaluated),
            "test": offline.Engine(_evaluated),
        }
        self._root = offline.ScriptedRootLM(list(turns), idle=SUBMISSION)

    def of_run(self, run: str, log: CallLog) -> Callable[[str], dspy.LM]:
        def lm(role: str) -> dspy.LM:
            made = self._root.engine if role == "root" else offline.Engine(_proposed)
            engine = self.engines.setdefault(role, made)
            asynchronous = offline.AsyncEngine(engine)
            return MeteredLM(
                f"offline/{role}",
                role=role,
                log=log,
                engine=engine,
                async_engine=asynchronous,
                cache=False,
                num_retries=0,
            )

        return lm

    def calls(self, role: str) -> int:
        return self.engines[role].calls if role in self.engines else 0


def _evaluated(request: lm15.Request) -> str:
    return offline.fields_text(toy.respond(offline.asked(request)))


def _proposed(request: lm15.Request) -> str:
    question = offline.asked(request)
    outputs = dict.fromkeys(question.outputs, toy.FIX)
    return json.dumps(outputs) if "JSON object" in question.text else offline.fields_text(outputs)


def conditions(out: Path, **changed: Any) -> Conditions:
    ours = {"kernel": toy.KERNEL, "rlm_max_iterations": 4}
    return replace(Conditions(out, BUDGET, 4, "stand-in", "nobody", ours), **changed)


def made(arm: str, out: Path, *, models: InProcess | None = None, task: Task | None = None) -> Result:
    result = run_arm(task or toy_task(), arm, 0, conditions(out), models or InProcess())
    assert result is not None
    return result


# the arms


@pytest.fixture
def no_optuna_no_mipro(request: pytest.FixtureRequest) -> None:
    if "mipro" in request.node.name and importlib.util.find_spec("optuna") is None:
        pytest.skip("MIPROv2 needs optuna, which is in bench/quality/requirements.txt only")


@pytest.mark.usefixtures("no_optuna_no_mipro")
@pytest.mark.parametrize("arm", list(ARMS))
def test_every_arm_runs_within_the_budget_that_is_counted(arm: str, tmp_path: Path) -> None:
    scored: list[str] = []

    def metric(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        scored.append("feedback" if pred_name else "scored")
        return toy.metric(gold, prediction)

    models = InProcess()
    result = made(arm, tmp_path, models=models, task=toy_task(metric=metric))
    assert result.metric_calls == scored.count("scored") - ROWS  # those of the test rows are not the arm's
    assert result.feedback_calls == scored.count("feedback")
    # GEPA looks at its limit between iterations: a minibatch and a validation set may come on top.
    assert result.metric_calls <= BUDGET + (ROWS + 2 * 3 * 3 if arm.startswith("gepa") else 0)
    assert sum(result.test_scores) == (ROWS / 2 if arm == "unchanged" else ROWS)
    assert result.test_errors == 0
    assert result.usage["test"]["calls"] == models.calls("test") == 2 * ROWS
    assert {role: used["calls"] for role, used in result.usage.items()} == {
        role: models.calls(role) for role in result.usage
    }
    assert read_results(tmp_path) == [result]


def test_the_guess_shows_twenty_rows_with_what_came_of_them(tmp_path: Path) -> None:
    shown: list[str] = []

    def proposed(request: lm15.Request) -> str:
        shown.append(offline.asked(request).text)
        return _proposed(request)

    models = InProcess()
    models.engines["proposer"] = offline.Engine(proposed)
    result = made("guess", tmp_path, models=models, task=toy_task(rows=30))
    assert result.metric_calls == 20
    assert len(shown) == 1
    assert "example 20\n" in shown[0]
    assert "example 21\n" not in shown[0]
    assert "expected 'we refund you'" in shown[0]  # feedback
    assert "message 200" not in shown[0]  # of the test rows


def test_a_task_without_prompts_written_by_hand_has_no_such_arm(tmp_path: Path) -> None:
    task = replace(toy_task(), hand_written=None)
    assert run_arm(task, "hand", 0, conditions(tmp_path), InProcess()) is None
    assert read_results(tmp_path) == []


def test_a_noisy_metric_is_not_what_the_held_out_rows_are_scored_by(tmp_path: Path) -> None:
    def noisy(gold: Any, prediction: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        return 0.25

    result = made("hand", tmp_path, task=replace(toy_task(metric=noisy), exact_metric=toy.metric))
    assert result.test_scores == [1.0] * ROWS


def test_a_program_that_fails_on_a_row_has_nothing_for_it_there() -> None:
    program = toy.Triage()
    program.topic.signature = program.topic.signature.with_instructions("explode")
    scored = held_out(program, toy.trainset(3), toy.metric, toy.eval_lm(), 2)
    assert (scored.scores, scored.errors) == ([0.0] * 3, 3)


# budgets


@given(budget=st.integers(8, 2000), train=st.integers(1, 200), val=st.integers(1, 200))
def test_ours_has_no_more_metric_calls_than_the_budget_and_leaves_few(budget: int, train: int, val: int) -> None:
    planned = plan(budget, train, val)
    assert planned.metric_calls <= budget
    assert 1 <= planned.train <= train
    assert 1 <= planned.val <= val
    assert planned.iterations >= 1
    if budget - 2 * planned.val >= 2 * train:  # else there are not rows enough to spend it on
        assert budget - planned.metric_calls <= planned.iterations


@given(left=st.integers(3, 2000), val=st.integers(1, 200))
def test_the_trials_of_mipro_fit_in_what_is_left(left: int, val: int) -> None:
    planned = plan_trials(left, val)
    assert planned.metric_calls <= left
    assert planned.trials >= 1
    assert 1 <= planned.val <= val
    assert planned.minibatch is None or 1 <= planned.minibatch < planned.val


@pytest.mark.parametrize("budget", [0, 7])
def test_a_budget_for_nothing_is_refused(budget: int) -> None:
    with pytest.raises(ValueError, match="too small for the arm ours; give it 8 or more"):
        plan(budget, 10, 10)


# the counter


def test_the_counter_counts_every_thread_and_outlives_its_process(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metric_calls"
    with MetricCounter(path, anew=True) as counter, ThreadPoolExecutor(8) as threads:
        metric = counter.around(five_argument_metric)
        gold, right = toy.example(0), dspy.Prediction(answer="we refund you")
        answers = list(threads.map(lambda _: metric(gold, right).score, range(500)))
        metric(gold, right, None, "topic", [])
        metric(gold, right, pred_name="topic")
    assert answers == [1.0] * 500
    with MetricCounter(path, anew=False) as counter:
        counter.around(lambda gold, prediction: 1)(None, None)
        assert (counter.metric_calls, counter.feedback_calls) == (501, 2)
    with MetricCounter(path, anew=True) as counter:
        assert (counter.metric_calls, counter.feedback_calls) == (0, 0)


def test_a_metric_call_that_raises_is_counted(tmp_path: Path) -> None:
    def broken(gold: Any, prediction: Any) -> float:
        raise RuntimeError("broken")

    with MetricCounter(tmp_path / "calls", anew=True) as counter:
        with pytest.raises(RuntimeError, match="broken"):
            counter.around(broken)(None, None)
        assert counter.metric_calls == 1


def test_gepa_can_call_a_metric_that_takes_two_arguments(tmp_path: Path) -> None:
    with MetricCounter(tmp_path / "calls", anew=True) as counter:
        metric = five_arguments(counter.around(lambda gold, prediction: 0.5))
        assert metric(None, None, None, "topic", []) == 0.5
        assert counter.metric_calls == 1


@pytest.mark.parametrize(
    ("answer", "score"), [(True, 1.0), (0.5, 0.5), ({"score": 1}, 1.0), (dspy.Prediction(score=0.0), 0.0)]
)
def test_a_score_is_a_number_or_has_one(answer: Any, score: float) -> None:
    assert score_of(answer) == score


def test_an_answer_from_the_cache_is_a_cached_call_without_tokens(tmp_path: Path) -> None:
    def answer(request: lm15.Request) -> lm15.Response:
        usage = lm15.Usage(input_tokens=7, output_tokens=3, total_tokens=10)
        said = lm15.Message.assistant("yes")
        return lm15.Response(id=None, model="m", message=said, finish_reason="stop", usage=usage)

    class Counting:
        complete = staticmethod(answer)

    with CallLog(tmp_path / "calls.jsonl", anew=True) as log:
        lm = MeteredLM("offline/cached", role="eval", log=log, engine=Counting(), cache=True, num_retries=0)
        assert lm("is it?") == lm.copy()("is it?") == ["yes"]
        used = log.usage()["eval"]
    assert (used.calls, used.cached, used.failed) == (2, 1, 0)
    assert (used.prompt_tokens, used.completion_tokens) == (7, 3)


# resuming


def test_ours_goes_on_after_its_process_ended_and_pays_nothing_twice(tmp_path: Path) -> None:
    first = "print(evaluate_program(split='train', limit=5)['run_id'])"
    undisturbed = InProcess((first, SUBMISSION))
    whole = made("ours", tmp_path / "whole", models=undisturbed)

    broken = InProcess((first, RuntimeError("the connection is gone")))
    with pytest.raises(Exception, match="the connection is gone"):
        made("ours", tmp_path / "cut", models=broken)
    assert read_results(tmp_path / "cut") == []
    resumed = InProcess()
    result = made("ours", tmp_path / "cut", models=resumed)
    assert broken.calls("eval") + resumed.calls("eval") == undisturbed.calls("eval")
    assert result.metric_calls == whole.metric_calls
    assert result.usage["eval"]["calls"] == whole.usage["eval"]["calls"]
    assert result.processes == 2
    assert result.test_scores == whole.test_scores


# a directory as the proposer


def answering(directory: Path, answer: Callable[[str], str], stop: threading.Event) -> threading.Thread:
    """A person: answers every request below a directory as it appears."""

    def work() -> None:
        while not stop.wait(0.02):
            for request in directory.rglob("*.request.md"):
                answered = request.with_name(request.name.replace(".request.", ".answer."))
                if not answered.exists():
                    part = answered.with_name(f"{answered.name}.part")
                    part.write_text(answer(request.read_text("utf-8")), encoding="utf-8")
                    part.rename(answered)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.fixture
def person(tmp_path: Path) -> Any:
    """Starts a person who answers in `tmp_path / "answers"`; ends them at the end of the test."""
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def start(answer: Callable[[str], str]) -> Path:
        threads.append(answering(tmp_path / "answers", answer, stop))
        return tmp_path / "answers"

    yield start
    stop.set()
    for thread in threads:
        thread.join(10)


def document(text: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


def test_a_request_is_a_file_and_so_is_its_answer(tmp_path: Path, person: Any) -> None:
    directory = person(lambda request: "42" if "six by seven" in request else "no")
    engine = FilesEngine(AnswerDirectory(directory / "run", timeout=60))
    lm = dspy.LM("files/proposer", engine=engine, cache=False, num_retries=0, max_tokens=100)
    assert lm("six by seven") == ["42"]
    assert lm("something else") == ["no"]
    assert sorted(path.name for path in (directory / "run").iterdir()) == [
        f"000{number}.{kind}" for number in (1, 2) for kind in ("answer.md", "request.json", "request.md")
    ]
    request = (directory / "run" / "0001.request.md").read_text("utf-8")
    assert "`0001.answer.md.part`" in request
    assert "---------------- user ----------------\n\nsix by seven" in request
    assert "At most 100 tokens." in request
    stored = json.loads((directory / "run" / "0001.request.json").read_text("utf-8"))
    assert stored["messages"] == [{"role": "user", "content": "six by seven"}]
    assert lm.history[0]["usage"]["prompt_tokens"] == 3  # an estimate


def test_requests_of_many_threads_get_their_own_answers(person: Any) -> None:
    directory = person(lambda request: request.rpartition("number ")[2].strip())
    answers = AnswerDirectory(directory, timeout=60)
    with ThreadPoolExecutor(8) as threads:
        said = list(threads.map(lambda number: answers.ask(document(f"number {number}")), range(20)))
    assert said == [str(number) for number in range(20)]
    assert not (directory / "waiting.txt").exists()


def test_a_process_that_starts_again_finds_its_answers(tmp_path: Path) -> None:
    stop = threading.Event()
    numbers = iter(range(100))
    thread = answering(tmp_path, lambda _: f"answer {next(numbers)}", stop)
    first = AnswerDirectory(tmp_path, timeout=60)
    said = [first.ask(document(text)) for text in ("a", "b", "a")]
    stop.set()
    thread.join(10)
    again = AnswerDirectory(tmp_path, timeout=0.3)
    assert [again.ask(document(text)) for text in ("b", "a", "a")] == [said[1], said[0], said[2]]
    with pytest.raises(lm15.TimeoutError, match=r"no answer within 0.3 s; it is waited for as .*0004\.answer\.md"):
        again.ask(document("a"))


def test_an_answer_that_came_after_the_time_is_there_for_the_next_process(tmp_path: Path) -> None:
    with pytest.raises(lm15.TimeoutError):
        AnswerDirectory(tmp_path, timeout=0).ask(document("a"))
    assert not (tmp_path / "waiting.txt").exists()
    (tmp_path / "0001.answer.md").write_text("late", encoding="utf-8")
    assert AnswerDirectory(tmp_path, timeout=0).ask(document("a")) == "late"


def test_half_an_answer_and_an_empty_one_are_not_read(tmp_path: Path, wait_until: Callable[..., None]) -> None:
    answers = AnswerDirectory(tmp_path, timeout=60)
    with ThreadPoolExecutor(1) as threads:
        said = threads.submit(answers.ask, document("a"))
        waiting = tmp_path / "waiting.txt"
        wait_until(lambda: waiting.exists(), "waiting.txt")
        assert waiting.read_text("utf-8") == "0001\n"
        part = tmp_path / "0001.answer.md.part"
        (tmp_path / "0001.answer.md").touch()
        part.write_text("the whole answer", encoding="utf-8")
        assert not said.done()
        part.replace(tmp_path / "0001.answer.md")
        assert said.result(60) == "the whole answer"


def proposal(request: str) -> str:
    """What a person answers to any arm."""
    if "JSON object" in request:
        return json.dumps({"new_instruction": toy.FIX})
    outputs: dict[str, str] = {"reasoning": "one word", "code": SUBMISSION}
    if "instruction_1" in request:
        outputs = {"reasoning": "one word", "instruction_1": toy.FIX, "instruction_2": "Answer."}
    return offline.fields_text(outputs)


class AskedInFiles(InProcess):
    """The program runs in this process, and a directory proposes."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        super().__init__()
        self._named = ModelNames(eval="offline/eval", root=f"files:{directory}", answer_seconds=seconds)

    def of_run(self, run: str, log: CallLog) -> Callable[[str], dspy.LM]:
        with opened_models(self._named, threads=4) as models:
            in_files, in_process = models.of_run(run, log), super().of_run(run, log)
        return lambda role: in_process(role) if role in ("eval", "test") else in_files(role)


@pytest.mark.parametrize("arm", ["guess", "gepa", "ours"])
def test_a_person_can_be_the_proposer_of_an_arm(arm: str, tmp_path: Path, person: Any) -> None:
    directory = person(proposal)
    result = made(arm, tmp_path / "out", models=AskedInFiles(directory, seconds=60))
    assert sum(result.test_scores) == ROWS
    assert (result.proposer, result.answered_by) == ("stand-in", "nobody")
    proposed = {role: used for role, used in result.usage.items() if role not in ("eval", "test")}
    asked = sum(used["calls"] for used in proposed.values())
    assert asked == len(list((directory / f"toy-{arm}-0").glob("*.answer.md"))) >= 1
    assert any(used["prompt_tokens"] > 0 for used in proposed.values())


@pytest.mark.parametrize("arm", ["guess", "gepa"])
def test_an_arm_that_begins_again_asks_a_person_nothing_twice(arm: str, tmp_path: Path, person: Any) -> None:
    directory = person(proposal)
    result = made(arm, tmp_path / "out", models=AskedInFiles(directory, seconds=60))
    for answered in (tmp_path / "out").rglob("result.json"):
        answered.unlink()
    alone = tmp_path / "nobody is there"
    directory.rename(alone)
    again = made(arm, tmp_path / "out", models=AskedInFiles(alone, seconds=0))
    assert again.prompts == result.prompts
    assert (again.metric_calls, again.feedback_calls) == (result.metric_calls, result.feedback_calls)
    assert again.usage.keys() == result.usage.keys()


def test_the_program_cannot_be_run_by_a_directory(tmp_path: Path) -> None:
    named = ModelNames(eval=f"files:{tmp_path}", root="openai/x")
    with pytest.raises(ValueError, match="--eval cannot be a directory"), opened_models(named, threads=1):
        pass


# the command line


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The driver with the toy task and models in this process; `command.loaded`: the tasks that were made."""
    stand_in = InProcess()

    class Opened:
        def __enter__(self) -> InProcess:
            return stand_in

        def __exit__(self, *_: object) -> None:
            pass

    loaded: list[str] = []

    def load(name: str, seed: int, *, train: int, val: int, test: int) -> Task:
        loaded.append(name)
        return replace(toy_task(rows=train), name=name)

    monkeypatch.setattr(driver, "names", lambda: ["toy", "broken"])
    monkeypatch.setattr(driver, "load", load)
    monkeypatch.setattr(driver, "opened_models", lambda *_, **__: Opened())
    cache = dspy.cache

    def run(*arguments: str) -> int:
        fixed = ["--eval", "offline/eval", "--root", "files:x", "--answered-by", "a person", "--out", str(tmp_path)]
        return driver.main([*fixed, "--train", "12", "--val", "12", "--test", "12", *arguments])

    run.models = stand_in  # type: ignore[attr-defined]
    run.loaded = loaded  # type: ignore[attr-defined]
    yield run
    monkeypatch.setattr(dspy, "cache", cache)


def test_a_command_makes_what_is_not_there_and_shows_it_all(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--tasks", "toy", "--arms", "unchanged,hand", "--budget", "80") == 0
    calls = command.models.calls("test")
    assert calls == 4 * ROWS
    assert command("--tasks", "toy", "--arms", "unchanged,hand,guess", "--budget", "80") == 0
    assert command.models.calls("test") == calls + 2 * ROWS
    assert command.loaded == ["toy"] * 3  # anew for each arm: a metric may keep what it was asked
    shown = capsys.readouterr().out
    assert "answered by a person: toy-guess-0" in shown
    for text in ("toy, seed 0, 12 held-out rows", "unchanged", "guess", "hand", "+50.0"):
        assert text in shown
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert [row["arm"] for row in report["results"]] == ["unchanged", "guess", "hand"]
    assert report["results"][1] | {"usage": 0, "notes": 0, "seconds": 0} == {
        "task": "toy",
        "seed": 0,
        "arm": "guess",
        "n": 12,
        "score": 100.0,
        "interval": [75.8, 100.0],
        "errors": 0,
        "difference": 50.0,
        "difference_interval": report["results"][1]["difference_interval"],
        "better": 6,
        "worse": 0,
        "p_value": 0.03125,
        "verdict": "gain",
        "budget": 80,
        "metric_calls": 12,
        "feedback_calls": 0,
        "usage": 0,
        "seconds": 0,
        "processes": 1,
        "proposer": "files:x",
        "answered_by": "a person",
        "notes": 0,
    }
    assert driver.main(["--report", str(tmp_path)]) == 0
    assert "guess" in capsys.readouterr().out


def test_results_that_cannot_be_compared_are_kept_apart(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--tasks", "toy", "--arms", "unchanged", "--budget", "80") == 0
    with pytest.raises(SystemExit):
        command("--tasks", "toy", "--arms", "hand", "--budget", "81")
    assert "budget was 80, is 81. Use another --out" in capsys.readouterr().err


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--tasks", "toy", "--arms", "ours,hand", "--budget", "3") == 1
    shown = capsys.readouterr()
    assert "failed: toy-ours-0; the same command tries again" in shown.out
    assert "too small for the arm ours" in shown.err
    assert [result.arm for result in read_results(tmp_path)] == ["hand"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--tasks", "nothing"), "no such task: nothing; there are toy, broken"),
        (("--tasks", "toy", "--arms", "mine"), "no such arm: mine; there are unchanged, guess"),
        ((), "--tasks is needed"),
    ],
)
def test_what_is_not_there_is_named(
    command: Any, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], error: str
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments)
    assert error in capsys.readouterr().err


def test_an_empty_directory_has_an_empty_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--report", str(tmp_path)]) == 0
    assert "there are no results" in capsys.readouterr().out


def test_a_row_of_two_splits_and_a_step_that_is_none_are_refused() -> None:
    task = toy_task()
    check_task(task)
    with pytest.raises(ValueError, match="row 1 of test has the inputs of a row of train"):
        check_task(replace(task, test=[toy.example(999), task.train[0]]))
    with pytest.raises(ValueError, match=r"hand_written names \['other'\]; the steps are \['reply', 'topic'\]"):
        check_task(replace(task, hand_written={"other": ""}))
    with pytest.raises(ValueError, match="val has no rows"):
        check_task(replace(task, val=[]))


@pytest.mark.parametrize(
    ("scores", "verdict"), [([1.0] * 8, "gain"), ([1.0] * 4 + [0.0] * 4, "no proven gain"), ([0.0] * 8, "loss")]
)
def test_a_gain_is_one_that_chance_does_not_explain(scores: list[float], verdict: str) -> None:
    common: dict[str, Any] = {"task": "toy", "seed": 0, "budget": 1, "proposer": None, "answered_by": None}
    common |= {"prompts": {}, "test_errors": 0, "usage": {}, "metric_calls": 0, "feedback_calls": 0}
    common |= {"seconds": 0.0, "processes": 1}
    rows = report_rows(
        [
            Result(arm="ours", test_scores=scores, **common),
            Result(arm="unchanged", test_scores=[0.5] * 8, **common),
        ],
        list(ARMS),
    )
    assert [(row["arm"], row["verdict"]) for row in rows] == [("unchanged", None), ("ours", verdict)]
    summary = {row["arm"]: row for row in summary_rows(rows, list(ARMS))}
    assert (summary["ours"]["gains"], summary["ours"]["losses"]) == (verdict == "gain", verdict == "loss")
    assert summary["unchanged"]["difference"] is None
