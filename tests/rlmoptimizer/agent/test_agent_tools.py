"""The agent's tools, called directly: no kernel and no agent, everything else real."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import dspy
import pytest
import stored_runs
import toy
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer import (
    AgentError,
    BudgetExceededError,
    CostExceededError,
    InvalidSetup,
    PromptUpdateError,
    SelectionError,
    SubmissionError,
    UnknownRunError,
)
from rlmoptimizer.agent import current_prompts
from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.agent.llm_tools import checked_llm_tools
from rlmoptimizer.compilation import observers
from rlmoptimizer.errors import LMUnavailable, StoreCorrupt
from rlmoptimizer.evaluation import runs
from rlmoptimizer.events import (
    EvaluationFinished,
    EvaluationStarted,
    ExamplesScored,
    PromptUpdated,
    SubmissionRefused,
)
from rlmoptimizer.outcome.run_totals import cut_line
from rlmoptimizer.records import LMCall
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.program import apply_prompts

RESULT_KEYS = {
    "score",
    "standard_error",
    "evaluated_count",
    "passed_count",
    "error_count",
    "run_id",
    "remaining_budget",
    "summary_line",
    "split",
    "config",
    "examples",
}
EXAMPLE_KEYS = {
    "example_id",
    "source_example_id",
    "inputs",
    "expected",
    "predicted",
    "score",
    "passed",
    "error",
    "feedback",
    "steps",
}


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as ready:
        yield ready


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """One for all calls that are refused: each test sees that its own has left it as it was."""
    with desk(tmp_path_factory.mktemp("untouched")) as ready:
        yield ready


# what an evaluation gives back


@pytest.mark.smoke
def test_a_train_evaluation_returns_exactly_what_is_documented(at: Desk) -> None:
    result = at.evaluate()
    assert set(result) == RESULT_KEYS
    assert (result["score"], result["evaluated_count"], result["passed_count"]) == (50.0, 6, 3)
    assert (result["standard_error"], result["error_count"]) == (22.36, 0)  # sqrt(0.3 / 6)
    assert (result["split"], result["run_id"], result["remaining_budget"]) == ("train", "r3", 94)
    said = "run r3 on train: score 50.00 (95% interval 19-81), 3/6 passed; 94 budget units left"
    assert result["summary_line"] == said
    first, second = result["examples"][:2]
    assert set(first) == EXAMPLE_KEYS
    assert (first["example_id"], first["score"], first["passed"], first["error"]) == ("1", 1.0, True, None)
    assert second["inputs"] == {"message": "message 1 at length about bug"}
    assert second["expected"] == {"topic": "bug", "answer": "we fix it"}
    assert second["predicted"] == {"topic": "I believe that it is bug", "answer": "what do you mean?"}
    assert second["feedback"] == "expected 'we fix it'"
    assert [set(step) for step in second["steps"]] == [
        {"step_index", "step_name", "signature_name", "inputs", "outputs"}
    ] * 2
    assert [step["step_name"] for step in second["steps"]] == ["topic", "reply"]
    assert second["steps"][0]["outputs"] == {"topic": "I believe that it is bug"}


def test_the_summary_says_what_a_run_on_val_takes_once_few_are_left(tmp_path: Path) -> None:
    with desk(tmp_path, budget=12, val=4) as at:
        assert at.evaluate(limit=1)["summary_line"].endswith("; 11 budget units left (a run on val takes 4)")
    with desk(tmp_path / "without", budget=12, val=None) as at:
        assert at.evaluate(limit=1)["summary_line"].endswith("; 11 budget units left")


def test_every_step_name_in_a_trace_is_one_that_update_prompt_takes(at: Desk) -> None:
    for example in at.evaluate()["examples"]:
        for step in example["steps"]:
            at.bench.tools.update_prompt(step["step_name"], "Anything.")


@pytest.mark.parametrize(
    ("selectors", "chosen"),
    [
        ({"ids": "3"}, ["3"]),
        ({"ids": 3}, ["3"]),
        ({"ids": "5,1,5"}, ["1", "5"]),
        ({"ids": "2-4"}, ["2", "3", "4"]),
        ({"ids": "1, 4-5"}, ["1", "4", "5"]),
        ({"ids": ["2", 3, "5-6"]}, ["2", "3", "5", "6"]),
        ({"limit": 2}, ["1", "2"]),
        ({"limit": "2"}, ["1", "2"]),
        ({"limit": 2.0}, ["1", "2"]),
        ({"ids": "3-6", "limit": 2}, ["3", "4"]),
        ({"failed_from_run": "r1"}, ["2", "4", "6"]),
        ({"failed_from_run": "r1", "limit": 1}, ["2"]),
        ({"failed_from_run": "r1", "ids": "1-4"}, ["2", "4"]),
    ],
)
def test_selectors_choose_examples_and_only_those_are_paid(
    at: Desk, selectors: dict[str, Any], chosen: list[str]
) -> None:
    result = at.evaluate(**selectors)
    assert [example["example_id"] for example in result["examples"]] == chosen
    assert result["remaining_budget"] == at.ledger.left == 100 - len(chosen)
    assert result["config"]["failed_from_run"] == selectors.get("failed_from_run")


@pytest.mark.parametrize(
    "selectors",
    [
        {"ids": "7"},
        {"ids": "0"},
        {"ids": "4-2"},
        {"ids": ""},
        {"ids": []},
        {"ids": "a"},
        {"ids": {"a": 1}},
        {"limit": 0},
        {"limit": -1},
        {"limit": 1.5},
        {"limit": "many"},
        {"limit": True},
        {"sample": "best"},
        {"sample": "random", "sample_seed": "x"},
        {"failed_from_run": 3},
        {"failed_from_run": "r2"},  # the baseline on val
        {"split": "test"},
        {"split": None},
        {"split": ["val"]},
    ],
)
def test_a_selection_that_means_nothing_is_refused_free_of_charge(untouched: Desk, selectors: dict[str, Any]) -> None:
    with pytest.raises((SelectionError, UnknownRunError)) as refused:
        untouched.evaluate(**selectors)
    assert len(str(refused.value)) > 20
    assert untouched.ledger.spent == 0
    assert len(untouched.store.runs()) == 2


def test_a_random_sample_can_be_asked_for_again_by_the_seed_in_its_config(at: Desk) -> None:
    drawn = at.evaluate(limit=3, sample="random")
    seed = drawn["config"]["sample_seed"]
    again = at.evaluate(limit=3, sample="random", sample_seed=seed)
    assert [e["example_id"] for e in drawn["examples"]] == [e["example_id"] for e in again["examples"]]


def test_the_failures_of_a_run_without_failures_are_nothing_and_cost_nothing(at: Desk) -> None:
    passed = at.evaluate(prompts={"topic": toy.FIX})
    assert passed["score"] == 100.0
    result = at.evaluate(failed_from_run=passed["run_id"])
    assert set(result) == RESULT_KEYS
    assert (result["evaluated_count"], result["run_id"], result["examples"]) == (0, None, [])
    assert result["score"] is None
    assert passed["run_id"] in result["summary_line"]
    assert result["remaining_budget"] == passed["remaining_budget"]
    assert len(at.store.runs()) == 3


def test_a_program_that_raises_makes_error_rows_that_say_so(at: Desk) -> None:
    result = at.evaluate(ids="1-2", prompts={"topic": "explode"})
    assert (result["score"], result["error_count"]) == (0.0, 2)
    assert "2 with an error" in result["summary_line"]
    for example in result["examples"]:
        assert not example["passed"]
        assert example["predicted"] is None
        assert "cannot read message" in example["error"]
    assert at.ledger.spent == 2


# candidates and prompts


def test_prompts_are_tried_without_being_set(at: Desk) -> None:
    assert at.evaluate(prompts={"topic": toy.FIX})["score"] == 100.0
    assert at.evaluate()["score"] == 50.0
    assert at.bench.tools.optimization_status()["current_prompts"]["topic"] == "Say what the message is about."
    assert at.store.runs()[2].prompts == {"topic": toy.FIX, "reply": "Answer by the topic."}


def test_a_set_prompt_holds_for_every_later_evaluation(at: Desk) -> None:
    answer = at.bench.tools.update_prompt("topic", toy.FIX)
    assert (answer["step"], answer["changed"], answer["previous_text"]) == (
        "topic",
        True,
        "Say what the message is about.",
    )
    assert at.evaluate()["score"] == 100.0
    assert at.store.prompts() == {"topic": toy.FIX, "reply": "Answer by the topic."}
    assert [event for event in at.events if isinstance(event, PromptUpdated)] == [
        PromptUpdated("topic", "Say what the message is about.", toy.FIX)
    ]
    assert at.bench.tools.update_prompt("topic", toy.FIX)["changed"] is False


@pytest.mark.parametrize(
    ("step", "text"),
    [("nobody", "x"), ("topic", ""), ("topic", "  \n"), ("topic", None), ("topic", 3), (None, "x"), (["topic"], "x")],
)
def test_a_prompt_that_cannot_be_set_is_refused_and_changes_nothing(untouched: Desk, step: Any, text: Any) -> None:
    before = untouched.bench.tools.optimization_status()["current_prompts"]
    with pytest.raises(PromptUpdateError):
        untouched.bench.tools.update_prompt(step, text)
    assert untouched.bench.tools.optimization_status()["current_prompts"] == before


@pytest.mark.parametrize("prompts", [{"nobody": "x"}, {"topic": ""}, {"topic": 1}, "topic", ["topic"], {3: "x"}])
def test_a_candidate_that_cannot_be_made_is_refused_free_of_charge(untouched: Desk, prompts: Any) -> None:
    with pytest.raises(PromptUpdateError):
        untouched.evaluate(prompts=prompts)
    assert untouched.ledger.spent == 0
    assert len(untouched.store.runs()) == 2


def test_candidates_evaluated_at_once_do_not_touch_each_other(at: Desk) -> None:
    prompts = [{"topic": toy.FIX}, None, {"topic": "explode"}] * 4
    with ThreadPoolExecutor(12) as pool:
        scores = list(pool.map(lambda each: at.evaluate(ids="1-4", prompts=each)["score"], prompts))
    assert scores == [100.0, 50.0, 0.0] * 4
    assert at.ledger.spent == 48


# val


def test_val_is_whole_and_totals_only(at: Desk) -> None:
    result = at.evaluate("val", sample="first")
    assert set(result) == RESULT_KEYS
    assert (result["evaluated_count"], result["score"], result["examples"]) == (4, 50.0, [])
    assert result["remaining_budget"] == 96


@pytest.mark.parametrize(
    "part", [{"ids": "1"}, {"limit": 3}, {"failed_from_run": "r1"}, {"sample": "random"}, {"sample_seed": 3}]
)
def test_a_part_of_val_is_refused_before_anything_is_spent(untouched: Desk, part: dict[str, Any]) -> None:
    said = f"val always runs whole, for 8 units: leave out {next(iter(part))}, or"
    with pytest.raises(SelectionError, match=said):
        untouched.evaluate("val", repeats=2, **part)
    assert untouched.ledger.spent == 0
    assert len(untouched.store.runs()) == 2


def test_nothing_of_val_but_totals_is_in_any_answer_event_or_log(at: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(0)
    answers: list[Any] = [
        at.evaluate("val"),
        at.evaluate("val", prompts={"topic": "explode"}),  # raises with the input in its message
        at.bench.tools.run_data("r2"),
        at.bench.tools.optimization_status(),
    ]
    for attempt in ({"failed_from_run": "r2"}, {"split": "val", "prompts": {"topic": ""}}):
        with pytest.raises((SelectionError, PromptUpdateError)) as refused:
            at.evaluate(**attempt)
        answers.append(str(refused.value))
    assert (answers[1]["score"], answers[1]["error_count"]) == (0.0, 4)
    assert "4 with an error" in answers[1]["summary_line"]
    for told in (*answers, at.events, [r.getMessage() for r in caplog.records if r.name.startswith("rlmoptimizer")]):
        assert toy.SECRET not in repr(told)
    assert any(toy.SECRET in repr(result) for result in at.store.examples("r2"))  # the host keeps it


@contextlib.contextmanager
def val_held(path: Path, **options: Any) -> Iterator[tuple[Desk, Callable[[], Future[Any]], Callable[[], None]]]:
    """A desk; what begins a run on val that is held at its second example; and what lets it go on."""
    entered, go = threading.Event(), threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if "one word" in question.instructions and question.inputs["message"].startswith(f"{toy.SECRET} message 1 "):
            entered.set()
            assert go.wait(60)
        return toy.respond(question)

    with desk(path, lm=field_lm(respond), threads=1, **options) as at, ThreadPoolExecutor(80) as pool:

        def begin() -> Future[Any]:
            running = pool.submit(at.evaluate, "val", prompts={"topic": toy.FIX})
            assert entered.wait(60)
            return running

        try:
            yield at, begin, go.set
        finally:
            go.set()


def test_while_val_runs_every_other_call_waits_for_its_end(tmp_path: Path) -> None:
    with val_held(tmp_path) as (at, begin, go), ThreadPoolExecutor(80) as pool:
        running = begin()
        ended: list[str] = []

        def ask(sent: Callable[[], object]) -> None:
            sent()
            ended.append("other")

        def send(prompt: str) -> None:
            with at.meter.asking():
                ended.append(prompt)

        calls: list[Callable[[], object]] = [
            lambda: at.evaluate(limit=1),
            lambda: at.evaluate("val"),
            lambda: at.bench.tools.run_data("r1"),
            lambda: at.bench.tools.update_prompt("reply", "Answer."),
            lambda: at.bench.tools.optimization_status(),
            lambda: at.meter.reserve(1),
            lambda: send("a prompt"),
            lambda: at.bench.gate.wait_quiet(),
            *[lambda: at.bench.tools.optimization_status()] * 56,
        ]
        running.add_done_callback(lambda _: ended.append("val"))
        waiting = [pool.submit(ask, call) for call in calls]
        assert wait(waiting, timeout=0.3).done == set()
        assert at.ledger.state().reserved == 3  # nothing else has begun
        go()
        for call in waiting:
            call.result(60)
        assert running.result(60)["passed_count"] == 4
        assert [run.split for run in at.store.runs()[2:]].count("val") == 2


def test_a_val_run_begins_when_the_calls_before_it_have_ended(tmp_path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def prompt() -> None:
        with at.meter.asking():
            entered.set()
            assert go.wait(60)

    with desk(tmp_path) as at, ThreadPoolExecutor(3) as pool:
        asking = pool.submit(prompt)
        assert entered.wait(60)
        running = pool.submit(at.evaluate, "val")
        behind = pool.submit(at.bench.tools.optimization_status)
        assert wait([running, behind], timeout=0.3).done == set()
        assert len(at.store.runs()) == 2
        go.set()
        asking.result(60)
        assert running.result(60)["evaluated_count"] == 4
        assert behind.result(60)["runs"][-1]["split"] == "val"


def test_a_val_run_comes_to_its_end_when_its_kernel_dies_and_its_answer_can_be_asked_for_again(tmp_path: Path) -> None:
    with val_held(tmp_path) as (at, begin, go), ThreadPoolExecutor(2) as pool:
        running = begin()
        waiting = pool.submit(at.evaluate, "val")  # of the same kernel, and not begun
        at.bench.turns.kernel_died()
        [line] = map(cut_line, at.bench.turns.cut_runs())
        assert line == (
            "run r3 on val goes on to its end: the same call of evaluate_program waits for it and has its answer, for "
            "nothing"
        )
        with pytest.raises(OptimizationStopped):
            waiting.result(60)
        again = pool.submit(at.evaluate, "val", prompts={"topic": toy.FIX})
        assert wait([again], timeout=0.3).done == set()
        go()
        told = again.result(60)
        assert (told["run_id"], told["score"], told["passed_count"], told["remaining_budget"]) == ("r3", 100.0, 4, 96)
        running.result(60)
        assert len(at.store.runs()) == 3
        assert at.evaluate("val", prompts={"topic": toy.FIX})["run_id"] == "r4"  # the agent had the answer


def test_the_answer_of_a_val_run_that_outlived_its_turn_can_be_asked_for_again(tmp_path: Path) -> None:
    with val_held(tmp_path) as (at, begin, go):
        running = begin()
        at.bench.accounts.store.begin_iteration("interrupted")
        at.bench.turns.record("", "interrupted", "", 0.0)  # whoever waited was interrupted with the cell
        go()
        running.result(60)
        for _ in range(2):
            at.bench.accounts.store.begin_iteration("look")
            assert at.bench.tools.optimization_status()["latest_run_id"] == "r3"
            at.bench.turns.record("", "look", "", 0.0)
        assert at.evaluate("val", prompts={"topic": toy.FIX})["run_id"] == "r3"
        assert at.ledger.spent == 4
        at.bench.turns.record("", "asked", "", 0.0)
        assert at.evaluate("val", prompts={"topic": toy.FIX})["run_id"] == "r4"


def test_the_answer_of_a_val_run_that_began_after_the_turn_that_asked_for_it_can_be_asked_for(tmp_path: Path) -> None:
    entered, go = threading.Event(), threading.Event()

    def prompt() -> None:
        with at.meter.asking():
            entered.set()
            assert go.wait(60)

    with desk(tmp_path) as at, ThreadPoolExecutor(2) as pool:
        asking = pool.submit(prompt)
        assert entered.wait(60)
        running = pool.submit(at.evaluate, "val")
        assert wait([running], timeout=0.3).done == set()
        at.bench.turns.record("", "interrupted", "", 0.0)  # with whoever waited
        go.set()
        asking.result(60)
        running.result(60)
        assert at.evaluate("val")["run_id"] == "r3"
        assert at.ledger.spent == 4
        assert at.evaluate("val")["run_id"] == "r4"


def test_a_val_run_that_has_begun_ends_after_the_agent_and_one_that_waits_does_not_begin(tmp_path: Path) -> None:
    with val_held(tmp_path) as (at, begin, go), ThreadPoolExecutor(2) as pool:
        running = begin()
        waiting = pool.submit(at.evaluate, "val")
        assert wait([waiting], timeout=0.3).done == set()
        at.bench.gate.close()
        with pytest.raises(OptimizationStopped):
            waiting.result(60)
        idle = pool.submit(at.bench.gate.wait_empty, 0.0)
        assert wait([idle], timeout=0.3).done == set()
        go()
        idle.result(60)
        with pytest.raises(OptimizationStopped):
            running.result(60)
        assert [(run.state, run.evaluated_count) for run in at.store.runs()[2:]] == [("finished", 4)]


def test_a_val_run_that_is_stopped_from_outside_is_whole_before_the_agent_is_told_anything(tmp_path: Path) -> None:
    with val_held(tmp_path) as (at, begin, go):
        running = begin()
        at.bench.gate.stop()
        go()
        with pytest.raises(OptimizationStopped):
            running.result(60)
        assert [(run.state, run.evaluated_count) for run in at.store.runs()[2:]] == [("cancelled", 2)]
    with desk(tmp_path, again=True) as at:
        assert [run["run_id"] for run in at.bench.tools.optimization_status()["runs"]] == ["r1", "r2"]
        with pytest.raises(SelectionError, match="whole or not at all"):
            at.bench.tools.run_data("r3")
        at.finish_val_runs()
        assert at.bench.tools.run_data("r3")["passed_count"] == 4
        assert at.ledger.spent == 4
        answer = at.evaluate("val", prompts={"topic": toy.FIX})
        assert (answer["run_id"], answer["remaining_budget"]) == ("r3", 96)


def test_a_val_run_whose_rest_cannot_be_paid_is_not_told(tmp_path: Path) -> None:
    with val_held(tmp_path, budget=5) as (at, begin, go):
        running = begin()
        at.bench.gate.stop()
        go()
        with pytest.raises(OptimizationStopped):
            running.result(60)
        at.ledger.charge(2, "llm_query")
    with desk(tmp_path, again=True, budget=5) as at:
        at.finish_val_runs()
        assert [run["run_id"] for run in at.bench.tools.optimization_status()["runs"]] == ["r1", "r2"]
        assert at.ledger.left == 1


def test_a_val_run_in_which_the_money_ends_tells_nothing_and_nothing_is_told_after_it(tmp_path: Path) -> None:
    costs = CostLedger(1.0)

    def respond(question: Asked) -> dict[str, object]:
        if "one word" in question.instructions and question.inputs["message"].startswith(f"{toy.SECRET} message 1 "):
            costs.record(LMCall("eval", "m", "answered", 1, 1, 2 * 10**12))
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond), threads=1, costs=costs) as at:
        at.meter._usage.ledger = costs  # pyright: ignore[reportPrivateUsage]
        said: set[str] = set()
        for call in (
            lambda: at.evaluate("val", prompts={"topic": toy.FIX}),
            lambda: at.evaluate(limit=1),
            lambda: at.bench.tools.run_data("r3"),
            lambda: at.bench.tools.optimization_status(),
            lambda: at.bench.tools.update_prompt("topic", "x"),
            lambda: at.meter.reserve(10**6),
        ):
            with pytest.raises(CostExceededError) as refused:
                call()
            said.add(str(refused.value))
        assert said == {"max_cost_usd is used up; no more of it can be paid; submit what is best so far"}
        assert at.bench.submission.prompts_in({"optimized_dspy_program": {"topic": "a", "reply": "b"}})
        assert at.store.run("r3").evaluated_count == 2


def test_a_val_run_that_does_not_fit_says_that_val_is_always_whole(tmp_path: Path) -> None:
    with desk(tmp_path, budget=3) as at:
        with pytest.raises(BudgetExceededError, match="val always runs whole") as refused:
            at.evaluate("val")
        assert (refused.value.asked, refused.value.left) == (4, 3)
        assert at.ledger.left == 3


def test_without_a_validation_set_asking_for_val_says_so(tmp_path: Path) -> None:
    with desk(tmp_path, val=None) as at, pytest.raises(SelectionError, match="no validation set"):
        at.evaluate("val")


# reading back


def test_run_data_is_what_the_evaluation_returned_and_costs_nothing(at: Desk) -> None:
    for returned in (at.evaluate(ids="1-3"), at.evaluate("val"), at.evaluate(prompts={"topic": "explode"})):
        read = at.bench.tools.run_data(returned["run_id"])
        assert set(read) == RESULT_KEYS - {"remaining_budget"}
        assert "budget" not in read["summary_line"]
        same = RESULT_KEYS - {"remaining_budget", "summary_line"}
        assert {key: read[key] for key in same} == {key: returned[key] for key in same}
    assert at.ledger.spent == 3 + 4 + 6


@pytest.mark.parametrize(
    ("ids", "given"),
    [(None, ["2", "3", "5"]), ("2", ["2"]), ("1-4", ["2", "3"]), ([5, "2"], ["2", "5"]), (3.0, ["3"])],
)
def test_run_data_gives_the_rows_of_some_examples(at: Desk, ids: Any, given: list[str]) -> None:
    run = at.evaluate(ids="2,3,5")
    read = at.bench.tools.run_data(run["run_id"], ids)
    assert read["examples"] == [row for row in run["examples"] if row["example_id"] in given]
    assert (read["score"], read["evaluated_count"]) == (run["score"], 3)  # of the whole run
    assert at.ledger.spent == 3


@pytest.mark.parametrize(
    ("run_id", "ids", "reason"),
    [
        ("r3", "1,4", "run r3 has none of these examples; it has 2,3,5"),
        ("r3", "7", "no such example ids: 7; the ids are 1-6"),
        ("r3", "x", '"3,7,12", "10-20"'),
        ("r3", "", "selects nothing"),
        ("r2", "1", "run r2 is on val, whose examples are not shown; call run_data without ids"),
        ("r9", "1", "r1, r2, r3"),
    ],
)
def test_examples_that_a_run_does_not_show_are_refused(at: Desk, run_id: str, ids: Any, reason: str) -> None:
    at.evaluate(ids="2,3,5")
    with pytest.raises(AgentError, match=re.escape(reason)):
        at.bench.tools.run_data(run_id, ids)


def test_the_agent_cannot_know_of_runs_on_the_test_set(at: Desk) -> None:
    run_id = at.store.begin_run("test", {}, at.bench.prompts.original, planned_ids=["1"])
    at.store.append(run_id, stored_runs.result("1", 0.0, feedback=toy.SECRET))
    at.store.finish_run(run_id)
    refusals: list[str] = []
    for ask in (
        lambda: at.bench.tools.run_data(run_id),
        lambda: at.bench.tools.run_data(run_id, "1"),
        lambda: at.evaluate(failed_from_run=run_id),
    ):
        with pytest.raises(UnknownRunError, match=r"there is no run 'r3'; the runs are r1, r2$") as refused:
            ask()
        refusals.append(str(refused.value))
    for split in ("test", " TEST", "validation"):
        with pytest.raises(SelectionError, match=r'split must be "train" or "val", got'):
            at.evaluate(split)
    status = at.bench.tools.optimization_status()
    assert (status["latest_run_id"], [run["run_id"] for run in status["runs"]]) == ("r2", ["r1", "r2"])
    assert at.evaluate(ids="1", reuse=True)["reused_count"] == 1  # the baseline's
    assert toy.SECRET not in repr([status, *refusals])


@pytest.mark.parametrize("run_id", ["r99", "", None, 1, ["r1"]])
def test_an_unknown_run_is_refused_with_the_known_ones(untouched: Desk, run_id: Any) -> None:
    with pytest.raises(UnknownRunError, match="r1, r2"):
        untouched.bench.tools.run_data(run_id)


def test_the_status_says_where_the_optimization_stands(at: Desk) -> None:
    at.evaluate(ids="1")
    at.evaluate("val", prompts={"topic": toy.FIX})
    at.meter.reserve(2)
    status = at.bench.tools.optimization_status()
    assert (status["budget"], status["spent_budget"], status["remaining_budget"]) == (100, 7, 93)
    assert (status["evaluated_examples"], status["sub_lm_calls"], status["num_threads"]) == (5, 2, 4)
    assert (status["best_score"], status["best_run_id"], status["latest_run_id"]) == (100.0, "r4", "r4")
    assert (status["baseline_run_id"], status["baseline_val_run_id"]) == ("r1", "r2")
    assert status["steps"] == ["topic", "reply"]
    assert status["best_prompts"]["topic"] == toy.FIX
    assert status["current_prompts"]["topic"] != toy.FIX
    assert [run["run_id"] for run in status["runs"]] == ["r1", "r2", "r3", "r4"]
    assert status["runs"][2] == {
        "run_id": "r3",
        "split": "train",
        "score": 100.0,
        "standard_error": None,
        "evaluated_count": 1,
        "passed_count": 1,
        "error_count": 0,
    }
    assert status["runs"][1]["standard_error"] == 28.87


def test_best_is_by_val_and_the_first_of_equals(at: Desk) -> None:
    at.evaluate(prompts={"topic": toy.FIX})  # train does not count
    assert at.bench.tools.optimization_status()["best_run_id"] == "r2"
    at.evaluate("val", prompts={"topic": toy.FIX})
    at.evaluate("val", prompts={"topic": toy.FIX, "reply": "Answer well by the topic."})
    assert at.bench.tools.optimization_status()["best_run_id"] == "r4"


def test_best_without_a_validation_set_is_by_the_whole_of_train(tmp_path: Path) -> None:
    with desk(tmp_path, val=None) as at:
        at.evaluate(ids="1", prompts={"reply": "Answer briefly by the topic."})  # 100, but of one example
        assert at.bench.tools.optimization_status()["best_run_id"] == "r1"
        at.evaluate(prompts={"topic": toy.FIX})
        assert at.bench.tools.optimization_status()["best_run_id"] == "r3"


# budget


def test_a_request_that_does_not_fit_is_refused_whole_and_says_what_would(tmp_path: Path) -> None:
    with desk(tmp_path, budget=4) as at:
        with pytest.raises(BudgetExceededError, match="limit of 4") as refused:
            at.evaluate()
        assert (refused.value.asked, refused.value.left) == (6, 4)
        assert (at.ledger.spent, at.ledger.left) == (0, 4)
        assert at.evaluate(limit=4)["remaining_budget"] == 0
        with pytest.raises(BudgetExceededError, match="submit"):
            at.evaluate(limit=1)
        assert at.bench.tools.run_data("r3")["evaluated_count"] == 4


def test_the_baseline_is_free_and_stored(tmp_path: Path) -> None:
    with desk(tmp_path, budget=0) as at:
        records = at.store.runs()
        assert [(record.run_id, record.split, record.baseline) for record in records] == [
            ("r1", "train", True),
            ("r2", "val", True),
        ]
        assert at.ledger.state().spent == 0


def test_sixty_four_threads_at_the_last_unit_spend_exactly_one(tmp_path: Path) -> None:
    with desk(tmp_path, budget=1, threads=2) as at:
        start = threading.Barrier(64)

        def grab(number: int) -> bool:
            start.wait(30)
            try:
                if number % 2:
                    at.meter.reserve(1)
                else:
                    at.evaluate(ids=str(number % 6 + 1))
            except BudgetExceededError:
                return False
            return True

        with ThreadPoolExecutor(64) as pool:
            won = list(pool.map(grab, range(64)))
        assert sum(won) == 1
        state = at.ledger.state()
        assert (state.spent, state.reserved, state.left) == (1, 0, 0)
        assert sum(charge.amount for charge in at.store.charges()) == 1


def test_sub_lm_prompts_are_held_to_the_ceiling_and_the_budget_and_refused_whole(tmp_path: Path) -> None:
    with desk(tmp_path, budget=5, ceiling=3) as at:
        with pytest.raises(BudgetExceededError, match="rlm_max_llm_calls"):
            at.meter.reserve(4)
        at.meter.reserve(2)
        at.evaluate(limit=3)
        with pytest.raises(BudgetExceededError, match="submit"):
            at.meter.reserve(1)
        assert (at.meter.calls, at.ledger.spent) == (2, 5)  # the refused one took no place under the ceiling


# the end


def test_after_cancel_no_call_of_the_agent_does_anything(at: Desk) -> None:
    at.bench.gate.close()
    for call in (
        lambda: at.evaluate(),
        lambda: at.bench.tools.update_prompt("topic", "x"),
        lambda: at.bench.tools.run_data("r1"),
        lambda: at.bench.tools.optimization_status(),
    ):
        with pytest.raises(OptimizationStopped):
            call()
    with pytest.raises(OptimizationStopped):
        at.meter.reserve(1)
    assert at.ledger.spent == 0


def test_an_evaluation_that_is_cancelled_pays_for_what_it_ran_and_gives_the_rest_back(tmp_path: Path) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(question: Any) -> dict[str, object]:
        if question.outputs == ("topic",) and gated.is_set():
            entered.set()
            gate.wait(30)
        return toy.respond(question)

    gated = threading.Event()
    with desk(tmp_path, lm=field_lm(slow), threads=2) as at:
        gated.set()
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(at.evaluate)
            assert entered.wait(30)
            with pytest.raises(SelectionError, match="still being evaluated"):
                at.bench.tools.run_data("r3")
            at.bench.gate.close()
            gate.set()
            with pytest.raises(OptimizationStopped):
                running.result(30)
        at.bench.gate.wait_empty(10)
        record = at.store.run("r3")
        assert record.state == "cancelled"
        state = at.ledger.state()
        assert state.spent == record.evaluated_count == len(at.store.examples("r3")) <= 2
        assert (state.reserved, state.left) == (0, 100 - state.spent)
        assert record.budget_left == state.left


def test_what_is_not_the_agents_to_mend_is_kept_for_the_caller_and_not_told(at: Desk) -> None:
    at.store.close()
    with pytest.raises(OptimizationStopped) as told:
        at.bench.tools.optimization_status()
    assert "sqlite" not in str(told.value).lower()
    assert str(at.store.path) not in str(told.value)
    assert at.bench.gate.failure is not None
    with pytest.raises(OptimizationStopped):
        at.bench.tools.run_data("r1")


# submission


def test_a_store_that_fails_under_a_prompt_to_the_sub_lm_is_kept_for_the_caller_and_not_told(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def charge(amount: int, purpose: str) -> None:
        raise StoreCorrupt("/the/secret/path", "the disk is full")

    monkeypatch.setattr(at.store, "charge", charge)
    tools = checked_llm_tools(lambda prompt: "heard", at.meter.reserve, at.bench.gate.turn)
    for call in (lambda: tools["llm_query"]("x"), lambda: tools["llm_query_batched"](["x"]), lambda: at.evaluate()):
        with pytest.raises(OptimizationStopped) as told:
            call()
        assert "secret" not in str(told.value)
    assert isinstance(at.bench.gate.failure, StoreCorrupt)


def test_a_submission_with_every_step_is_taken_in_the_programs_order(at: Desk) -> None:
    prompts = at.bench.submission.prompts_in({"optimized_dspy_program": {"reply": "b", "topic": "a"}})
    assert list(prompts.items()) == [("topic", "a"), ("reply", "b")]


@pytest.mark.parametrize(
    ("submitted", "said"),
    [
        (None, "dict"),
        ("topic", "dict"),
        (["topic"], "dict"),
        ({}, "'topic', 'reply'"),
        ({"topic": "a"}, "no prompt for 'reply'"),
        ({"topic": "a", "reply": "b", "third": "c"}, "no such step: 'third'"),
        ({"topic": "a", "reply": ""}, "'reply' is empty"),
        ({"topic": "a", "reply": " \n"}, "'reply' is empty"),
        ({"topic": "a", "reply": None}, "must be a string, got NoneType"),
        ({"topic": 1, "reply": "b"}, "must be a string, got int"),
        ({"topic": "a", "reply": "b\ud800"}, "'reply' cannot be used"),
    ],
)
def test_a_submission_that_is_not_complete_is_refused_with_all_that_is_wrong(
    untouched: Desk, submitted: Any, said: str
) -> None:
    with pytest.raises(SubmissionError, match=said):
        untouched.bench.submission.prompts_in({"optimized_dspy_program": submitted})


# events


def test_an_evaluation_is_told_from_its_first_example_to_its_last(at: Desk) -> None:
    at.evaluate(ids="1-3")
    started, *scored, finished = at.events
    assert started == EvaluationStarted("r3", "train", 3, baseline=False)
    counts = [(event.done, event.total) for event in scored if isinstance(event, ExamplesScored)]
    assert len(counts) == len(scored)
    assert counts == sorted(set(counts))
    assert counts[-1] == (3, 3)
    assert finished == EvaluationFinished("r3", "train", 3, 3, passed=2, score=pytest.approx(2 / 3), left=97)


def test_a_metric_that_always_raises_ends_the_baseline_with_its_traceback(tmp_path: Path) -> None:
    def broken(gold: Any, prediction: Any) -> float:
        raise LookupError("no such label")

    from rlmoptimizer import MetricFailed

    with pytest.raises(MetricFailed, match="no such label"), desk(tmp_path, metric=broken):
        pass


def test_a_student_without_steps_is_no_workbench(tmp_path: Path) -> None:
    class Empty(dspy.Module):
        def forward(self) -> None: ...

    from rlmoptimizer.task.program import check_program

    with pytest.raises(InvalidSetup):
        check_program(Empty())


def test_samples_that_are_asked_for_again_after_the_process_ended_are_the_same_and_so_are_those_that_follow(
    tmp_path: Path,
) -> None:
    def sample(at: Desk) -> list[str]:
        return [row["example_id"] for row in at.evaluate(limit=3, sample="random")["examples"]]

    with desk(tmp_path / "undisturbed", train=20) as at:
        undisturbed = [sample(at) for _ in range(4)]
    assert len(set(map(str, undisturbed))) > 2
    for done in range(4):
        path = tmp_path / f"ended after {done}"
        with desk(path, train=20) as at:  # the turn was never recorded, so nobody has these answers
            assert [sample(at) for _ in range(done)] == undisturbed[:done]
        with desk(path, train=20, again=True, baseline=False) as at:
            assert [sample(at) for _ in range(4)] == undisturbed
            assert at.ledger.spent == 4 * 3


class Stray(toy.Triage):
    """Calls its second step in a thread to which DSPy's settings are not handed on."""

    def forward(self, message: str) -> dspy.Prediction:
        topic = self.topic(message=message).topic
        with ThreadPoolExecutor(1) as pool, contextlib.suppress(ValueError):  # no LM is configured
            pool.submit(self.reply, message=message, topic=topic).result()
        return dspy.Prediction(topic=topic, answer="none")


def test_the_agent_is_told_once_of_steps_that_are_not_run_by_the_evaluation_lm(tmp_path: Path) -> None:
    with desk(tmp_path, program=Stray()) as work:
        first, second = (work.evaluate(limit=1) for _ in range(2))
        assert "steps in threads of its own" in first["summary_line"]
        assert "threads" not in second["summary_line"]
        assert [step["step_name"] for step in first["examples"][0]["steps"]] == ["topic"]


# sizes


HUGE = 10**6


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda at: at.bench.tools.update_prompt("topic", "x" * 100_001), "100,001 characters, and at most 100,000"),
        (lambda at: at.bench.tools.update_prompt("topic", "x\ty" * 30_000), "once its tabs are spaces"),
        (lambda at: at.bench.tools.update_prompt("x" * HUGE, "text"), "there is no such step"),
        (lambda at: at.bench.tools.update_prompt([["x"] * HUGE], "text"), "there is no such step"),
        (lambda at: at.evaluate(prompts={"topic": "x" * HUGE}), "1,000,000 characters, and at most 100,000"),
        (lambda at: at.evaluate("val", prompts={"x" * HUGE: "text"}), "there is no such step"),
        (lambda at: at.evaluate(prompts={str(number): "x" for number in range(HUGE)}), "there is no such step"),
        (lambda at: at.evaluate(ids="1," * HUGE), "a text of 2,000,000 characters, and at most"),
        (lambda at: at.evaluate(ids=["1"] * HUGE), "more than 112"),
        (lambda at: at.evaluate(ids=[[]] * HUGE), "more than 112"),
        (lambda at: at.evaluate(ids=[["1,2,3"] * 50]), "more than 112"),
        (lambda at: at.evaluate(ids=[[[["1"]]]]), "lists of lists"),
        (lambda at: at.evaluate(ids="7 " * 50 + "9-" * 100), "is not an example id"),
        (lambda at: at.evaluate(ids=" ".join(str(7 + 2 * number) for number in range(112))), "and 82 more"),
        (lambda at: at.evaluate(ids="1" + " " * HUGE), "a text of 1,000,001 characters"),
        (lambda at: at.evaluate(ids={"x": ["y"] * HUGE}), "is not an example id"),
        (lambda at: at.evaluate(limit="1" * HUGE), "limit='111"),
        (lambda at: at.evaluate(limit=[HUGE] * HUGE), "limit="),
        (lambda at: at.evaluate(sample="x" * HUGE), "sample='xxx"),
        (lambda at: at.evaluate(sample="random", sample_seed=10**4000), "too long to print"),
        (lambda at: at.evaluate(failed_from_run="r" * HUGE), "failed_from_run='rrr"),
        (lambda at: at.evaluate("x" * HUGE), "split must be"),
        (lambda at: at.evaluate({"x" * HUGE: "y" * HUGE}), "split must be"),
        (lambda at: at.bench.tools.run_data("r" * HUGE), "there is no run"),
        (lambda at: at.bench.tools.run_data(["r"] * HUGE), "there is no run"),
    ],
)
def test_what_is_too_large_is_refused_in_few_words(untouched: Desk, call: Callable[[Desk], Any], said: str) -> None:
    with pytest.raises(AgentError, match=re.escape(said)) as refused:
        call(untouched)
    assert len(str(refused.value)) < 1500
    assert untouched.ledger.spent == 0
    assert untouched.store.path.with_name(untouched.store.path.name + "-wal").stat().st_size < 2**20


@pytest.mark.parametrize(
    ("submitted", "said"),
    [
        (lambda: {"topic": "x" * HUGE, "reply": "b"}, "1,000,000 characters, and at most 100,000"),
        (lambda: {"topic": "\t" * 90_000 + "x", "reply": "b"}, "once its tabs are spaces"),
        (lambda: {"topic": "a", "reply": "b", **{str(number): "c" for number in range(HUGE)}}, "no such step"),
        (lambda: {"topic": "a", "reply": "b", "x" * HUGE: "c"}, "no such step"),
        (lambda: ["x" * HUGE], "must be a dict"),
    ],
)
def test_a_submission_that_is_too_large_is_refused_in_few_words(
    untouched: Desk, submitted: Callable[[], Any], said: str
) -> None:
    with pytest.raises(SubmissionError, match=said) as refused:
        untouched.bench.submission.prompts_in({"optimized_dspy_program": submitted()})
    assert len(str(refused.value)) < 1500


def test_all_ids_may_be_named_twice(at: Desk) -> None:
    assert at.evaluate(ids=[*range(1, 7), *map(str, range(1, 7))])["evaluated_count"] == 6
    assert at.evaluate(ids=",".join(map(str, [*range(1, 7)] * 2)))["evaluated_count"] == 6


def test_a_students_own_prompt_may_be_longer_and_be_set_again(tmp_path: Path) -> None:
    own = "Say what the message is about. " * 5000
    student = toy.Triage()
    apply_prompts(student, {"topic": own})
    with desk(tmp_path, program=student) as at:
        own = at.bench.tools.optimization_status()["current_prompts"]["topic"]
        assert at.bench.tools.update_prompt("topic", toy.FIX)["changed"]
        assert at.bench.tools.update_prompt("topic", own)["changed"]
        assert at.bench.submission.prompts_in({"optimized_dspy_program": {"topic": own, "reply": "b"}})["topic"] == own


def test_setting_prompts_makes_the_store_no_larger_than_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_prompts, "_MOST_PROMPT_BYTES", 50_000)
    monkeypatch.setattr(current_prompts, "_MOST_UPDATES", 30)
    first, second = "a" * 10_000, "b" * 10_000
    with desk(tmp_path, baseline=False) as at:
        for _ in range(10):
            for text in (first, second):
                for _ in range(20):
                    assert at.bench.tools.update_prompt("topic", text)["step"] == "topic"
        assert at.store.prompts_set()[0] == 21
        for number in range(3):
            at.bench.tools.update_prompt("topic", str(number) * 10_000)
        with pytest.raises(PromptUpdateError, match="no more"):
            at.bench.tools.update_prompt("topic", "c" * 10_000)
        assert at.bench.tools.optimization_status()["current_prompts"]["topic"] == "2" * 10_000
    with desk(tmp_path, again=True, baseline=False) as at, pytest.raises(PromptUpdateError, match="no more"):
        at.bench.tools.update_prompt("topic", "c" * 10_000)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 200_000  # 135,000 when this was written


def test_evaluations_that_cost_nothing_make_the_store_no_larger_than_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_MOST_FREE_BYTES", 500_000)
    works = threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if len(question.instructions) > 1000 and not works.is_set():
            raise dspy.LMTimeoutError("no answer")
        return toy.respond(question)

    def ask(at: Desk, number: int) -> Any:
        return at.evaluate(limit=1, prompts={"topic": str(number) * 100_000})

    with desk(tmp_path, lm=field_lm(respond), baseline=False) as at:
        for number in range(5):
            with pytest.raises(LMUnavailable):
                ask(at, number)
        for _ in range(2):
            with pytest.raises(SelectionError, match=r"5 evaluations came to no verdict.* cost nothing"):
                ask(at, 6)
            with pytest.raises(LMUnavailable):  # its run is there
                ask(at, 4)
        assert at.ledger.left == 100
    with desk(tmp_path, lm=field_lm(respond), baseline=False, again=True) as at:
        with pytest.raises(SelectionError, match="cost nothing"):
            ask(at, 6)
        works.set()
        assert ask(at, 4)["evaluated_count"] == ask(at, 6)["evaluated_count"] == 1
        assert at.ledger.left == 98
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 4_000_000


def test_prompts_to_the_sub_lm_that_are_too_long_or_too_many_are_refused_before_they_are_paid() -> None:
    paid: list[int] = []
    tools = checked_llm_tools(lambda prompt: "heard", paid.append)
    for call in (
        lambda: tools["llm_query"]("x" * (HUGE + 1)),
        lambda: tools["llm_query_batched"](["x", "y" * (HUGE + 1)]),
        lambda: tools["llm_query_batched"](["x"] * 1001),
    ):
        with pytest.raises(ValueError, match=r"at most 1,0.* nothing was spent"):
            call()
    assert paid == []


def test_what_costs_an_agent_nothing_leaves_few_and_small_events(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        record = observers._recorder(store)  # pyright: ignore[reportPrivateUsage]
        record(PromptUpdated("topic", "a" * HUGE, "b" * HUGE))
        for _ in range(1010):
            record(SubmissionRefused("why"))
        events = store.events()
        assert [event.data for event in events][:2] == [{"step": "topic"}, {"reason": "why"}]
        assert len(events) == 1001
