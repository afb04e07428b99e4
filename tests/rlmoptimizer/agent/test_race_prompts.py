"""`race_prompts`: candidates on shared examples, of which those that are beaten leave early."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from child_process import forked
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer import BudgetExceededError, CostExceededError, PromptUpdateError, SelectionError
from rlmoptimizer.agent.call_gate import OptimizationStopped
from rlmoptimizer.errors import LMUnavailable
from rlmoptimizer.evaluation import runs
from rlmoptimizer.records import LMCall
from rlmoptimizer.spending.cost_ledger import CostLedger

FIELD = [None, {"topic": toy.FIX}, {"topic": "explode"}, {"reply": "Answer as the topic asks."}]
KEYS = {"index", "prompts", "score", "evaluated_count", "run_ids", "left_after"}


def raced(at: Desk, candidates: Any = FIELD, **options: Any) -> dict[str, Any]:
    return at.bench.tools.race_prompts(candidates, **options)


def told(result: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(one["index"], one["score"], one["evaluated_count"], one["left_after"]) for one in result["ranking"]]


RANKING = [(1, 100.0, 16, None), (0, 43.75, 16, 2), (3, 43.75, 16, 2), (2, 0.0, 8, 1)]


def test_who_is_beaten_leaves_and_only_what_ran_is_paid(tmp_path: Path) -> None:
    with desk(tmp_path, train=40, budget=160) as at:
        result = raced(at)
        assert set(result) == {"ranking", "remaining_budget", "summary_line"}
        assert all(set(entry) == KEYS for entry in result["ranking"])
        assert told(result) == RANKING
        assert (at.ledger.spent, at.ledger.state().reserved, result["remaining_budget"]) == (56, 0, 104)
        assert at.store.spent("evaluate") == 56
        best = result["ranking"][0]
        assert best["prompts"] == {**at.bench.prompts.original, "topic": toy.FIX}
        assert at.bench.prompts.current == at.bench.prompts.original
        assert result["summary_line"].startswith(
            "race of 4 candidates on 40 train examples: candidates[1] is best with score 100.00 on 16; "
            "against candidates[0] on 16: +56.25 points"
        )
        assert result["summary_line"].endswith("3 left early; 104 budget units left")


def test_every_round_of_a_candidate_is_a_run_on_the_same_examples(tmp_path: Path) -> None:
    with desk(tmp_path, train=40, budget=400) as at:
        ranking = {entry["index"]: entry for entry in raced(at)["ranking"]}
        runs = {index: [at.bench.tools.run_data(one) for one in entry["run_ids"]] for index, entry in ranking.items()}
        ids = {index: [[row["example_id"] for row in run["examples"]] for run in own] for index, own in runs.items()}
        assert ids[0] == ids[1] == ids[3]
        assert ids[2] == ids[0][:1]
        assert [run["config"]["race_round"] for run in runs[1]] == [1, 2]
        assert runs[1][0]["config"]["prompts"] == {"topic": toy.FIX}
        assert len({*ids[0][0], *ids[0][1]}) == 16
        again = at.evaluate(ids=runs[1][1]["config"]["ids"], prompts=ranking[1]["prompts"])
        assert [row["example_id"] for row in again["examples"]] == ids[1][1]


def test_whoever_is_not_beaten_runs_on_every_example(tmp_path: Path) -> None:
    close = [{"reply": "Answer."}, {"reply": "Answer it."}]
    with desk(tmp_path, train=20) as at:
        assert told(raced(at, close, ids="1-15")) == [(0, 53.33, 15, None), (1, 53.33, 15, None)]
        assert at.ledger.spent == 30
        sample = raced(at, close, limit=6, sample="random")
        assert [at.bench.tools.run_data(one["run_ids"][0])["evaluated_count"] for one in sample["ranking"]] == [6, 6]


def test_with_reuse_only_who_is_new_is_paid(tmp_path: Path) -> None:
    close = [{"reply": "Answer."}, {"reply": "Answer it."}]
    with desk(tmp_path, train=20, budget=45) as at:
        first = raced(at, close, ids="1-15")
        assert first["remaining_budget"] == 15
        with pytest.raises(BudgetExceededError):
            raced(at, [*close, {"reply": "Do answer."}], ids="1-15")
        again = raced(at, [*close, {"reply": "Do answer."}], ids="1-15", reuse=True)
        assert told(again) == [(0, 53.33, 15, None), (1, 53.33, 15, None), (2, 53.33, 15, None)]
        assert (at.ledger.spent, again["remaining_budget"]) == (45, 0)
        with pytest.raises(SelectionError, match="reuse='yes' is not valid; pass True or False"):
            raced(at, close, reuse="yes")


def test_a_race_that_has_begun_is_not_refused_because_much_was_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, new = {"reply": "Answer."}, {"reply": "Answer it."}
    with desk(tmp_path, train=40) as at:
        raced(at, [None, known], limit=16)
        monkeypatch.setattr(runs, "_MOST_FREE_RUNS", 1)
        assert told(raced(at, [known, new], limit=16, reuse=True)) == [(0, 50.0, 16, None), (1, 50.0, 16, None)]
        spent = at.ledger.spent
        with pytest.raises(SelectionError, match="verdicts were reused"):
            raced(at, [known, {"reply": "Do answer."}], limit=16, reuse=True)
        assert at.ledger.spent == spent


def test_as_many_are_kept_as_were_asked_for(tmp_path: Path) -> None:
    with desk(tmp_path, train=40, budget=400) as at:
        result = raced(at, keep=3)
        assert [one["left_after"] for one in result["ranking"]] == [None, None, None, 3]
        assert at.ledger.spent == 4 * 32  # the last one leaves when it is beaten by the third best


@pytest.mark.parametrize("threads", [1, 7])
def test_the_race_does_not_depend_on_the_number_of_threads(tmp_path: Path, threads: int) -> None:
    with desk(tmp_path, train=40, budget=400, threads=threads) as at:
        result = raced(at, limit=30, sample="random")
        assert told(result) == [(1, 100.0, 16, None), (0, 56.25, 16, 2), (3, 56.25, 16, 2), (2, 0.0, 8, 1)]
        assert [one["run_ids"] for one in result["ranking"]] == [["r4", "r8"], ["r3", "r7"], ["r6", "r9"], ["r5"]]


def test_candidates_run_side_by_side(tmp_path: Path) -> None:
    both = threading.Barrier(2)

    def respond(question: Asked) -> dict[str, object]:
        if question.instructions.startswith("Meet") and "message 1 " in question.inputs["message"]:
            both.wait(60)  # for the other candidate
        return toy.respond(question)

    with desk(tmp_path, train=8, lm=field_lm(respond, "eval"), baseline=False) as at:
        assert told(raced(at, [{"topic": "Meet."}, {"topic": "Meet!"}], ids="2")) == [
            (0, 0.0, 1, None),
            (1, 0.0, 1, None),
        ]


def test_a_race_whose_worst_case_does_not_fit_is_refused_whole(tmp_path: Path) -> None:
    with desk(tmp_path, train=40, budget=159) as at:
        before = len(at.store.runs())
        with pytest.raises(
            BudgetExceededError, match=r"asked for 160 units, 159 left; .* 4 candidates; pass a limit of 39"
        ):
            raced(at)
        assert (at.ledger.spent, at.ledger.left, len(at.store.runs())) == (0, 159, before)
        raced(at, limit=39)
    with desk(tmp_path / "little", budget=3) as at, pytest.raises(BudgetExceededError, match="; pass fewer candidates"):
        raced(at, limit=1)


def test_a_race_that_would_cost_too_many_dollars_is_refused_whole(tmp_path: Path) -> None:
    costs = CostLedger(1.0)
    with desk(tmp_path, train=40, budget=400, costs=costs) as at:
        costs.record(LMCall("eval", "m", "answered", 1, 1, 10**12 * 12 // 25))  # 50 examples of the baseline: 1 cent
        with pytest.raises(CostExceededError, match=r"pass a limit of|pass fewer candidates"):
            raced(at)
        assert (at.ledger.spent, at.ledger.state().reserved) == (0, 0)


def test_at_every_moment_the_budget_is_whole_and_what_is_set_aside_shrinks_as_candidates_leave(tmp_path: Path) -> None:
    reserved: dict[int, set[int]] = {}

    def metric(gold: Any, prediction: Any, trace: Any = None) -> Any:
        state = at.ledger.state()
        assert state.spent + state.reserved + (state.left or 0) == 300
        reserved.setdefault(len(at.store.runs()), set()).add(state.spent + state.reserved)
        return toy.metric(gold, prediction)

    with desk(tmp_path, train=40, budget=300, metric=metric, baseline=False) as at:
        raced(at)
        assert reserved[4] == {160}
        assert reserved[7] == {128}  # 32 for round one, and 32 for each of the three that are left


BAD: list[tuple[Any, dict[str, Any], str]] = [
    (None, {}, "must be a list"),
    ({"topic": "x"}, {}, "must be a list"),
    ("topic", {}, "must be a list"),
    ([], {}, "got 0 candidates"),
    ([{}], {}, "got 1 candidate;"),
    ([{"topic": str(number)} for number in range(33)], {}, "got 33 candidates"),
    ([None, {}], {}, r"candidates\[0\] and candidates\[1\] are the same prompts"),
    ([{"topic": "x"}, {"topic": "x\n"}], {}, "the same prompts"),
    ([None, {"topic": "x"}], {"keep": 0}, "keep=0 is not valid; .* pass 1, as two race$"),
    ([None, {"topic": "x"}], {"keep": 2}, "pass 1, as two race$"),
    ([None, {"topic": "x"}, {"topic": "y"}], {"keep": 3}, "pass a whole number from 1 to 2$"),
    ([None, {"topic": "x"}], {"keep": "many"}, "keep='many'"),
    ([None, {"topic": "x"}], {"ids": "7"}, "the ids are 1-6"),
    ([None, {"topic": "x"}], {"limit": 0}, "limit=0"),
    ([None, {"topic": "x"}], {"sample": "best"}, "sample='best'"),
]


@pytest.mark.parametrize(("candidates", "options", "said"), BAD)
def test_a_race_that_makes_no_sense_is_refused(tmp_path: Path, candidates: Any, options: Any, said: str) -> None:
    with desk(tmp_path, baseline=False) as at:
        with pytest.raises(SelectionError, match=said):
            raced(at, candidates, **options)
        assert at.store.runs() == []


@pytest.mark.parametrize(
    "wrong",
    ["text", 5, {"nobody": "x"}, {"topic": 5}, {"topic": "x" * 200_000}, {"topic": "<<CUSTOM-TYPE-START-IDENTIFIER>>"}],
)
def test_a_candidate_that_the_program_cannot_take_is_named(tmp_path: Path, wrong: Any) -> None:
    with desk(tmp_path, baseline=False, max_prompt_tokens=2000) as at:
        for candidates in ([None, wrong], [None, {"topic": "y"}, wrong]):
            with pytest.raises(PromptUpdateError, match=rf"^candidates\[{len(candidates) - 1}\] cannot be used, and n"):
                raced(at, candidates)
        with pytest.raises(PromptUpdateError, match=r"^candidates\[1\] .* step 'topic': the text has 2,250 tokens"):
            raced(at, [None, {"topic": "x" * 9000}])
        assert at.ledger.spent == 0


def test_a_candidate_on_which_the_lm_failed_is_not_beaten_by_that(tmp_path: Path) -> None:
    def respond(question: Asked) -> dict[str, object]:
        if "fail" in question.instructions:
            raise dspy.LMRateLimitError("slow down", model="m", provider="p")
        return toy.respond(question)

    with desk(tmp_path, train=12, lm=field_lm(respond, "eval"), baseline=False) as at:
        result = raced(at, [None, {"topic": "fail"}])
        assert told(result) == [(0, 50.0, 12, None), (1, None, 0, None)]
        assert at.ledger.spent == 12
        with pytest.raises(LMUnavailable, match="failed on all 8 examples"):
            raced(at, [{"topic": "fail!"}, {"topic": "fail"}])
        assert (at.ledger.spent, at.ledger.state().reserved) == (12, 0)


def test_a_kernel_that_dies_cuts_the_race_and_the_same_call_goes_on_with_it(tmp_path: Path) -> None:
    entered, held = threading.Event(), threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if question.instructions == toy.FIX and "message 3 " in question.inputs["message"] and not held.is_set():
            entered.set()
            held.wait(60)
        return toy.respond(question)

    with desk(tmp_path, train=40, budget=400, lm=field_lm(respond, "eval"), threads=2) as at:
        refused: list[BaseException] = []

        def race() -> None:
            try:
                raced(at)
            except OptimizationStopped as stopped:
                refused.append(stopped)

        thread = threading.Thread(target=race)
        thread.start()
        assert entered.wait(60)
        at.bench.turns.kernel_died()
        held.set()
        thread.join(60)
        assert len(refused) == 1
        spent = at.ledger.spent
        assert spent < 56
        assert at.ledger.state().reserved == 0
        assert told(raced(at)) == RANKING
        assert at.ledger.spent == 56


def test_a_race_again_in_a_later_turn_is_another_one(tmp_path: Path) -> None:
    with desk(tmp_path, train=40, budget=400) as at:
        first = raced(at)
        at.bench.turns.record("r", "c", "o", 0.0)
        second = raced(at)
        assert told(first) == told(second)
        assert first["ranking"][0]["run_ids"] != second["ranking"][0]["run_ids"]
        assert at.ledger.spent == 112


CHILD = """
import os, signal
from pathlib import Path
import toy
from desk import desk
from rlmoptimizer.store.run_store import RunStore

append, paid = RunStore.append, []
def killed(self, *args, **options):
    append(self, *args, **options)  # of all results that came together
    if options.get("charge") is not None:
        paid.append(options["charge"].amount)
    if sum(paid) >= NUMBER:
        os.kill(os.getpid(), signal.SIGKILL)
RunStore.append = killed
with desk(Path("PATH"), train=40, budget=160, baseline=False, threads=1) as at:
    at.bench.tools.race_prompts(CANDIDATES)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize("number", [1, 20, 33, 50])
def test_after_a_kill_the_same_call_goes_on_and_pays_nothing_twice(tmp_path: Path, number: int) -> None:
    code = CHILD.replace("NUMBER", str(number)).replace("PATH", str(tmp_path)).replace("CANDIDATES", repr(FIELD))
    with forked(code) as child:
        assert child.ended().status == -signal.SIGKILL
    with desk(tmp_path, train=40, budget=160, baseline=False, again=True) as at:
        at.store.cut_runs()
        assert number <= at.ledger.spent <= 56
        assert told(raced(at)) == RANKING
        assert (at.ledger.spent, at.ledger.state().reserved) == (56, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_what_a_cut_race_has_paid_is_not_counted_into_its_worst_case_again(tmp_path: Path) -> None:
    code = CHILD.replace("NUMBER", "30").replace("PATH", str(tmp_path)).replace("CANDIDATES", repr(FIELD))
    with forked(code) as child:
        assert child.ended().status == -signal.SIGKILL
    with desk(tmp_path, train=40, budget=160, baseline=False, again=True) as at:
        at.store.cut_runs()
        assert at.ledger.left <= 160 - 30
        assert told(raced(at)) == RANKING
