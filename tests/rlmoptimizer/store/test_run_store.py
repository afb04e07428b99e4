"""The run store: what goes in comes out, also in another process, also when values are strange or threads many."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
import signal
import sqlite3
import statistics
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from child_process import forked, output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stored_runs import result

from rlmoptimizer.errors import InvalidSetup, SelectionError, StoreCorrupt, StoreInUse, UnknownRunError
from rlmoptimizer.records import Charge, EventRecord, ExampleResult, IterationRecord, RunRecord, StepTrace
from rlmoptimizer.store.directory import stores_in
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


@pytest.fixture
def store(tmp_path: Path) -> Any:
    ticks = iter(range(10_000))
    with RunStore.create(tmp_path / "runs.sqlite", clock=lambda: float(next(ticks))) as opened:
        yield opened


# Runs.


@pytest.mark.smoke
def test_a_run_is_told_from_beginning_to_end(store: RunStore) -> None:
    config = {"limit": 2, "ids": None}
    run_id = store.begin_run("train", config, {"answer": "old"}, baseline=True, planned_ids=["1", "2", "7"])
    assert run_id == "r1"
    assert store.run("r1") == RunRecord(
        run_id="r1",
        split="train",
        baseline=True,
        config=config,
        prompts={"answer": "old"},
        candidate=store.candidates()[0].candidate,
        turn=0,
        answered=False,
        planned_count=3,
        repeats=1,
        state="running",
        score=None,
        standard_error=None,
        objectives={},
        evaluated_count=0,
        passed_count=0,
        error_count=0,
        truncated_count=0,
        judged_count=0,
        unanswered_count=0,
        reused_count=0,
        budget_left=None,
        started_at=1.0,
        finished_at=None,
    )
    assert store.planned_ids("r1") == ("1", "2", "7")
    results = [result("7", 0.5), result("1"), result("2", 0.0, error="KeyError: 'x'", error_kind="program")]
    for one in results:
        store.append(run_id, one)
    record = store.finish_run(run_id, budget_left=40)
    assert record == store.run("r1")
    assert (record.state, record.score, record.evaluated_count) == ("finished", 0.5, 3)
    assert (record.passed_count, record.error_count, record.budget_left, record.finished_at) == (1, 1, 40, 2.0)
    assert store.examples("r1") == [results[1], results[2], results[0]]
    assert store.failed_ids("r1") == ("2", "7")


def test_runs_are_numbered_in_the_order_of_their_beginning(store: RunStore) -> None:
    ids = [store.begin_run(split, {}, {}) for split in ("train", "val", "train")]
    assert ids == ["r1", "r2", "r3"]
    store.finish_run("r2", cancelled=True)
    assert [(record.run_id, record.split, record.state) for record in store.runs()] == [
        ("r1", "train", "running"),
        ("r2", "val", "cancelled"),
        ("r3", "train", "running"),
    ]


def test_results_can_be_picked_and_paged(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {}, planned_ids=[str(n) for n in range(1, 11)])
    store.append(run_id, *(result(str(n)) for n in range(10, 0, -1)))

    def ids(**options: Any) -> list[str]:
        return [one.example_id for one in store.examples(run_id, **options)]

    assert ids() == [str(n) for n in range(1, 11)]
    assert ids(ids=["9", "2", "77"]) == ["2", "9"]
    assert ids(ids=[]) == []
    assert ids(offset=8) == ["9", "10"]
    assert ids(offset=2, limit=3) == ["3", "4", "5"]
    assert ids(ids={"1", "3", "5"}, offset=1, limit=1) == ["3"]
    assert ids(limit=0) == []


def test_a_result_that_comes_again_replaces_the_first(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {}, planned_ids=["1", "2"])
    store.append(run_id, result("2"), result("1", 0.0))
    store.append(run_id, result("1", 1.0))
    assert [one.score for one in store.examples(run_id)] == [1.0, 1.0]
    assert store.run(run_id).evaluated_count == 2


def test_results_that_were_not_planned_follow_those_that_were(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {}, planned_ids=["5"])
    store.append(run_id, result("9"), result("5"), result("7"))
    assert [one.example_id for one in store.examples(run_id)] == ["5", "9", "7"]


def test_several_results_are_kept_together_or_not_at_all(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {})
    with pytest.raises(TypeError):
        store.append(run_id, result("1"), result("2", inputs={"no": object()}))
    assert store.examples(run_id) == []


def test_a_run_that_is_not_there_is_named_with_those_that_are(store: RunStore) -> None:
    store.begin_run("train", {}, {})
    for ask in (store.run, store.examples, store.failed_ids, store.finish_run):
        with pytest.raises(UnknownRunError) as unknown:
            ask("r\ud800")
        assert unknown.value.known == ("r1",)
    with pytest.raises(UnknownRunError):
        store.append("r2", result())


def test_failures_of_a_validation_run_are_not_told(store: RunStore) -> None:
    run_id = store.begin_run("val", {}, {}, planned_ids=["1"])
    store.append(run_id, result("1", 0.0))
    with pytest.raises(SelectionError, match="run r1 is on val, whose examples are not shown"):
        store.failed_ids(run_id)


STRANGE: list[Any] = [
    "\ud800 alone",
    "with \x00 nul",
    10**6000,
    b"\xff\x00",
    {"$bytes": "no bytes"},
    [None, True, 1, 1.0, float("inf"), {"": []}],
]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: type(value).__name__)
def test_strange_values_come_back_as_they_were(store: RunStore, value: Any) -> None:
    step = StepTrace(0, "answer", "QA", {"x": value}, {"y": [value]})
    text = value if isinstance(value, str) else "text"
    one = result(
        inputs={"x": value},
        expected={"y": value},
        predicted=value,
        steps=(step,),
        source_example_id=text,
        error=text,
        error_kind="program",
        feedback=text,
    )
    run_id = store.begin_run("train", {"value": value}, {"answer": text})
    store.append(run_id, one)
    assert store.examples(run_id) == [one]
    assert store.run(run_id).config == {"value": value}
    assert store.run(run_id).prompts == {"answer": text}


def test_an_example_that_was_repeated_counts_once_by_its_mean(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {}, planned_ids=["1", "2", "3"], repeats=2)
    no_verdict = {"error": "429", "error_kind": "rate_limit"}
    scores = {("1", 0): 1.0, ("2", 0): 1.0, ("3", 0): 0.0, ("1", 1): 0.5}
    for (example_id, rollout), score in scores.items():
        store.append(run_id, result(example_id, score, rollout=rollout))
    store.append(run_id, result("2", 0.0, rollout=1, **no_verdict))
    record = store.finish_run(run_id)
    assert (record.repeats, record.planned_count) == (2, 3)
    assert (record.evaluated_count, record.passed_count, record.judged_count) == (3, 1, 4)
    assert (record.unanswered_count, record.missing_count) == (1, 2)
    assert record.score == pytest.approx((0.75 + 1.0 + 0.0) / 3)
    assert record.standard_error == pytest.approx(statistics.stdev([0.75, 1.0, 0.0]) / math.sqrt(3))
    assert store.scores(run_id) == {"1": [1.0, 0.5], "2": [1.0], "3": [0.0]}
    assert store.failed_ids(run_id) == ("1", "3")
    assert [(one.example_id, one.rollout) for one in store.examples(run_id, limit=2)] == [
        ("1", 0),
        ("1", 1),
        ("2", 0),
        ("2", 1),
    ]
    assert store.reopen_run(run_id) == (("2", 1), ("3", 1))


def test_objectives_are_kept_and_told_as_means_over_the_examples_that_have_them(store: RunStore) -> None:
    run_id = store.begin_run("train", {}, {}, planned_ids=["1", "2", "3"], repeats=2)
    store.append(
        run_id,
        result("1", objectives={"tone": 0.0, "\ud800": 1.0}),
        result("1", rollout=1, objectives={"tone": 1.0}),
        result("2", objectives={"tone": 1.0}),
        result("3"),
    )
    assert store.run(run_id).objectives == {"tone": 0.75, "\ud800": 1.0}
    assert store.finish_run(run_id).objectives == {"tone": 0.75, "\ud800": 1.0}
    assert [one.objectives for one in store.examples(run_id, ids=["2", "3"])] == [{"tone": 1.0}, None]


def test_a_step_keeps_what_only_some_have(store: RunStore) -> None:
    steps = (
        StepTrace(0, "a", "A", {}, {"y": 1}),
        StepTrace(1, "a", "A", {}, {}, "ValueError: no", "what its LM wrote"),
        StepTrace(2, "a", "A", {}, {}, "ValueError: no"),
        StepTrace(3, "a", "A", {}, {"y": ""}, truncated=True),
    )
    run_id = store.begin_run("train", {}, {})
    store.append(run_id, result(steps=steps), result("2"))
    assert store.examples(run_id)[0].steps == steps
    assert store.finish_run(run_id).truncated_count == 1


def test_the_test_set_has_runs_too_and_their_failures_are_not_told(store: RunStore) -> None:
    run_id = store.begin_run("test", {}, {}, planned_ids=["1"])
    store.append(run_id, result("1", 0.0))
    assert store.finish_run(run_id).split == "test"
    with pytest.raises(SelectionError, match="run r1 is on test, whose examples are not shown"):
        store.failed_ids(run_id)


# The rest.


def test_charges_prompts_turns_and_events_come_back_in_order(store: RunStore) -> None:
    assert (store.charges(), store.prompts(), store.iterations(), store.events()) == ([], None, [], [])
    store.charge(3, "evaluate")
    store.charge(1, "llm_query")
    store.set_prompts({"a": "one", "b": "two"})
    store.set_prompts({"a": "\ud800", "b": "two"})
    assert store.record_iteration("why", "print(1)", "1\n", seconds=2.5) == 1
    assert store.record_iteration("why \ud800", "", "") == 2
    store.record_event("kernel_died", {"reason": "oom", "pid": 7})
    store.record_event("submitted", {})
    assert store.charges() == [Charge(3, "evaluate"), Charge(1, "llm_query")]
    assert store.prompts() == {"a": "\ud800", "b": "two"}
    assert store.iterations() == [
        IterationRecord(1, "why", "print(1)", "1\n", 2.5, 6.0),
        IterationRecord(2, "why \ud800", "", "", None, 7.0),
    ]
    assert store.events() == [
        EventRecord(1, "kernel_died", {"reason": "oom", "pid": 7}, 8.0),
        EventRecord(2, "submitted", {}, 9.0),
    ]
    assert store.events("submitted") == store.events()[1:]


def test_many_threads_lose_nothing(store: RunStore) -> None:
    def work(number: int) -> str:
        run_id = store.begin_run("train", {"n": number}, {}, planned_ids=["1", "2", "3"])
        for example_id in ("3", "1", "2"):
            store.append(run_id, result(example_id, score=1.0))
            store.charge(1, "evaluate")
        store.finish_run(run_id)
        return run_id

    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(work, range(40)))
    assert len(set(ids)) == 40
    assert {record.config["n"]: record.run_id for record in store.runs()} == dict(enumerate(ids))
    assert all((record.evaluated_count, record.score) == (3, 1.0) for record in store.runs())
    assert sum(charge.amount for charge in store.charges()) == 120


# Files.


def test_a_store_is_made_once_and_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.sqlite"
    with RunStore.create(path) as store:
        run_id = store.begin_run("train", {}, {"a": "p"}, planned_ids=["1", "2"])
        store.append(run_id, result("2"))
    with pytest.raises(InvalidSetup, match="exists already"):
        RunStore.create(path)
    with RunStore.open(path) as store:
        store.append(run_id, result("1"))
        assert [one.example_id for one in store.examples(run_id)] == ["1", "2"]
        assert store.run(run_id).state == "running"
    assert [entry.name for entry in path.parent.iterdir()] == ["runs.sqlite"]


def test_a_directory_holds_one_store_after_the_other(tmp_path: Path) -> None:
    for number in (1, 2):
        with RunStore.create_in(tmp_path) as store:
            assert store.path.name == f"runs-000{number}.sqlite"
            store.set_prompts({"number": str(number)})
    with RunStore.open_in(tmp_path) as store:
        assert store.prompts() == {"number": "2"}


def test_stores_made_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    barrier = threading.Barrier(6)

    def make(_: int) -> str:
        barrier.wait(30)
        with RunStore.create_in(tmp_path) as store:
            return store.path.name

    with ThreadPoolExecutor(6) as pool:
        assert len(set(pool.map(make, range(6)))) == 6


def test_a_store_that_is_not_there_is_no_broken_one(tmp_path: Path) -> None:
    for kind in (StoreReader, RunStore):
        with pytest.raises(InvalidSetup, match="there is no run store"):
            kind.open(tmp_path / "none.sqlite")
        for directory in (tmp_path, tmp_path / "none"):
            with pytest.raises(InvalidSetup, match="there is no run store"):
                kind.open_in(directory)


def test_a_place_that_cannot_hold_a_store_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(InvalidSetup, match="no run store can be made"):
        RunStore.create(tmp_path / "file" / "runs.sqlite")
    with pytest.raises(InvalidSetup, match="no run store can be made"):
        RunStore.create_in(tmp_path / "file")


def _database(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def whole_store(path: Path) -> bytes:
    """The bytes of a store with some results in it."""
    with RunStore.create(path) as store:
        run_id = store.begin_run("train", {}, {"a": "p"}, planned_ids=[str(n) for n in range(40)])
        store.append(run_id, *(result(str(n), inputs={"text": "x" * 5000}) for n in range(40)))
    return path.read_bytes()


def no_store(name: str, whole: bytes, path: Path) -> None:
    """Put something at `path` that is no store, or no whole one."""
    if name == "a database of another program":
        _database(path, "CREATE TABLE notes (text)")
    elif name == "a database of another program in wal mode":
        _database(path, "PRAGMA journal_mode = WAL", "CREATE TABLE notes (text)")
    elif name == "a later version":
        path.write_bytes(whole)
        _database(path, "PRAGMA journal_mode = DELETE", "PRAGMA user_version = 99")
    else:
        path.write_bytes(
            {
                "nothing": b"",
                "one byte": b"S",
                "the first 99 bytes": whole[:99],
                "the first page": whole[:4096],
                "half of it": whole[: len(whole) // 2],
                "all but the last page": whole[:-4096],
                "a text": b"not a database at all, but long enough to be looked at" * 100,
                "zeros": bytes(20_000),
                "its middle overwritten": whole[:20_000] + b"\xff" * 40_000 + whole[60_000:],
                "its first page overwritten": b"\xee" * 4096 + whole[4096:],
            }[name]
        )


NO_STORES = {
    "nothing": "damaged",
    "one byte": "damaged",
    "the first 99 bytes": "damaged",
    "the first page": "damaged",
    "half of it": "damaged",
    "all but the last page": "damaged",
    "a text": "not a database",
    "zeros": "not a database",
    "its middle overwritten": "damaged",
    "its first page overwritten": "not a database",
    "a database of another program": "another program",
    "a database of another program in wal mode": "another program",
    "a later version": "version 99",
}


@pytest.mark.parametrize("name", NO_STORES)
def test_what_is_no_whole_store_is_refused_and_left_byte_for_byte_as_it_was(name: str, tmp_path: Path) -> None:
    whole = whole_store(tmp_path / "whole" / "runs.sqlite")
    path = tmp_path / "other" / "runs-0001.sqlite"
    path.parent.mkdir()
    no_store(name, whole, path)
    before = path.read_bytes()
    with pytest.raises(StoreCorrupt, match=NO_STORES[name]) as refused:
        RunStore.open_in(path.parent)
    assert str(path) in str(refused.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_log_that_was_torn_costs_what_it_held_and_not_the_store(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    store = RunStore.create(path)
    store.charge(1, "evaluate")
    copies = {name: (tmp_path / name).read_bytes() for name in ("runs.sqlite", "runs.sqlite-wal")}
    store.close()
    other = tmp_path / "other" / "runs.sqlite"
    other.parent.mkdir()
    other.write_bytes(copies["runs.sqlite"])
    (other.parent / "runs.sqlite-wal").write_bytes(copies["runs.sqlite-wal"][:-100])
    with RunStore.open(other) as opened:
        assert opened.charges() == []
        opened.charge(2, "evaluate")


def test_a_row_that_was_damaged_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore.create(path) as store:
        store.append(store.begin_run("train", {}, {}), result())
    _database(path, "UPDATE details SET predicted = '{'", "UPDATE runs SET config = 'x'")
    with RunStore.open(path) as store:
        with pytest.raises(StoreCorrupt, match="does not hold what it should"):
            store.examples("r1")
        with pytest.raises(StoreCorrupt, match="does not hold what it should"):
            store.runs()


# Several processes.


def test_one_at_a_time_writes_to_a_store(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore.create(path) as store:
        for again in (RunStore.open, RunStore.create):
            with pytest.raises(StoreInUse, match=f"process {os.getpid()} is at work on the run store"):
                again(path)
        store.charge(1, "evaluate")
    RunStore.open(path).close()
    assert [entry.name for entry in tmp_path.iterdir()] == ["runs.sqlite"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_of_a_fork_does_not_keep_the_store_of_its_parent(tmp_path: Path) -> None:
    code = """
import os, sys
from rlmoptimizer.store.run_store import RunStore
store = RunStore.create(sys.argv[1])
if os.fork():
    os._exit(0)
print("ready", flush=True)
sys.stdin.read()
"""
    path = tmp_path / "runs.sqlite"
    with forked(code, path) as parent:
        parent.wait_for("ready")
        parent.wait()  # the child goes on
        RunStore.open(path).close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_each_store_leaves_nothing_for_the_forks_to_come(tmp_path: Path) -> None:
    code = """
import os, sys
from rlmoptimizer.store.run_store import RunStore
os.register_at_fork = lambda **_: print("registered")
for name in ("one", "two"):
    RunStore.create(os.path.join(sys.argv[1], name)).close()
    print(name)
"""
    assert output_of(forked(code, tmp_path)) == "one\ntwo\n"


def test_others_read_while_one_writes(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store, StoreReader.open_in(tmp_path) as reader:
        run_id = store.begin_run("train", {}, {"a": "p"}, planned_ids=["1", "2"])
        store.append(run_id, result("1"), charge=Charge(1, "evaluate"))
        assert (reader.run(run_id).state, reader.run(run_id).evaluated_count) == ("running", 1)
        assert reader.spent() == 1
        store.finish_run(run_id, cancelled=True)
        assert reader.run(run_id).state == "cancelled"
        with pytest.raises(StoreCorrupt, match="readonly"), reader._file.transaction() as database:
            database.execute("DELETE FROM charges")


def test_the_file_alone_is_whole_when_the_store_is_closed_while_others_read(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "runs.sqlite")
    with StoreReader.open(store.path):
        store.record_setup({"a": 1})
        store.close()
        shutil.copy(store.path, tmp_path / "copy.sqlite")
    with StoreReader.open(tmp_path / "copy.sqlite") as copy:
        assert copy.setup() == {"a": 1}


def test_reading_changes_nothing_in_the_store_of_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    _run_and_kill("store.charge(3, 'evaluate')", path)
    before = path.read_bytes(), (tmp_path / "runs.sqlite-wal").read_bytes()
    with StoreReader.open(path) as reader:
        assert reader.spent() == 3
    assert (path.read_bytes(), (tmp_path / "runs.sqlite-wal").read_bytes()) == before


def test_another_program_that_locks_the_database_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore.create(path) as store:
        other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        started = threading.Event()

        def write() -> int:
            started.set()
            store.charge(1, "evaluate")
            return store.spent()

        with ThreadPoolExecutor(1) as pool:
            written = pool.submit(write)
            assert started.wait(30)
            assert not written.done()
            other.execute("ROLLBACK")
            assert written.result(30) == 1
        other.close()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "runs.sqlite")
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="is closed"):
        store.runs()


def _run_and_kill(statements: str, path: Path) -> None:
    """Run statements on a new `store` in another process, which is then killed."""
    code = "\n".join(
        [
            "import sys, os, signal",
            "from rlmoptimizer.records import Charge",
            "from rlmoptimizer.store.run_store import RunStore",
            "from stored_runs import result",
            "store = RunStore.create(sys.argv[1])",
            statements,
            "os.kill(os.getpid(), signal.SIGKILL)",
        ]
    )
    with forked(code, path) as child:
        ended = child.ended()
    assert ended.status == -signal.SIGKILL, ended.err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_what_was_written_survives_a_killed_process(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    _run_and_kill(
        """
run_id = store.begin_run("train", {}, {}, planned_ids=["1", "2", "3"])
store.append(run_id, result("1"), charge=Charge(1, "evaluate"))
store.append(run_id, result("2"))
""",
        path,
    )
    with RunStore.open(path) as store:
        assert [one.example_id for one in store.examples("r1")] == ["1", "2"]
        assert store.charges() == [Charge(1, "evaluate")]
        (cut,) = store.cut_runs()
        assert (cut.state, cut.evaluated_count, cut.score) == ("cancelled", 2, 1.0)
        assert store.reopen_run("r1") == (("3", 0),)
        store.append("r1", result("3", 0.0))
        assert store.finish_run("r1").score == pytest.approx(2 / 3)


# Against a model.

texts = st.text(st.characters(), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(texts, values, max_size=3)


def steps(index: int) -> st.SearchStrategy[StepTrace]:
    done = st.builds(StepTrace, st.just(index), texts, texts, fields, fields)
    failed = st.builds(StepTrace, st.just(index), texts, texts, fields, st.just({}), texts, st.none() | texts)
    return done | failed


@st.composite
def results(draw: st.DrawFn) -> ExampleResult:
    score = draw(st.floats(0, 1))
    count = draw(st.integers(0, 2))
    kind = draw(st.none() | st.sampled_from(["program", "rate_limit"]))
    return ExampleResult(
        example_id=str(draw(st.integers(1, 6))),
        source_example_id=draw(st.none() | texts),
        inputs=draw(fields),
        expected=draw(fields),
        predicted=draw(values),
        score=score,
        passed=draw(st.booleans()),
        error=None if kind is None else draw(texts),
        error_kind=kind,
        feedback=draw(st.none() | texts),
        steps=tuple(draw(steps(index)) for index in range(count)),
        seconds=draw(st.floats(0, 1e6)),
        objectives=draw(st.none() | st.dictionaries(texts, st.floats(0, 1), max_size=2)),
    )


class StoreAgainstModel(RuleBasedStateMachine):
    """Dicts and lists say what the store must hold, also after it was closed or left by a killed process."""

    @initialize()
    def make(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.store = RunStore.create_in(self.directory.name)
        self.runs: dict[str, dict[str, Any]] = {}
        self.charges: list[Charge] = []
        self.prompts: dict[str, str] | None = None

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    @rule(split=st.sampled_from(["train", "val"]), config=fields, prompts=st.dictionaries(texts, texts, max_size=3))
    def begin(self, split: str, config: dict[str, Any], prompts: dict[str, str]) -> None:
        planned = [str(number) for number in range(6, 0, -1)]
        run_id = self.store.begin_run(split, config, prompts, planned_ids=planned)
        assert run_id not in self.runs
        self.runs[run_id] = {"split": split, "config": config, "prompts": prompts, "rows": {}, "state": "running"}

    def running(self) -> list[str]:
        return sorted(run_id for run_id, run in self.runs.items() if run["state"] == "running")

    @precondition(lambda self: self.running())
    @rule(data=st.data(), some=st.lists(results(), max_size=3), price=st.integers(0, 3))
    def append(self, data: st.DataObject, some: list[ExampleResult], price: int) -> None:
        run_id = data.draw(st.sampled_from(self.running()))
        charge = Charge(price, "evaluate") if price else None
        self.store.append(run_id, *some, charge=charge)
        self.runs[run_id]["rows"].update({one.example_id: one for one in some})
        self.charges += [charge] if charge else []

    @precondition(lambda self: self.running())
    @rule(data=st.data(), one=results())
    def append_what_cannot_be_stored(self, data: st.DataObject, one: ExampleResult) -> None:
        run_id = data.draw(st.sampled_from(self.running()))
        with pytest.raises(TypeError):
            self.store.append(
                run_id, one, dataclasses.replace(one, predicted=object()), charge=Charge(1, "evaluate")
            )

    @precondition(lambda self: set(self.runs) - set(self.running()))
    @rule(data=st.data(), one=results())
    def append_to_a_run_that_has_ended(self, data: st.DataObject, one: ExampleResult) -> None:
        run_id = data.draw(st.sampled_from(sorted(set(self.runs) - set(self.running()))))
        with pytest.raises(ValueError, match="has ended"):
            self.store.append(run_id, one, charge=Charge(1, "evaluate"))

    @precondition(lambda self: self.running())
    @rule(data=st.data(), cancelled=st.booleans())
    def finish(self, data: st.DataObject, cancelled: bool) -> None:
        run_id = data.draw(st.sampled_from(self.running()))
        self.runs[run_id]["state"] = "cancelled" if cancelled else "finished"
        assert self.store.finish_run(run_id, cancelled=cancelled).state == self.runs[run_id]["state"]

    @precondition(lambda self: any(run["state"] == "cancelled" for run in self.runs.values()))
    @rule(data=st.data())
    def reopen(self, data: st.DataObject) -> None:
        cancelled = sorted(run_id for run_id, run in self.runs.items() if run["state"] == "cancelled")
        run = self.runs[run_id := data.draw(st.sampled_from(cancelled))]
        left = [(one, 0) for one in "654321" if one not in run["rows"] or not run["rows"][one].has_verdict]
        assert list(self.store.reopen_run(run_id)) == left
        run["state"] = "running"

    @rule(amount=st.integers(1, 9), purpose=texts)
    def charge(self, amount: int, purpose: str) -> None:
        self.store.charge(amount, purpose)
        self.charges.append(Charge(amount, purpose))

    @rule(prompts=st.dictionaries(texts, texts, max_size=3))
    def set_prompts(self, prompts: dict[str, str]) -> None:
        self.store.set_prompts(prompts)
        self.prompts = prompts

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = RunStore.open(self.store.path)

    @rule()
    def crash_and_open_again(self) -> None:
        """What a killed process leaves: the database and its log, as they are at that moment."""
        left = Path(tempfile.mkdtemp(dir=self.directory.name))
        for path in self.store.path.parent.glob("runs-0001.sqlite*"):
            if not path.name.endswith((".lock", "-shm")):
                shutil.copy(path, left / path.name)
        self.store.close()
        self.store = RunStore.open_in(left)
        assert [record.run_id for record in self.store.cut_runs()] == self.running()
        for run_id in self.running():
            self.runs[run_id]["state"] = "cancelled"

    @invariant()
    def agrees(self) -> None:
        assert self.store.charges() == self.charges
        assert self.store.spent() == sum(charge.amount for charge in self.charges)
        assert self.store.prompts() == self.prompts
        records = self.store.runs()
        assert [record.run_id for record in records] == list(self.runs)
        for record in records:
            model = self.runs[record.run_id]
            rows = sorted(model["rows"].values(), key=lambda one: -int(one.example_id))
            assert self.store.examples(record.run_id) == rows
            assert (record.split, record.config, record.prompts, record.state) == (
                model["split"],
                model["config"],
                model["prompts"],
                model["state"],
            )
            judged = [one for one in rows if one.has_verdict]
            assert record.evaluated_count == len(judged)
            assert record.unanswered_count == len(rows) - len(judged)
            assert record.passed_count == sum(one.passed for one in judged)
            assert record.error_count == sum(one.error is not None for one in judged)
            assert record.score == (math.fsum(one.score for one in judged) / len(judged) if judged else None)
            if record.split == "train":
                assert self.store.failed_ids(record.run_id) == tuple(
                    one.example_id for one in rows if not (one.has_verdict and one.passed)
                )


TestStoreAgainstModel = StoreAgainstModel.TestCase
TestStoreAgainstModel.settings = settings(max_examples=15, stateful_step_count=15, deadline=None)


@settings(max_examples=50, deadline=None)
@given(results())
def test_any_result_comes_back_as_it_was(one: ExampleResult) -> None:
    with tempfile.TemporaryDirectory() as directory, RunStore.create_in(directory) as store:
        run_id = store.begin_run("train", {}, {})
        store.append(run_id, one)
        (again,) = store.examples(run_id)
    assert again == one
    assert repr(again) == repr(one)


@pytest.mark.skipif(os.name != "posix", reason="modes")
def test_a_store_is_its_owners_alone(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_setup({})
        kept = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        assert {kept[f"runs-0001.sqlite{more}"] for more in ("", "-wal", "-shm")} == {0o600}


def test_only_names_that_a_store_is_given_are_those_of_stores(tmp_path: Path) -> None:
    for name in ("runs-0003.sqlite", "runs-12345.sqlite", "runs-00099.sqlite", "runs-7.sqlite", "runs-0004.sqlite.new"):
        (tmp_path / name).touch()
    assert stores_in(tmp_path) == [3, 12345]
