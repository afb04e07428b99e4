"""The held-out test: scored once, side by side, at the very end, for no units; nobody sees its rows."""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, field_lm, text_lm
from priced import by_call, priced_fields, priced_text

from kernel_bridge.live.zmtp import ZmtpSocket
from rlmoptimizer import InvalidSetup
from rlmoptimizer.show.terminal.log_lines import printable_logs
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

CANARY = "wombat"  # stands in every field of every test example and nowhere else
CANARIES = (CANARY, toy.SECRET)
FIX = f'update_prompt("topic", {toy.FIX!r})\nprint(evaluate_program("val")["score"])'
SUBMIT = 'SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])'


def held_out(count: int = 8) -> list[dspy.Example]:
    return [toy.example(number, marker=f"{CANARY} ") for number in range(count)]


def respond(question: Asked) -> dict[str, object]:
    answer = toy.respond(question)
    if question.inputs["message"].startswith(CANARY) and "answer" in question.outputs:
        return {"answer": f"{CANARY} {answer['answer']}"}
    return answer


def compiled(turns: list[Any], **options: Any) -> Any:
    return toy.compiled(turns, **{"testset": held_out(), "eval_lm": field_lm(respond, "eval"), **options})[0]


def test_both_programs_are_scored_once_and_cost_no_units(tmp_path: Path) -> None:
    program = compiled([FIX, SUBMIT], run_storage_dir=tmp_path)
    found = program.optimization_result.splits["test"]
    assert (found.n, found.baseline, found.result, found.difference) == (8, 50.0, 100.0, 50.0)
    assert (found.better, found.worse, found.same, found.left_out) == (4, 0, 4, 0)
    assert program.optimization_result.verdict_split == "test"
    assert program.optimization_result.budget == {"limit": 34, "spent": 4}
    with StoreReader.open_in(tmp_path) as store:
        tested = [run for run in store.runs() if run.split == "test"]
        assert [(run.baseline, run.evaluated_count) for run in tested] == [(True, 8), (False, 8)]
        assert store.spent() == 4


def test_the_two_programs_run_at_the_same_time() -> None:
    meeting = threading.Barrier(2)

    def answer(question: Asked) -> dict[str, object]:
        if question.inputs["message"].startswith(f"{CANARY} message 0") and "topic" in question.outputs:
            meeting.wait(60)  # the other program's first example
        return respond(question)

    program = compiled([FIX, SUBMIT], eval_lm=field_lm(answer, "eval"), num_threads=2)
    assert program.optimization_result.splits["test"].result == 100.0


def test_nothing_of_it_begins_before_the_agent_and_its_kernels_are_gone(tmp_path: Path) -> None:
    begun: list[str] = []
    gone: list[str] = []

    def answer(question: Asked) -> dict[str, object]:
        if question.inputs["message"].startswith(CANARY):
            begun.append("test")
            if not gone:
                raise AssertionError("an example of the test ran before the kernel was gone")
        return respond(question)

    class Interpreter(type(KERNEL())):  # type: ignore[misc]
        def shutdown(self) -> None:
            assert not begun
            super().shutdown()
            gone.append("kernel")

    program = compiled(
        [FIX, SUBMIT], eval_lm=field_lm(answer, "eval"), kernel=lambda: Interpreter(confinement="off")
    )
    assert program.optimization_result.splits["test"].result == 100.0


def test_equal_prompts_are_scored_once_and_differ_by_exactly_nothing() -> None:
    program = compiled([SUBMIT])
    found = program.optimization_result.splits["test"]
    assert (found.baseline, found.result, found.difference, found.interval) == (50.0, 50.0, 0.0, (0.0, 0.0))
    assert (found.better, found.worse, found.p_value, found.verdict) == (0, 0, 1.0, "no proven gain")
    assert [log["split"] for log in program.trial_logs] == ["train", "val", "test"]


@pytest.mark.parametrize("fails", ["the unchanged program", "the new one", "both"])
def test_rows_on_which_an_lm_failed_are_left_out_of_the_pairs_and_told(fails: str) -> None:
    def answer(question: Asked) -> dict[str, object]:
        fixed = "one word" in question.instructions
        hit = question.inputs["message"].startswith(f"{CANARY} message 3") and "topic" in question.outputs
        if hit and (fails == "both" or fixed == (fails == "the new one")):
            raise dspy.LMRateLimitError(f"slow down, {CANARY}")
        return respond(question)

    program = compiled([FIX, SUBMIT], eval_lm=field_lm(answer, "eval"))
    result = program.optimization_result
    assert (result.splits["test"].n, result.splits["test"].left_out) == (7, 1)
    told = [warning for warning in result.warnings if "rate_limit: 1" in warning]
    assert len(told) == (2 if fails == "both" else 1)
    assert all("on test" in warning for warning in told)


@pytest.mark.parametrize("kind", ["lm", "metric"])
def test_a_test_that_fails_altogether_is_told_and_fails_no_compile(kind: str) -> None:
    def answer(question: Asked) -> dict[str, object]:
        if kind == "lm" and question.inputs["message"].startswith(CANARY):
            raise dspy.LMRateLimitError(f"slow down, {CANARY}")
        return respond(question)

    def metric(gold: Any, prediction: Any, trace: Any = None) -> Any:
        if kind == "metric" and gold.message.startswith(CANARY):
            raise ValueError(f"cannot judge {gold.message}")
        return toy.metric(gold, prediction)

    result = compiled([FIX, SUBMIT], eval_lm=field_lm(answer, "eval"), metric=metric).optimization_result
    if kind == "lm":
        assert "test" not in result.splits
        assert "the test set was not measured: an LM failed on every example" in result.warnings
        assert (result.verdict_split, "test set was not measured" in result.verdict_text) == ("val", True)
    else:  # the metric has judged other examples, so it is the rows' fault
        assert (result.splits["test"].baseline, result.splits["test"].result) == (0.0, 0.0)
        assert sum("the metric gave no score on 8 examples" in warning for warning in result.warnings) == 2
    assert CANARY not in json.dumps(result.to_dict())


# who sees it


class Everything(logging.Handler):
    """All that is logged, as it is formatted."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


@pytest.mark.parametrize("trouble", ["none", "lm", "metric", "program", "slow"])
def test_nothing_of_its_rows_or_of_vals_is_in_any_request_kernel_message_event_log_prompt_or_file_but_the_store(
    trouble: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(question: Asked) -> dict[str, object]:
        hit = any(f"{canary} message 3" in question.text for canary in CANARIES)
        if trouble == "lm" and hit:
            raise dspy.LMRateLimitError(f"slow down, {question.text}")
        if trouble == "program" and hit:
            raise RuntimeError(f"cannot read {question.text}")
        return respond(question)

    def metric(gold: Any, prediction: Any, trace: Any = None) -> Any:
        if trouble == "metric" and gold.message.startswith(CANARIES) and "message 3" in gold.message:
            raise ValueError(f"cannot judge {gold.toDict()}")
        return toy.metric(gold, prediction)

    if trouble == "slow":
        monkeypatch.setattr("rlmoptimizer.compilation.parts._STALL_SECONDS", 0.01)
    sub: list[str] = []
    sent: list[bytes] = []  # to the kernel: cells with their variables, and what tools answer
    send = ZmtpSocket.send

    def heard(socket: ZmtpSocket, frames: Sequence[bytes | bytearray | memoryview]) -> bool:
        sent.extend(map(bytes, frames))
        return send(socket, frames)

    monkeypatch.setattr(ZmtpSocket, "send", heard)
    handler = Everything()
    root_logger = logging.getLogger()
    before = root_logger.level
    root_logger.addHandler(handler)
    root_logger.setLevel(logging.DEBUG)
    look = f"{FIX}\nprint(run_data('r1'), optimization_status(), llm_query('hm?'), globals().keys(), task_facts)"
    try:
        with printable_logs():
            program, root = toy.compiled(
                [look, "print(dir(), [str(value) for value in list(globals().values())])", SUBMIT],
                testset=held_out(),
                eval_lm=field_lm(answer, "eval"),
                sub_lm=text_lm(lambda prompt: sub.append(prompt) or "hm", "sub"),
                metric=metric,
                run_storage_dir=tmp_path / "runs",
                verbose=True,
                kernel=KERNEL,
            )
    finally:
        root_logger.removeHandler(handler)
        root_logger.setLevel(before)
    assert root.seen
    assert any(b"task_facts" in data for data in sent)  # a cell's variables
    assert any(b"optimization_status()" in data for data in sent)  # a cell's code
    assert any(b"message 0" in data and b"example_id" in data for data in sent)  # the rows of train, in an answer
    assert sub
    shown, result = capfd.readouterr(), program.optimization_result
    seen = [asked.text for asked in root.seen] + sub + handler.lines + [shown.out, shown.err]
    seen += [json.dumps(result.to_dict()), str(result), repr(program.trial_logs), *map(repr, sent)]
    with StoreReader.open_in(tmp_path / "runs") as store:
        seen += [repr(found) for found in (store.events(), store.iterations(), store.candidates(), store.setup())]
        seen += [repr(found) for found in (store.agent_end(), store.choice(), store.outcome(), store.runs())]
        assert [text for text in seen if any(canary in text for canary in CANARIES)] == []
        stored = [one for run in store.runs() if run.split == "test" for one in store.examples(run.run_id)]
        assert all(CANARY in one.inputs["message"] for one in stored)  # the canary is where it belongs
    others = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.startswith("runs-0001.sqlite")]
    assert [path for path in others if any(canary.encode() in path.read_bytes() for canary in CANARIES)] == []


def test_a_metric_that_makes_names_of_test_rows_puts_none_of_them_into_the_result() -> None:
    def metric(gold: Any, prediction: Any, trace: Any = None) -> Any:
        named = {"length": 3.0, gold.message[:40]: 1.0}
        return {"score": float(toy.metric(gold, prediction).score), "objective_scores": named}

    program = compiled([FIX, SUBMIT], metric=metric)
    logs = {log["split"]: log["objectives"] for log in program.trial_logs}
    assert logs["test"] == logs["val"] == {"length": 3.0}
    told = json.dumps([program.trial_logs, program.optimization_result.to_dict()])
    assert [canary for canary in CANARIES if canary in told] == []


def test_the_agent_is_given_the_same_with_and_without_a_test_set() -> None:
    """Not even that there is one."""
    asked: list[list[str]] = []
    for given in (held_out(), None):
        _, root = toy.compiled([FIX, SUBMIT], testset=given, eval_lm=field_lm(respond, "eval"), seed=1)
        asked.append([one.text for one in root.seen])
    assert asked[0] == asked[1]


# what it costs


def priced(turns: list[Any], limit: float, **options: Any) -> Any:
    """Every call of the program costs a cent, two a row; the agent's cost nothing."""
    return toy.compiled(
        turns,
        testset=held_out(),
        eval_lm=priced_fields(respond, "eval", price=by_call(0.01)),
        sub_lm=priced_text(lambda prompt: "hm", "sub", price=by_call(0.0)),
        num_threads=1,
        max_cost_usd=limit,
        **options,
    )


def free_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlmoptimizer.compilation.setup.check_prices", lambda lms: None)


def test_the_agent_cannot_spend_what_the_test_will_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    free_root(monkeypatch)
    greedy = """
import itertools
for number in itertools.count():
    try:
        evaluate_program(limit=1, prompts={"reply": f"Answer by the topic. {number}"})
    except Exception as refused:
        print(refused)
        break
"""
    # baselines 10 rows, val once 4, the test 16 rows: at two cents each; and five rows more for the agent
    program, root = priced([FIX, greedy, SUBMIT], 0.02 * (10 + 4 + 16 + 5 + 1))
    assert "max_cost_usd" in root.history
    result = program.optimization_result
    assert result.splits["test"].result == 100.0
    assert result.splits["test"].n == 8
    assert result.cost_usd is None or result.cost_usd <= 0.02 * 36 + 1e-9


def test_a_test_that_cannot_be_paid_is_not_begun_and_the_result_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    free_root(monkeypatch)
    program, _ = priced([FIX, SUBMIT], 0.02 * (10 + 4 + 10))
    result = program.optimization_result
    assert "test" not in result.splits
    assert result.verdict_split == "val"
    (told,) = [warning for warning in result.warnings if "test set was not measured" in warning]
    assert "expected to cost $0.320, and $0.200 of max_cost_usd are left" in told
    assert all(log["split"] != "test" for log in program.trial_logs)


# before and after


def test_what_is_no_test_set_is_refused_before_anything_runs() -> None:
    for given, message in [
        ([], "testset is empty; pass at least one example, or testset=None"),
        (["text"], "example 1 of testset is a str, not a dspy.Example"),
        ([dspy.Example(message="a", answer="b")], "example 1 of testset does not say which of its fields are inputs"),
        (
            [dspy.Example(text="a", answer="b").with_inputs("text")],
            "example 1 of testset has the input fields 'text'; those of train are 'message'",
        ),
    ]:
        with pytest.raises(InvalidSetup, match=message):
            compiled([SUBMIT], testset=given)


def test_a_resume_with_another_test_set_is_refused_and_names_what_differs(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no key"):
        compiled([RuntimeError("no key")], run_storage_dir=tmp_path)
    others = held_out()
    others[2] = toy.example(22, marker="other ")
    for given, message in [
        (None, "testset was 8 examples, is None"),
        (others, r"testset: example 3 differs \(of 8\)"),
        (held_out(7), "testset had 8 examples, has 7 examples"),
    ]:
        with pytest.raises(InvalidSetup, match=message):
            compiled([SUBMIT], testset=given, run_storage_dir=tmp_path, resume=True)


def test_a_finished_optimization_gives_the_equal_result_again_and_scores_nothing(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def answer(question: Asked) -> dict[str, object]:
        asked[question.inputs["message"]] += 1
        return respond(question)

    lm = field_lm(answer, "eval")
    first = compiled([FIX, SUBMIT], eval_lm=lm, run_storage_dir=tmp_path)
    once = dict(asked)
    again = compiled([], eval_lm=lm, run_storage_dir=tmp_path, resume=True)
    assert asked == once
    assert again.optimization_result == first.optimization_result
    assert again.optimization_result.to_dict() == first.optimization_result.to_dict()


def test_shared_examples_are_told_once_and_before_anything_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    def answer(question: Asked) -> dict[str, object]:
        assert "3 of the 4 examples of test are in train too" in caplog.text
        return respond(question)

    lm = field_lm(answer, "eval")
    result = compiled([SUBMIT], eval_lm=lm, testset=[*toy.trainset(3), *toy.valset(1)]).optimization_result
    assert result.splits["test"].n == 4
    assert caplog.text.count("examples of test are in train too") == 1
    assert "3 of the 4 examples of test are in train too" in result.warnings
    assert "1 of the 4 examples of test are in val too" in result.warnings


def test_examples_that_stand_twice_are_told_once_and_before_anything_is_spent(caplog: pytest.LogCaptureFixture) -> None:
    def answer(question: Asked) -> dict[str, object]:
        assert "2 of the 8 examples of train stand in it before" in caplog.text
        return respond(question)

    train = [*toy.trainset(), *toy.trainset(2)]
    compiled([SUBMIT], eval_lm=field_lm(answer, "eval"), trainset=train)
    assert caplog.text.count("stand in it before") == 1


def test_a_val_that_the_dollars_cannot_pay_once_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    free_root(monkeypatch)
    lm = priced_fields(respond, "eval", price=by_call(0.01))
    toy.compiled([SUBMIT], eval_lm=lm, max_cost_usd=0.25)  # the baseline costs 0.20
    assert caplog.text.count("not even one run on val can be paid: expected to cost $0.08") == 1
