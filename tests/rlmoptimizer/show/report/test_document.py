"""The document of an optimization: what the page shows, of any state of a store, and nothing of val and test."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from stored_optimization import AFTER, BEFORE, add_run, finish, setup_of, write_small
from stored_runs import result

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.outcome.measured import measured_scores
from rlmoptimizer.outcome.optimization_result import OptimizationResult
from rlmoptimizer.outcome.split_scores import SplitScores
from rlmoptimizer.records import StepTrace
from rlmoptimizer.show.report.document import DocumentReader, read_document, read_examples
from rlmoptimizer.show.report.json_values import as_json, json_bytes
from rlmoptimizer.steering.branches import prepare_branch
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

OTHER = {**BEFORE, "reply": "Answer in a friendly way."}


def test_a_finished_optimization_is_shown_with_its_result_candidates_and_examples(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    with StoreReader.open_in(tmp_path) as store:
        document = read_document(store)
        assert document["result"] == as_json(OptimizationResult.of(store).to_dict())
    assert (document["state"], document["so_far"]) == ("finished", None)
    assert document["budget"] == {"limit": 34, "spent": 10, "left": 24}
    unchanged, new = document["candidates"]
    assert (unchanged["is_baseline"], unchanged["parent"], unchanged["turn"], unchanged["changed"]) == (
        True,
        None,
        0,
        [],
    )
    assert (new["is_result"], new["is_submitted"], new["parent"], new["turn"]) == (True, True, 0, 1)
    assert (new["changed"], new["runs"]) == (["topic"], ["r3", "r4"])
    assert new["scores"] == {"train": {"n": 6, "score": 100 * (4 / 6), "passed": 4}, "val": {"n": 4, "score": 100.0}}
    assert document["grid"]["cells"][1] == {"places": [0, 1, 2, 3, 4, 5], "scores": [100, 100, 100, 100, 0, 0]}
    assert document["examples"]["compared_with"] == 1
    assert document["examples"]["rows"][1] == ["1", None, 0, 100, None, "q1"]
    assert [(point["spent"], point["score"]) for point in document["best_so_far"]] == [(0, 50.0), (10, 100.0)]
    assert [(run["run_id"], run["candidate"], run["turn"], run["spent"]) for run in document["runs"]] == [
        ("r1", 0, 0, 0),
        ("r2", 0, 0, 0),
        ("r3", 1, 1, 6),
        ("r4", 1, 2, 10),
    ]
    assert all("prompts" not in run for run in document["runs"])
    assert document["turns"][0]["runs"] == ["r3"]


def test_while_it_goes_on_the_best_so_far_stands_in_the_place_of_the_result(tmp_path: Path) -> None:
    store = write_small(tmp_path, ends=False)
    with StoreReader.open_in(tmp_path) as reading:
        document = read_document(reading)
        assert (document["state"], document["result"], document["dead_since"]) == ("running", None, None)
        assert document["so_far"] is not None
        assert document["so_far"]["best"] == 1
        assert document["so_far"]["splits"]["val"]["result"] == 100.0
        store.close()
        dead = read_document(reading)
        assert dead["state"] == "interrupted"
        assert dead["dead_since"] is not None
        assert dead["so_far"] == document["so_far"]


def test_prompts_that_were_half_set_on_the_way_to_others_are_no_candidates(tmp_path: Path) -> None:
    half, both = {**BEFORE, "topic": "One word."}, {"topic": "One word.", "reply": "Be kind."}
    tried = {**both, "reply": "Be brief."}
    dropped, current = {**both, "topic": "Two words."}, {**both, "topic": "None."}
    with RunStore.create_in(tmp_path) as store, StoreReader.open_in(tmp_path) as reading:
        store.record_setup(setup_of(2, 0))
        add_run(store, "train", [1, 0], BEFORE, baseline=True)
        store.set_prompts(half)
        assert [one["prompts"] for one in read_document(reading)["candidates"]] == [BEFORE, half]  # these are set now
        store.set_prompts(both)
        add_run(store, "train", [1, 1], both, turn=1)
        store.record_iteration("", "both steps", "set", seconds=1.0)
        add_run(store, "train", [0, 0], tried, turn=2)
        store.set_prompts(dropped)  # and another one in its place: this was meant as it stands
        store.set_prompts(current)
        add_run(store, "train", [0, 1], {**current, "reply": "Hm."}, turn=2)  # goes on from what is still set
        store.record_iteration("", "more", "set", seconds=1.0)
        document = read_document(reading)
    shown = [(one["prompts"], one["parent"], one["changed"]) for one in document["candidates"]]
    assert shown == [
        (BEFORE, None, []),
        (both, 0, ["topic", "reply"]),
        (tried, 1, ["reply"]),
        (dropped, 1, ["topic"]),
        (current, 3, ["topic"]),
        ({**current, "reply": "Hm."}, 4, ["reply"]),
    ]
    assert [run["candidate"] for run in document["runs"]] == [0, 1, 2, 5]
    assert len(document["grid"]["cells"]) == len(shown)


def test_the_row_of_an_example_names_its_pictures(tmp_path: Path) -> None:
    picture = {"url": "data:image/png;base64," + "iVBORw0KGgo" * 100}
    with RunStore.create_in(tmp_path) as store, StoreReader.open_in(tmp_path) as reading:
        store.record_setup(setup_of(2, 0))
        rows = [result("1", 1.0, inputs={"page": [picture]}), result("2", 1.0, inputs={"page": picture})]
        add_run(store, "train", rows, BEFORE, baseline=True)
        heads = [row[-1] for row in read_document(reading)["examples"]["rows"]]
    assert heads == ["[<image/png>", "<image/png>"]
def test_a_score_is_the_same_number_wherever_it_stands(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    with StoreReader.open_in(tmp_path) as store:
        document = read_document(store)
    score = document["candidates"][1]["scores"]["train"]["score"]
    assert score == document["runs"][2]["score"] == (document["result"] or {})["splits"]["train"]["result"]


def test_what_waits_for_the_agent_is_shown_and_stays_where_it_is(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as store, StoreReader.open_in(tmp_path) as reading:
        asked = Requests(store.path)
        asked.pause()
        asked.note("Look at the refunds.")
        (asked.directory / "note-00000000000000000001-00000000.json").write_text("no note")
        for _ in range(2):
            assert read_document(reading)["asked"] == {"pausing": True, "notes": ["Look at the refunds."]}
        assert len(list(asked.directory.iterdir())) == 3


def test_a_branch_begins_by_itself_while_a_process_works_on_its_parent(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as parent:
        with StoreReader.open(parent.path) as reading:
            assert read_document(reading)["task"]["branch"] is None
            path = prepare_branch(reading, "r3", units=5)
        with StoreReader.open(path) as branch:
            shown = read_document(branch)["task"]["branch"] or {}
            assert (shown["store"], shown["begun"], shown["begins_by_itself"]) == (parent.path.name, False, True)
    with StoreReader.open(path) as branch:
        assert (read_document(branch)["task"]["branch"] or {})["begins_by_itself"] is False


def test_one_that_has_hardly_begun_shows_what_there_is(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store, StoreReader.open_in(tmp_path) as reading:
        with pytest.raises(InvalidSetup, match="has not begun"):
            read_document(reading)
        store.record_setup(setup_of(2, 0))
        reader = DocumentReader(reading)
        document = reader.read()
        assert document["so_far"] == {"splits": {}, "best": None}
        assert [one["prompts"] for one in document["candidates"]] == [BEFORE]
        assert [row[0] for row in document["examples"]["rows"]] == ["1", "2"]
        assert [one["before"] for one in reader.examples(0)] == [None, None]
        add_run(store, "train", [1.0], BEFORE, baseline=True, planned=2, ends=False)
        document = reader.read()
        assert document["runs"][0]["state"] == "running"
        assert document["grid"]["cells"][0]["places"] == []
        assert document["task"]["splits"] == {"train": 2, "val": None, "test": None}


def test_a_reader_that_is_asked_again_gives_what_a_new_one_gives(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store, StoreReader.open_in(tmp_path) as reading:
        store.record_setup(setup_of(3, 2))
        reader = DocumentReader(reading)

        def check() -> None:
            again, new = reader.read(), DocumentReader(reading)
            assert {**again, "now": 0} == {**new.read(), "now": 0}
            assert reader.examples(0) == new.examples(0)

        add_run(store, "train", [1, 0, 0], BEFORE, baseline=True)
        add_run(store, "val", [1, 0], BEFORE, baseline=True)
        check()
        store.set_prompts(AFTER)
        cut = add_run(store, "train", [1.0], AFTER, turn=1, planned=3, ends=False)
        check()
        store.finish_run(cut, cancelled=True)
        check()
        store.reopen_run(cut)
        store.append(cut, result("1", 0.5), result("2", 1.0))
        check()
        store.finish_run(cut)
        store.record_iteration("r", "c", "o")
        store.record_event("KernelDied", {"turn": 1, "reason": "out of memory"})
        add_run(store, "val", [1, 1], AFTER, turn=2)
        check()
        store.record_event("NoteGiven", {"before_turn": 2, "text": "Be brief."})
        finish(store)
        store.close()
        check()
        final = reader.read()
        assert final["turns"][0]["deaths"][0]["reason"] == "out of memory"
        assert final["notes"][0]["text"] == "Be brief."


def test_the_scores_are_those_of_all_verdicts_also_repeated_and_reused_ones(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(3, 2))
        add_run(store, "train", [1, 0, 0], BEFORE, baseline=True)
        rows = [result(str(i), score, rollout=rollout) for i, score, rollout in ((0, 1, 0), (1, 0.2, 0), (0, 0, 1))]
        repeated = add_run(store, "train", rows, OTHER, planned=3, ends=False)
        store.finish_run(repeated, cancelled=True)
        spare = store.judged_rows("train", OTHER)
        reusing = store.begin_run("train", {}, OTHER, planned_ids=["0", "1", "2"], repeats=2, spare=spare)
        store.append(reusing, result("1", 0.4, rollout=1), result("2", 0.0, error="no", error_kind="timeout"))
        store.finish_run(reusing)
        add_run(store, "train", [0.5], OTHER, ends=False)
        for split in ("train", "val"):
            found = SplitScores(store, split).by_candidate(store.runs())
            assert {one: own.scores for one, own in found.items()} == measured_scores(store, split)
        other = list(SplitScores(store, "train").by_candidate(store.runs()).values())[1]
        assert other.scores == {"0": 0.5, "1": pytest.approx(0.3)}
        assert other.newest == {"0": reusing, "1": reusing, "2": reusing}
        assert other.error_kinds == {"2": "timeout"}


def test_an_example_opens_to_both_sides_with_all_that_was_traced(tmp_path: Path) -> None:
    huge = "<b>" * 100_000
    odd: dict[str, Any] = {"text": huge, "image": b"12", "big": 2**70, "nan": math.nan, "lone": "\ud800", "none": None}
    step = StepTrace(0, "topic", "T", {"message": "m"}, {}, error="ValueError: x", feedback="hm")
    failed = result("0", 0.0, inputs=odd, error="boom", error_kind="program", predicted=None, steps=(step, step))
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(1, 0))
        add_run(store, "train", [failed], BEFORE, baseline=True)
        add_run(store, "train", [result("0", 0.5), result("0", 1.0, rollout=1)], AFTER)
    with StoreReader.open_in(tmp_path) as reading:
        document, (example,) = read_document(reading), read_examples(reading, 0)
        with pytest.raises(IndexError, match="no chunk 1"):
            read_examples(reading, 1)
    assert document["examples"]["rows"][0][2:5] == [0, 75, None]
    assert document["examples"]["rows"][0][5].startswith("<b><b>")
    assert len(document["examples"]["rows"][0][5]) <= 120
    assert example["before"] is not None
    assert example["after"] is not None
    assert (example["before"]["error"], example["before"]["predicted"]) == ("boom", None)
    assert example["before"]["steps"][1]["feedback"] == "hm"
    assert (example["after"]["score"], example["after"]["scores"]) == (75.0, [50.0, 100.0])
    plain = as_json(odd)
    assert plain == {
        "text": huge,
        "image": "<2 bytes>",
        "big": str(2**70),
        "nan": "nan",
        "lone": "\ud800",
        "none": None,
    }
    assert json.loads(json_bytes(plain)) == plain
