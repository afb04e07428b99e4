"""`compare_runs`: two runs on the examples that both evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from hypothesis import given
from hypothesis import strategies as st
from offline import Asked, field_lm

from rlmoptimizer import SelectionError, UnknownRunError
from rlmoptimizer.agent.run_comparison import first_changed_step
from rlmoptimizer.records import StepTrace

TOTALS = {"run_a", "run_b", "split", "n", "score_a", "score_b", "difference", "interval", "better", "worse", "same",
          "p_value", "summary_line"}  # fmt: skip
OF_EXAMPLES = {"fixed", "broken", "first_changed_step", "first_changed_counts"}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path, train=12) as ready:
        yield ready


def compared(at: Desk, run_a: Any, run_b: Any) -> dict[str, Any]:
    return at.bench.tools.compare_runs(run_a, run_b)


def test_on_train_it_says_what_was_fixed_and_broken_and_where_it_began(at: Desk) -> None:
    a = at.evaluate(ids="1-8")["run_id"]
    b = at.evaluate(ids="3-12", prompts={"topic": toy.FIX})["run_id"]
    spent = at.ledger.spent
    found = compared(at, a, b)
    assert set(found) == TOTALS | OF_EXAMPLES
    assert (found["n"], found["score_a"], found["score_b"], found["difference"]) == (6, 50.0, 100.0, 50.0)
    assert (found["better"], found["worse"], found["same"], found["p_value"]) == (3, 0, 3, 0.25)
    assert (found["fixed"], found["broken"]) == (["4", "6", "8"], [])
    assert found["first_changed_step"] == {"4": "topic", "6": "topic", "8": "topic"}
    assert found["first_changed_counts"] == {"topic": 3}
    low, high = found["interval"]
    assert 0 <= low < 50 < high <= 100
    assert found["summary_line"] == (
        f"run {b} against run {a} on train: 50.00 -> 100.00 on 6 common examples, +50.00 points "
        f"(95% interval {low:+.1f} to {high:+.1f}); 3 better, 0 worse, 3 same, p = 0.25: may be chance"
    )
    back = compared(at, b, a)
    assert (back["broken"], back["difference"], back["interval"]) == (["4", "6", "8"], -50.0, [-high, -low])
    assert at.ledger.spent == spent


def test_a_later_step_is_named_when_only_its_output_changed(at: Desk) -> None:
    a, b = at.evaluate()["run_id"], at.evaluate(prompts={"reply": "Explode."})["run_id"]
    assert compared(at, a, b)["first_changed_counts"] == {}
    failing = at.evaluate(prompts={"topic": "explode"})["run_id"]
    assert compared(at, a, failing)["first_changed_step"] == dict.fromkeys(("1", "3", "5", "7", "9", "11"), "topic")


def test_of_val_only_totals_are_told(at: Desk) -> None:
    baseline = at.bench.tools.optimization_status()["baseline_val_run_id"]
    tried = at.evaluate("val", prompts={"topic": toy.FIX})["run_id"]
    found = compared(at, baseline, tried)
    assert set(found) == TOTALS
    assert (found["n"], found["score_a"], found["score_b"], found["better"], found["same"]) == (4, 50.0, 100.0, 2, 2)
    assert toy.SECRET not in str(found)


def test_runs_on_different_splits_and_runs_that_may_not_be_seen_are_refused(at: Desk) -> None:
    status = at.bench.tools.optimization_status()
    train, val = status["baseline_run_id"], status["baseline_val_run_id"]
    with pytest.raises(SelectionError, match=f"run {train} is on train and run {val} on val"):
        compared(at, train, val)
    for unknown in ("r99", "", 5, None, "../r1", "x" * 1000):
        with pytest.raises(UnknownRunError):
            compared(at, train, unknown)
    hidden = at.store.begin_run("test", {}, at.bench.prompts.original, planned_ids=["1"])
    at.store.finish_run(hidden)
    running = at.store.begin_run("train", {}, at.bench.prompts.original, planned_ids=["1"])
    cut = at.store.begin_run("val", {}, at.bench.prompts.original, planned_ids=["1"])
    at.store.finish_run(cut, cancelled=True)
    for run_id, refusal in ((hidden, UnknownRunError), (running, SelectionError), (cut, SelectionError)):
        for pair in ((run_id, train), (train, run_id), (run_id, run_id)):
            with pytest.raises(refusal):
                compared(at, *pair)


def test_runs_without_common_examples_are_told_apart_from_equal_ones(at: Desk) -> None:
    a, b = at.evaluate(ids="1-3")["run_id"], at.evaluate(ids="4-6")["run_id"]
    found = compared(at, a, b)
    assert (found["n"], found["score_a"], found["difference"], found["interval"]) == (0, None, None, None)
    assert (found["fixed"], found["broken"], found["first_changed_counts"]) == ([], [], {})
    assert found["summary_line"] == f"run {b} against run {a} on train: no example has a verdict in both"
    same = compared(at, a, a)
    assert (same["difference"], same["interval"], same["same"], same["p_value"]) == (0.0, [0.0, 0.0], 3, 1.0)


def test_examples_without_a_verdict_are_not_compared(tmp_path: Path) -> None:
    def respond(question: Asked) -> dict[str, object]:
        if "fail" in question.instructions and "message 2" in question.inputs["message"]:
            raise dspy.LMRateLimitError("slow down", model="m", provider="p")
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond, "eval")) as at:
        a, b = at.evaluate()["run_id"], at.evaluate(prompts={"topic": "fail"})["run_id"]
        assert compared(at, a, b)["n"] == 5


CALLS = st.lists(st.tuples(st.sampled_from("xyz"), st.integers(0, 2)), max_size=6)


@given(CALLS, CALLS)
def test_the_first_changed_step_is_the_first_name_whose_outputs_differ(
    a: list[tuple[str, int]], b: list[tuple[str, int]]
) -> None:
    names = list(dict.fromkeys(name for name, _ in [*a, *b]))
    differ = [name for name in names if sorted(o for n, o in a if n == name) != sorted(o for n, o in b if n == name)]
    assert first_changed_step(trace(a), trace(b)) == (differ[0] if differ else None)
    assert first_changed_step(trace(a), trace(a[::-1])) is None


def trace(calls: list[tuple[str, int]]) -> list[StepTrace]:
    return [StepTrace(at, name, "S", {}, {"value": value}) for at, (name, value) in enumerate(calls)]
