"""`evaluate_program(repeats=...)`: each example several times, as rollouts that are told apart, paid one by one."""

from __future__ import annotations

import math
import statistics
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer import BudgetExceededError, SelectionError
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.events import EvaluationFinished, EvaluationStarted, Event, ExamplesScored
from rlmoptimizer.records import rollouts_of
from rlmoptimizer.task.dataset import build_dataset

FIXED = {"topic": toy.FIX}


class Noise:
    """An eval LM whose answer to one message differs from time to time.

    `wrong` has a message's number and the rollouts in which it is answered wrongly, "fails" those in which the LM
    cannot be reached. It answers the fixed prompt only, and counts whole runs of the program.
    """

    def __init__(self, wrong: dict[int, set[int]] | None = None, fails: dict[int, set[int]] | None = None) -> None:
        self.wrong = wrong or {}
        self.fails = fails or {}
        self.order: list[int] = []  # numbers of messages, as the program was run on them
        self._lock = threading.Lock()
        self._asked: Counter[int] = Counter()
        self.lm = field_lm(self._respond, "noisy")

    def _respond(self, question: Asked) -> dict[str, object]:
        if question.outputs == ("topic",):
            return toy.respond(question)
        number = int(question.inputs["message"].removeprefix(f"{toy.SECRET} ").split()[1])
        with self._lock:
            rollout = self._asked[number]
            self._asked[number] += 1
            self.order.append(number)
        if rollout in self.fails.get(number, ()):
            raise dspy.LMTimeoutError("no answer")
        return {"answer": f"wrong {rollout}"} if rollout in self.wrong.get(number, ()) else toy.respond(question)


class Paced(Noise):
    """Answers on a message once it was told that the one before is scored. For one thread."""

    def __init__(self) -> None:
        super().__init__()
        self._may_answer = threading.Semaphore(1)

    def hear(self, event: Event) -> None:
        if isinstance(event, ExamplesScored):
            self._may_answer.release()

    def _respond(self, question: Asked) -> dict[str, object]:
        if question.outputs == ("topic",):
            assert self._may_answer.acquire(timeout=60)
        return super()._respond(question)


def ids_of(run: dict[str, Any]) -> list[str]:
    return [row["example_id"] for row in run["examples"]]


def test_an_example_that_is_repeated_has_one_row_with_its_scores_and_shows_its_worst(tmp_path: Path) -> None:
    noise = Noise({1: {1}, 3: {0, 1, 2}, 4: {2}})
    with desk(tmp_path, lm=noise.lm, threads=1, baseline=False) as at:
        run = at.evaluate(prompts=FIXED, repeats=3)
        assert ids_of(run) == ["1", "2", "3", "4", "5", "6"]
        scores = [row["scores"] for row in run["examples"]]
        assert scores == [[1.0] * 3, [1.0, 0.0, 1.0], [1.0] * 3, [0.0] * 3, [1.0, 1.0, 0.0], [1.0] * 3]
        means = [sum(some) / 3 for some in scores]
        assert [row["score"] for row in run["examples"]] == pytest.approx(means)
        assert [row["passed"] for row in run["examples"]] == [True, False, True, False, False, True]
        shown = [row["predicted"]["answer"] for row in run["examples"]]
        assert (shown[1], shown[3], shown[4]) == ("wrong 1", "wrong 0", "wrong 2")
        assert run["examples"][1]["steps"][1]["outputs"] == {"answer": "wrong 1"}
        assert run["examples"][4]["feedback"].startswith("expected")
        assert run["score"] == round(100 * sum(means) / 6, 2)
        assert run["standard_error"] == round(100 * statistics.stdev(means) / math.sqrt(6), 2)
        assert (run["evaluated_count"], run["passed_count"], run["error_count"], run["repeats"]) == (6, 3, 0, 3)
        assert run["remaining_budget"] == 100 - 18
        assert "6 passed; each example 3 times, it passed when it did every time" in run["summary_line"]
        assert at.bench.tools.run_data(run["run_id"])["examples"] == run["examples"]
        assert run["config"]["repeats"] == 3


def test_examples_are_repeated_in_rounds_all_of_them_once_and_then_again(tmp_path: Path) -> None:
    noise = Paced()
    with desk(tmp_path, lm=noise.lm, threads=1, baseline=False, callbacks=[noise.hear]) as at:
        at.evaluate(prompts=FIXED, ids="2-4", repeats=3)
        assert noise.order == [1, 2, 3] * 3
        started, *scored, finished = at.events
        assert isinstance(started, EvaluationStarted)
        assert isinstance(finished, EvaluationFinished)
        assert (started.total, finished.done, finished.total, finished.passed) == (9, 9, 9, 9)
        assert [event.done for event in scored if isinstance(event, ExamplesScored)] == list(range(1, 10))


def test_once_is_what_it_was(tmp_path: Path) -> None:
    with desk(tmp_path, baseline=False) as at:
        run = at.evaluate(ids="1", repeats=None)
        assert not {"scores", "reused", "objectives"} & set(run["examples"][0])
        assert "repeats" not in run
        assert run["config"]["repeats"] == 1


@pytest.mark.parametrize("repeats", [2, 2.0, "2", " 2 "])
def test_a_number_may_come_as_a_text_or_a_float(tmp_path: Path, repeats: Any) -> None:
    with desk(tmp_path, baseline=False) as at:
        assert at.evaluate(ids="1", repeats=repeats)["remaining_budget"] == 98


@pytest.mark.parametrize("repeats", [0, -1, 101, 1.5, "many", True, [2], 10**4000])
def test_a_number_that_makes_no_sense_is_refused_with_those_that_do(tmp_path: Path, repeats: Any) -> None:
    with desk(tmp_path, baseline=False) as at:
        with pytest.raises(SelectionError, match=r"repeats=.* is not valid; pass a whole number from 1 to 100"):
            at.evaluate(repeats=repeats)
        assert (at.ledger.spent, at.store.runs()) == (0, [])


def test_what_does_not_fit_is_refused_whole_and_says_what_would(tmp_path: Path) -> None:
    with desk(tmp_path, budget=11, baseline=False) as at:
        with pytest.raises(BudgetExceededError, match=r"asked for 12 units, 11 left; repeats=2 makes .* limit of 5"):
            at.evaluate(repeats=2)
        with pytest.raises(BudgetExceededError, match="repeats=20 makes each example cost 20; pass fewer repeats"):
            at.evaluate(limit=1, repeats=20)
        with pytest.raises(BudgetExceededError, match="repeats=3 runs the whole of val 3 times; pass fewer"):
            at.evaluate("val", repeats=3)
        assert (at.ledger.spent, at.store.runs()) == (0, [])


def test_val_is_repeated_whole_and_tells_totals_only(tmp_path: Path) -> None:
    noise = Noise({2: {1}})
    with desk(tmp_path, lm=noise.lm, baseline=False) as at:
        run = at.evaluate("val", repeats=2, prompts=FIXED)
        assert (run["score"], run["evaluated_count"], run["passed_count"]) == (87.5, 4, 3)
        assert (run["standard_error"], run["error_count"], run["examples"]) == (12.5, 0, [])
        assert run["remaining_budget"] == 92
        assert sorted(noise.order) == [0, 0, 1, 1, 2, 2, 3, 3]
        listed = at.bench.tools.optimization_status()
        assert listed["runs"][-1] == {key: run[key] for key in listed["runs"][-1]}
        assert listed["best_run_id"] == run["run_id"]
        for told in (run, listed, at.bench.tools.run_data(run["run_id"]), at.events):
            assert toy.SECRET not in repr(told)
            assert "scores" not in repr(told)


def test_an_example_failed_when_it_did_not_pass_every_time(tmp_path: Path) -> None:
    noise = Noise({1: {1}, 4: {0}})
    with desk(tmp_path, lm=noise.lm, baseline=False) as at:
        run = at.evaluate(prompts=FIXED, repeats=2)
        assert ids_of(at.evaluate(failed_from_run=run["run_id"])) == ["2", "5"]


def test_an_lm_that_fails_in_some_rollouts_costs_these_their_verdict_and_nothing_else(tmp_path: Path) -> None:
    noise = Noise(wrong={0: {1}}, fails={1: {0}, 2: {0, 1}})
    with desk(tmp_path, lm=noise.lm, threads=1, baseline=False) as at:
        run = at.evaluate(prompts=FIXED, ids="1-3", repeats=2)
        # The topic was answered in each, so each is paid; example 2 has one verdict, example 3 none.
        assert (run["evaluated_count"], run["passed_count"], run["unanswered_count"]) == (2, 1, 3)
        assert [row.get("scores") for row in run["examples"]] == [[1.0, 0.0], [1.0], None]
        assert [row.get("error_kind") for row in run["examples"]] == [None, None, "timeout"]
        assert run["score"] == 75.0
        assert at.ledger.spent == 6
        assert ids_of(at.evaluate(failed_from_run=run["run_id"], prompts={"topic": "one word"})) == ["1", "3"]
        spent = at.ledger.spent
        again = at.evaluate(prompts=FIXED, ids="1-3", repeats=2)
        assert (again["run_id"], again["evaluated_count"], at.ledger.spent) == (run["run_id"], 3, spent)
        assert [row["scores"] for row in again["examples"]] == [[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]


class Cutting(Noise):
    """Has the kernel of the agent die while the program is run for the `cut_at`-th time."""

    desk: Desk
    cut_at = 0

    def _respond(self, question: Asked) -> dict[str, object]:
        answer = super()._respond(question)
        if question.outputs != ("topic",) and len(self.order) == self.cut_at:
            self.desk.bench.runs.kernel_died()
        return answer


def test_a_run_that_was_cut_has_whole_rounds_and_goes_on_rollout_by_rollout(tmp_path: Path) -> None:
    lm = Cutting()
    with desk(tmp_path, lm=lm.lm, threads=1, baseline=False) as at:
        lm.desk, lm.cut_at = at, 5
        cut = at.evaluate(prompts=FIXED, limit=3, repeats=3)
        assert [row["scores"] for row in cut["examples"]] == [[1.0, 1.0], [1.0, 1.0], [1.0]]
        assert "stopped after 5 of 9 evaluations" in cut["summary_line"]
        assert (at.ledger.spent, at.ledger.left) == (5, 95)
        again = at.evaluate(prompts=FIXED, limit=3, repeats=3)
        assert (again["run_id"], at.ledger.spent) == (cut["run_id"], 9)
        assert lm.order == [0, 1, 2] * 3
        assert [row["scores"] for row in again["examples"]] == [[1.0] * 3] * 3


def test_a_new_run_takes_over_what_a_cut_one_has_for_the_same_rollout_only(tmp_path: Path) -> None:
    lm = Cutting()
    with desk(tmp_path, lm=lm.lm, threads=1, baseline=False) as at:
        lm.desk, lm.cut_at = at, 5
        cut = at.evaluate(prompts=FIXED, limit=3, repeats=3)
        once = at.evaluate(prompts=FIXED, limit=2)
        assert (once["run_id"], at.ledger.spent) == ("r2", 5)
        assert [row["reused"] for row in once["examples"]] == [True, True]
        assert "all of it reused from earlier runs, for nothing" in once["summary_line"]
        twice = at.evaluate(prompts=FIXED, ids="1,3", repeats=2)
        # Rollout 1 of example 1 and rollout 0 of example 3 are there; rollout 0 of example 1 is taken already.
        assert at.ledger.spent == 5 + 2
        assert twice["reused_count"] == 2
        assert "2 of 4 evaluations reused from earlier runs, for nothing" in twice["summary_line"]
        assert not any(row.get("reused") for row in twice["examples"])  # only in part
        assert at.evaluate(prompts=FIXED, limit=3, repeats=3)["run_id"] == cut["run_id"]
        assert at.ledger.spent == 7 + 4


def test_after_the_end_of_the_process_a_run_goes_on_where_it_was(tmp_path: Path) -> None:
    lm = Cutting()
    with desk(tmp_path, lm=lm.lm, threads=1, baseline=False) as at:
        lm.desk, lm.cut_at = at, 4
        run_id = at.evaluate(prompts=FIXED, limit=3, repeats=2)["run_id"]
    with desk(tmp_path, lm=lm.lm, threads=1, baseline=False, again=True) as at:
        assert at.ledger.spent == 4
        again = at.evaluate(prompts=FIXED, limit=3, repeats=2)
        assert (again["run_id"], at.ledger.spent) == (run_id, 6)
        assert lm.order == [0, 1, 2] * 2


def test_a_run_on_val_that_a_process_left_is_completed_with_all_of_its_rounds(tmp_path: Path) -> None:
    noise = Noise()
    with desk(tmp_path, lm=noise.lm, baseline=False) as at:
        rows = build_dataset(toy.trainset(), toy.valset()).val or ()
        request = Request.whole("val", rows, at.bench.prompts.with_changes(FIXED), repeats=3)
        run_id = at.store.begin_run(
            "val",
            request.config,
            request.prompts,
            planned_ids=[row.example_id for row in request.rows],
            repeats=3,
            request=request.asked,
        )
    with desk(tmp_path, lm=noise.lm, baseline=False, again=True) as at:
        at.store.cut_runs()
        at.finish_val_runs()
        record = at.store.run(run_id)
        assert (record.state, record.judged_count, record.missing_count) == ("finished", 12, 0)
        assert at.ledger.spent == 12
        assert [key for key in at.store.scores(run_id).values() if len(key) != 3] == []


def test_the_order_of_rollouts_is_that_of_the_rounds() -> None:
    assert list(rollouts_of(["a", "b"], 2)) == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
