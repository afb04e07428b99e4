"""The result: every number of it follows from the run store, by other code than ours; it is plain data."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import pickle
import random
import sqlite3
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import dspy
import pytest
import stored_runs
import toy
from offline import Asked, field_lm
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of

from rlmoptimizer import InvalidSetup, OptimizationResult
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")

TURNS = [
    "evaluate_program(limit=3, prompts={'topic': 'Perhaps one word.'})",
    "evaluate_program(prompts={'topic': 'In one word.'})",
    "update_prompt('topic', 'In one word.')\nevaluate_program('val')\nupdate_prompt('reply', 'Answer.')",
    f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic.'}})",
    f"SUBMIT(optimized_dspy_program={{'topic': {toy.FIX!r}, 'reply': 'Answer.'}})",
]


def respond(question: Asked) -> dict[str, object]:
    """Right on more than before, and wrong on some: the scores of the splits have no simple values."""
    answer = toy.respond(question)
    message = question.inputs["message"]
    if question.instructions == "Answer." and message.endswith("plainly about praise"):
        return {"answer": "no"}
    marker = message.partition("message")[0]
    if "answer" in answer and marker == "wombat ":
        return {"answer": f"{marker}{answer['answer']}"}
    return answer


def metric(gold: Any, prediction: Any, trace: Any = None) -> float:
    right = prediction.answer == gold.answer
    return 1.0 if right else 0.25 if prediction.topic == gold.topic else 0.0


@pytest.fixture(scope="module")
def optimized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    directory = tmp_path_factory.mktemp("runs")
    program, _ = toy.compiled(
        TURNS,
        trainset=toy.trainset(9),
        val=12,
        testset=[toy.example(number, marker="wombat ") for number in range(20)],
        eval_lm=field_lm(respond, "eval"),
        metric=metric,
        run_storage_dir=directory,
    )
    return program, directory / "runs-0001.sqlite"


# recomputed with sqlite3 and the standard library alone, as docs/results.md says


class Recomputed:
    """The figures of a result, from the store's tables."""

    def __init__(self, path: Path) -> None:
        self._path = path
        (setup, choice, agent_end, outcome), *_ = self.rows("SELECT setup, choice, agent_end, outcome FROM compile")
        self.setup, self.choice = json.loads(setup), json.loads(choice)
        self.agent_end, self.outcome = json.loads(agent_end), json.loads(outcome)
        self.prompts = {name: json.loads(text) for name, text in self.rows("SELECT id, prompts FROM candidates")}
        (self.before,) = [name for name, prompts in self.prompts.items() if prompts == self.setup["student"]["steps"]]
        (self.after,) = [name for name, prompts in self.prompts.items() if prompts == self.choice["prompts"]]

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self._path)) as database:
            return database.execute(sql, values).fetchall()

    def scores(self, split: str, candidate: str) -> dict[int, float]:
        states = "('finished', 'cancelled')" if split == "train" else "('finished')"
        by_example: defaultdict[str, dict[int, float]] = defaultdict(dict)
        for example, detail, score in self.rows(
            "SELECT example_id, detail, results.score FROM results JOIN runs ON run = number "
            f"WHERE split = ? AND candidate = ? AND counted = 1 AND state IN {states}",
            split,
            candidate,
        ):
            by_example[example][detail] = score
        return {int(example): sum(scores.values()) / len(scores) for example, scores in by_example.items()}

    def pairs(self, split: str) -> list[tuple[float, float]]:
        before, after = self.scores(split, self.before), self.scores(split, self.after)
        return [(before[one], after[one]) for one in sorted(before.keys() & after.keys())]


def close(one: float | None, other: float | None, tolerance: float = 1e-6) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= tolerance


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_the_figures_of_a_split_follow_from_the_rows_of_the_store(split: str, optimized: tuple[Any, Path]) -> None:
    program, path = optimized
    found, pairs = program.optimization_result.splits[split], Recomputed(path).pairs(split)
    n = len(pairs)
    assert found.n == n
    if not n:
        assert (found.baseline, found.result, found.difference, found.interval) == (None,) * 4
        return
    assert close(found.baseline, 100 * sum(before for before, _ in pairs) / n)
    assert close(found.result, 100 * sum(after for _, after in pairs) / n)
    differences = [after - before for before, after in pairs]
    assert close(found.difference, 100 * sum(differences) / n)
    better, worse = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    assert (found.better, found.worse, found.same) == (better, worse, n - better - worse)
    tossed = better + worse
    tail = sum(math.comb(tossed, heads) for heads in range(min(better, worse) + 1)) / 2**tossed
    assert close(found.p_value, min(1.0, 2 * tail))
    rng = random.Random(12345)  # another bootstrap's draws come near
    means = sorted(sum(rng.choices(differences, k=n)) / n for _ in range(10_000))
    low, high = 100 * means[249], 100 * means[-250]
    assert close(found.interval[0], low, 2.0)
    assert close(found.interval[1], high, 2.0)


def test_the_verdict_the_candidates_and_the_spending_follow_from_the_store(optimized: tuple[Any, Path]) -> None:
    program, path = optimized
    result, store = program.optimization_result, Recomputed(path)
    test = result.splits["test"]
    gain = test.interval[0] > 0 and test.p_value <= 0.05
    loss = test.interval[1] < 0 and test.p_value <= 0.05
    assert result.verdict == ("gain" if gain else "loss" if loss else "no proven gain")
    assert result.verdict_split == "test"
    assert result.verdict_text.startswith(f"{result.verdict} on test: ")
    rows = store.rows("SELECT id, parent, prompts FROM candidates ORDER BY rowid")
    assert [json.loads(prompts) for *_, prompts in rows] == list(result.candidates)
    places = {name: place for place, (name, *_) in enumerate(rows)}
    assert [None if parent is None else places[parent] for _, parent, _ in rows] == list(result.parents)
    scores = [store.scores("val", name) for name, *_ in rows]
    val = len(store.setup["valset"]["digests"])
    means = [100 * sum(one.values()) / val if len(one) == val else None for one in scores]
    assert all(close(one, other) for one, other in zip(means, result.val_scores, strict=True))
    known = [mean for mean in means if mean is not None]
    assert len(known) == 4  # the unchanged one, two checkpoints, and the final check of the submission
    assert result.best_index == means.index(max(known))
    ((spent,),) = store.rows("SELECT SUM(amount) FROM charges")
    limit = store.setup["settings"]["max_iterations"] * len(store.setup["trainset"]["digests"]) + val
    assert result.budget == {"limit": limit, "spent": spent}
    ((looks,),) = store.rows("SELECT COUNT(*) FROM runs WHERE split = 'val' AND NOT baseline AND state = 'finished'")
    assert result.val_checkpoints == looks == 3
    calls = dict(store.rows("SELECT role, COUNT(*) FROM lm_calls GROUP BY role"))
    assert {role: used["calls"] for role, used in result.usage.items() if used["calls"]} == calls
    ((turns,),) = store.rows("SELECT COUNT(*) FROM iterations WHERE output IS NOT NULL")
    assert result.turns == turns == 5


def test_the_runs_behind_the_figures_and_the_seconds_follow_from_the_store(optimized: tuple[Any, Path]) -> None:
    program, path = optimized
    result, store = program.optimization_result, Recomputed(path)
    for split, both in result.run_ids.items():
        for whose, candidate in (("baseline", store.before), ("result", store.after)):
            rows = store.rows(
                "SELECT run_id FROM runs WHERE split = ? AND candidate = ? AND state != 'failed' ORDER BY number",
                split,
                candidate,
            )
            assert both[whose] == tuple(run_id for (run_id,) in rows)
    told: defaultdict[str, float] = defaultdict(float)
    for (data,) in store.rows("SELECT data FROM events WHERE kind = 'PhaseFinished'"):
        event = json.loads(data)
        told[event["phase"]] += event["seconds"]
    assert result.seconds == dict(told)
    assert set(told) == {"baseline", "agent", "final_check", "test"}
    assert (result.submitted, result.stop_reason) == (store.agent_end["prompts"], "submitted")
    assert (result.returned_run, result.returned_because) == (store.choice["run_id"], store.choice["because"])
    assert result.versions == store.outcome["versions"]
    assert result.versions["dspy"] == dspy.__version__
    assert result.store_path == str(path)


# plain data


def test_it_is_json_and_survives_copies_and_pickles_and_cannot_be_changed(optimized: tuple[Any, Path]) -> None:
    result = optimized[0].optimization_result
    assert isinstance(result, OptimizationResult)
    plain = result.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["splits"]["test"]["verdict"] == result.verdict
    assert pickle.loads(pickle.dumps(result)) == copy.deepcopy(result) == result
    with pytest.raises(AttributeError):
        result.verdict = "gain"
    with pytest.raises(AttributeError):
        _ = result.detailed_results


def test_it_says_in_a_few_lines_what_a_person_wants_to_know(optimized: tuple[Any, Path]) -> None:
    result = optimized[0].optimization_result
    first, *rest = str(result).splitlines()
    assert first == f"{result.verdict} on test"  # its figures are in the line of the split
    assert repr(result) == f"<OptimizationResult: {result.verdict_text}>"
    assert [line.partition(":")[0] for line in rest[:4]] == ["train", "val", "test", "returned"]
    assert len(rest) <= 5 + len(result.warnings)


def test_a_program_that_carries_it_is_saved_loaded_and_copied_as_any_other(
    optimized: tuple[Any, Path], tmp_path: Path
) -> None:
    program, _ = optimized
    program.save(str(tmp_path / "program.json"))
    loaded = toy.Triage()
    loaded.load(str(tmp_path / "program.json"))
    assert loaded.topic.signature.instructions == toy.FIX
    assert program.deepcopy().optimization_result == program.optimization_result
    program.save(str(tmp_path / "whole"), save_program=True)


def test_a_reader_without_dspy_builds_the_equal_result(optimized: tuple[Any, Path]) -> None:
    program, path = optimized
    code = f"""
import json, sys
from rlmoptimizer import OptimizationResult
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
with StoreReader.open({str(path)!r}) as store:
    print(json.dumps(OptimizationResult.of(store).to_dict()))
assert "dspy" not in sys.modules
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == program.optimization_result.to_dict()


def test_an_optimization_that_has_not_ended_has_no_result(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="no key"):
        toy.compiled([RuntimeError("no key")], run_storage_dir=tmp_path)
    with StoreReader.open_in(tmp_path) as store, pytest.raises(InvalidSetup, match="has not ended; resume it"):
        OptimizationResult.of(store)


def test_a_temporary_store_has_no_path() -> None:
    assert toy.compiled([TURNS[-1]])[0].optimization_result.store_path is None


# examples, curve and warnings


def test_the_examples_of_train_are_flat_rows_also_where_the_store_was_temporary(
    optimized: tuple[Any, Path], tmp_path: Path
) -> None:
    program, _ = optimized
    result = program.optimization_result
    rows = result.examples()
    assert [row["example_id"] for row in rows] == [str(number) for number in range(1, 10)]
    assert sum(row["baseline.score"] for row in rows) / 9 == pytest.approx(
        sum(run["score"] for run in program.trial_logs if run["baseline"] and run["split"] == "train"), abs=0.01
    )
    assert rows[0]["inputs.message"] == "message 0 plainly about billing"
    assert rows[0]["expected.topic"] == rows[0]["baseline.predicted.topic"] == "billing"
    compared = [row for row in rows if row["result.score"] is not None]
    assert len(compared) == result.splits["train"].n
    for split in ("val", "test", "trainset"):
        with pytest.raises(InvalidSetup, match="only examples of 'train' are shown"):
            result.examples(split)
    with StoreReader.open(result.store_path) as store:
        packed = OptimizationResult.of(store, temporary=True)
    again = pickle.loads(pickle.dumps(packed))
    assert again.examples("train") == rows
    assert "packed_examples" not in packed.to_dict()
    with pytest.raises(InvalidSetup, match="no run store"):
        dataclasses.replace(result, store_path=str(tmp_path / "gone.sqlite")).examples()
    with pytest.raises(InvalidSetup, match="give the optimizer a run_storage_dir"):
        dataclasses.replace(packed, packed_examples=None).examples()


def test_the_curve_has_each_run_on_the_whole_of_val_with_the_best_until_then(optimized: tuple[Any, Path]) -> None:
    program, path = optimized
    result, store = program.optimization_result, Recomputed(path)
    runs = store.rows(
        "SELECT run_id, 100 * score, (SELECT COALESCE(SUM(amount), 0) FROM charges WHERE at <= finished_at) "
        "FROM runs WHERE split = 'val' AND state = 'finished' ORDER BY finished_at"
    )
    assert len(runs) == 4
    assert [(one.run_id, one.score, one.spent) for one in result.best_so_far] == [
        (run_id, pytest.approx(score), spent) for run_id, score, spent in runs
    ]
    bests = [max(score for _, score, _ in runs[: place + 1]) for place in range(len(runs))]  # each prompt ran once
    assert [one.best for one in result.best_so_far] == pytest.approx(bests)
    assert result.best_so_far[-1].best == pytest.approx(max(filter(None, result.val_scores)))


def test_a_program_that_answers_everything_the_same_is_warned_of(tmp_path: Path) -> None:
    rows = [stored_runs.result(str(number), 0.0, expected={"answer": f"a{number}"}) for number in range(8)]
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(8, 0))
        add_run(store, "train", rows, BEFORE, baseline=True)
        add_run(store, "train", rows, AFTER)
        finish(store)
        (warning,) = OptimizationResult.of(store).warnings
    assert warning == (
        "the new program answers nearly everything the same: answer is 'b' in 8 of 8 answers, and 0 should be "
        "(run r2 on train)"
    )


def test_an_unchanged_program_that_answers_everything_the_same_is_named_so(tmp_path: Path) -> None:
    rows = [stored_runs.result(str(number), 0.0, expected={"answer": f"a{number}"}) for number in range(8)]
    failed = [stored_runs.result("0", 0.0, error="no", error_kind="timeout"), stored_runs.result("1", 1.0)]
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(8, 2))
        add_run(store, "train", rows, BEFORE, baseline=True)
        add_run(store, "val", failed, BEFORE, baseline=True)
        add_run(store, "val", failed, BEFORE, turn=1)
        finish(store, BEFORE)
        warnings = OptimizationResult.of(store).warnings
    assert warnings[-1].startswith("the unchanged program answers nearly everything the same: ")
    assert warnings[-1].endswith("(run r1 on train)")
    assert len(warnings) == 3
    assert all("of the unchanged program on val (run r" in warning for warning in warnings[:2])
