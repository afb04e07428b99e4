"""`optimizer.check`: what it finds, that it neither spends nor stores, and that no bad setup makes it raise."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from child_process import fresh, output_of
from offline import text_lm
from priced import priced_fields, priced_text

from kernel_bridge import KernelInterpreter
from rlmoptimizer import CheckReport, RLMDocstringOptimizer


def check(*, student: Any = None, optimizer: dict[str, Any] | None = None, **given: Any) -> CheckReport:
    options = {"root_lm": priced_text(lambda _: "ok", "root"), "eval_lm": priced_fields(toy.respond, "eval")}
    made = RLMDocstringOptimizer(**{**options, **(optimizer or {})})
    return made.check(toy.Triage() if student is None else student, **{**toy.arguments(), **given})


def only(texts: tuple[str, ...]) -> str:
    (text,) = texts
    return text


def test_a_good_setup_has_neither_problems_nor_warnings(tmp_path: Path) -> None:
    report = check(optimizer={"run_storage_dir": tmp_path / "runs"}, testset=[toy.example(11)])
    assert report.ok
    assert (report.problems, report.warnings) == ((), ())
    assert [step.name for step in report.steps] == ["topic", "reply"]
    assert [(lm.roles, lm.model, lm.error, lm.is_priced) for lm in report.lms] == [
        (("root",), "offline/root", None, True),
        (("eval",), "offline/eval", None, True),
    ]
    assert [(one.example_id, one.score) for one in report.examples] == [("1", 1.0), ("2", 0.0), ("3", 1.0)]
    metric = report.metric
    assert metric is not None
    assert (metric.name, metric.compared, metric.differing, metric.gives_feedback) == ("toy.metric", 3, 0, True)
    budget = report.budget
    assert budget is not None
    assert (budget.units, budget.val_runs, budget.train_runs) == (34, 8, 5)
    assert report.baseline is not None
    assert report.at_most is not None
    assert (report.baseline.examples, report.baseline.calls) == (10, 20)
    assert (report.at_most.examples, report.at_most.calls) == (10 + 34 + 2, 92)
    assert report.usage["eval"]["calls"] == 6
    assert report.usage["root"]["calls"] == 1
    assert not (tmp_path / "runs").exists()


def test_the_metric_is_asked_again_about_predictions_not_about_their_steps() -> None:
    asked: list[str | None] = []

    def metric(example: Any, prediction: Any, trace: Any, pred_name: str | None, pred_trace: Any) -> Any:
        asked.append(pred_name)
        return toy.metric(example, prediction)

    report = check(metric=metric)
    assert report.metric is not None
    assert report.metric.compared == 3
    assert (asked.count(None), asked.count("topic"), asked.count("reply")) == (6, 3, 3)


def test_the_estimate_is_what_the_baseline_then_costs() -> None:
    report = check()
    root = toy.ScriptedRootLM(["SUBMIT(optimization_status()['current_prompts'])"])
    program = toy.optimizer(root, eval_lm=priced_fields(toy.respond, "eval")).compile(toy.Triage(), **toy.arguments())
    assert report.baseline is not None
    assert report.baseline.cost_usd == pytest.approx(program.usage["eval"]["cost_usd"], rel=0.1)
    assert report.baseline.calls == program.usage["eval"]["calls"]


def test_the_report_prints_and_shows_itself_with_every_text_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    def metric(example: Any, prediction: Any) -> float:
        raise ValueError("<script>alert(1)</script> \x1b[31m")

    report = check(metric=metric)
    print(report)
    text = capsys.readouterr().out
    assert text.startswith("Check of Triage: 1 problem, 0 warnings\nproblems    the metric gave no score on any pred")
    assert "\x1b" not in text
    html = report._repr_html_()
    assert "<script>" not in html
    assert html.startswith('<table class="tex2jax_ignore mathjax_ignore">')
    assert "&lt;script&gt;" in html
    known = json.loads(json.dumps(report.to_dict()))
    assert known["ok"] is False
    assert known["budget"]["units"] == 34


def test_a_metric_that_raises_is_shown_with_its_own_lines_only() -> None:
    def metric(example: Any, prediction: Any) -> float:
        return 1 / 0

    problem = only(check(metric=metric).problems)
    assert "return 1 / 0" in problem
    assert "ZeroDivisionError" in problem
    assert problem.count('File "') == 1


def test_metrics_that_a_compile_would_suffer_from_are_named() -> None:
    luck = random.Random(0)
    assert "other scores when it was asked" in only(check(metric=lambda gold, pred: luck.random() > 0.5).warnings)
    assert "partial scores and no feedback" in only(check(metric=lambda gold, pred: 0.5).warnings)
    assert "perfect_score=100" in only(check(metric=lambda gold, pred: 100).problems)
    calls = iter(range(99))
    raising = check(metric=lambda gold, pred: 1 / ((next(calls) + 1) % 2), optimizer={"num_threads": 1})
    assert "about the same prediction again; mend it: ZeroDivisionError" in only(raising.problems)

    async def awaited(gold: Any, prediction: Any) -> bool:
        return luck.random() > 0.5

    assert "other scores" in only(check(metric=awaited).warnings)


def test_a_metric_that_normalizes_in_place_is_no_other_the_second_time() -> None:
    def metric(gold: Any, prediction: Any) -> bool:
        prediction.answer = prediction.answer + "!"
        return prediction.answer.count("!") == 1

    assert check(metric=metric).warnings == ()


def test_the_second_call_of_a_judge_is_told_and_not_estimated() -> None:
    judge = priced_text(lambda _: "1", "judge")

    def metric(gold: Any, prediction: Any) -> bool:
        return judge("is it right?") == ["1"]

    report = check(metric=metric)
    assert report.usage["eval"]["calls"] == 3 * (2 + 2)
    assert report.baseline is not None
    assert report.baseline.calls == 10 * 3


def test_a_program_that_fails_everywhere_and_lms_that_do_not_answer_are_problems() -> None:
    def explode(question: Any) -> dict[str, object]:
        raise dspy.LMAuthError("no such key", model="offline/eval")

    class Broken(toy.Triage):
        def forward(self, message: str) -> dspy.Prediction:
            raise RuntimeError("broken")

    assert "failed on all 3 examples" in only(check(student=Broken()).problems)
    keyless = check(optimizer={"root_lm": dspy.LM("openai/gpt-none", api_key="")})
    assert "the root LM openai/gpt-none did not answer: its api_key is empty" in only(keyless.problems)
    lost, failed = sorted(check(optimizer={"eval_lm": priced_fields(explode, "eval")}).problems)
    assert "an LM failed on 3 of 3 examples; look at eval_lm" in lost
    assert "the eval LM offline/eval did not answer" in failed


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({"student": 3}, ["student must be a dspy.Module"]),
        ({"trainset": []}, ["trainset is empty"]),
        ({"valset": [1], "metric": lambda one: 1}, ["example 1 of valset is an int", "metric must take"]),
        ({"testset": [dspy.Example(a=1).with_inputs("a")]}, ["example 1 of testset has the input fields 'a'"]),
        ({"metric": None}, ["metric is None: pass it"]),
        ({"trainset": [], "metric": None}, ["trainset is empty", "metric is None: pass it"]),
    ],
)
def test_what_compile_would_refuse_is_a_problem_all_at_once(given: dict[str, Any], problems: list[str]) -> None:
    report = check(**given)
    assert len(report.problems) == len(problems)
    for found, expected in zip(report.problems, problems, strict=True):
        assert expected in found
    assert [lm.error for lm in report.lms][:1] == [None]
    assert report.kernel is not None
    said = any("steps, examples, metric, data and budget were not looked at" in one for one in report.warnings)
    assert said == ("testset" not in given)  # without a test set the rest can be run
    assert "this check" in str(report)


def test_a_limit_in_dollars_without_prices_hides_nothing_else() -> None:
    def metric(example: Any, prediction: Any) -> float:
        return 1 / 0

    unpriced = {"root_lm": text_lm(lambda _: "ok", "root"), "max_cost_usd": 1.0}
    prices, raised = check(optimizer=unpriced, metric=metric).problems
    assert "max_cost_usd must be None, because calls of offline/root" in prices
    assert "ZeroDivisionError" in raised
    empty, prices = check(optimizer=unpriced, trainset=[]).problems
    assert ("trainset is empty" in empty, "max_cost_usd must be None" in prices) == (True, True)


def test_data_sets_that_can_be_read_once_are() -> None:
    report = check(trainset=iter(toy.trainset()), valset=iter(toy.valset()), testset=iter([toy.example(11)]))
    assert report.ok
    assert [split.examples for split in report.splits] == [6, 4, 1]


def test_examples_that_stand_twice_or_in_two_splits_are_named() -> None:
    again = [example.copy() for example in toy.trainset(2)]
    other = toy.example(2).copy(answer="another label").with_inputs("message")
    report = check(trainset=[*toy.trainset(), *again, other], valset=[*toy.valset(), *toy.trainset(1)])
    train, val = report.splits
    assert (train.repeated, train.repeated_inputs) == (2, 3)
    assert (dict(val.shared), dict(val.shared_inputs)) == ({"train": 1}, {"train": 1})
    assert "3 of the 9 examples of train have inputs that stand in it before, 1 of them with other" in str(report)
    assert "1 of the 5 examples of val have inputs that are in train too" in str(report)


def test_what_the_budget_does_not_pay_for_is_named() -> None:
    report = check(trainset=toy.trainset(1), valset=toy.valset(6), optimizer={"max_iterations": 1})
    assert "the budget of 7 units pays for one run of it only" in only(report.warnings)
    assert "does not pay for the baseline" in only(check(optimizer={"max_cost_usd": 1e-6}).problems)
    assert check().baseline is not None
    cost = check().baseline.cost_usd  # pyright: ignore[reportOptionalMemberAccess]
    assert "may end the work before its units do" in only(check(optimizer={"max_cost_usd": 2 * cost}).warnings)


def test_prices_and_tokens_that_are_not_known_are_told_as_such() -> None:
    report = check(optimizer={"root_lm": text_lm(lambda _: "ok", "root"), "eval_lm": toy.eval_lm()})
    assert "no price is known of offline/root, offline/eval" in only(report.warnings)
    assert report.baseline is not None
    assert report.baseline.cost_usd is None
    assert "price not known" in str(report)


def test_what_confines_the_kernel_is_told() -> None:
    assert "not confined" in str(check(optimizer={"kernel": toy.KERNEL}))
    assert "kept from your network or your files" in only(check(optimizer={"kernel": toy.KERNEL}).warnings)
    strict = KernelInterpreter.factory(confinement={"cpu_capped"})
    assert "cpu_capped: not asked for: set cpu_seconds" in only(check(optimizer={"kernel": strict}).problems)
    foreign = check(optimizer={"kernel": dspy.PythonInterpreter})
    assert "does not say how it is confined" in only(foreign.warnings)


def test_the_report_is_read_without_dspy() -> None:
    code = "import sys; from rlmoptimizer import CheckReport; print('dspy' in sys.modules, CheckReport.__name__)"
    assert output_of(fresh(code)) == "False CheckReport\n"


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert [one for one in threading.enumerate() if one not in before and "rlmoptimizer" in one.name] == []
