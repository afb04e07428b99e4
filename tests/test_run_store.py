"""The run store: what goes in comes out, also in another process, also when values are strange or threads many."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from rlmoptimizer.budget import Charge
from rlmoptimizer.errors import InvalidSetup, SelectionError, StoreCorrupt, UnknownRunError
from rlmoptimizer.evaluation import ExampleResult, StepTrace
from rlmoptimizer.run_store import EventRecord, IterationRecord, RunRecord, RunStore


def result(example_id: str = "1", score: float = 1.0, **changes: Any) -> ExampleResult:
    fields: dict[str, Any] = {
        "example_id": example_id,
        "source_example_id": None,
        "inputs": {"question": f"q{example_id}"},
        "expected": {"answer": "a"},
        "predicted": {"answer": "b"},
        "score": score,
        "passed": score >= 1.0,
        "error": None,
        "error_kind": None,
        "feedback": None,
        "steps": (StepTrace(0, "answer", "QA", {"question": "q"}, {"answer": "b"}),),
        "seconds": 0.25,
    }
    return ExampleResult(**{**fields, **changes})


@pytest.fixture
def store(tmp_path: Path) -> Any:
    ticks = iter(range(10_000))
    path = tmp_path / "runs.sqlite"
    path.touch()
    with RunStore(path, clock=lambda: float(next(ticks))) as opened:
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
        planned_ids=("1", "2", "7"),
        state="running",
        score=None,
        evaluated_count=0,
        passed_count=0,
        error_count=0,
        budget_left=None,
        started_at=0.0,
        finished_at=None,
    )
    results = [result("7", 0.5), result("1"), result("2", 0.0, error="KeyError: 'x'", error_kind="program")]
    for one in results:
        store.append(run_id, one)
    record = store.finish_run(run_id, budget_left=40)
    assert record == store.run("r1")
    assert (record.state, record.score, record.evaluated_count) == ("finished", 0.5, 3)
    assert (record.passed_count, record.error_count, record.budget_left, record.finished_at) == (1, 1, 40, 1.0)
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


# The rest.


def test_charges_prompts_turns_and_events_come_back_in_order(store: RunStore) -> None:
    assert (store.charges(), store.prompts(), store.iterations(), store.events()) == ([], None, [], [])
    store.charge(3, "evaluate")
    store.charge(1, "llm_query")
    store.set_prompts({"a": "one", "b": "two"})
    store.set_prompts({"a": "\ud800", "b": "two"})
    assert store.record_iteration("why", "print(1)", "1\n") == 1
    assert store.record_iteration("why \ud800", "", "") == 2
    store.record_event("kernel_died", {"reason": "oom", "pid": 7})
    store.record_event("submitted", {})
    assert store.charges() == [Charge(3, "evaluate"), Charge(1, "llm_query")]
    assert store.prompts() == {"a": "\ud800", "b": "two"}
    assert store.iterations() == [
        IterationRecord(1, "why", "print(1)", "1\n", 4.0),
        IterationRecord(2, "why \ud800", "", "", 5.0),
    ]
    assert store.events() == [
        EventRecord(1, "kernel_died", {"reason": "oom", "pid": 7}, 6.0),
        EventRecord(2, "submitted", {}, 7.0),
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
    (tmp_path / "empty.sqlite").touch()
    for path in ("none.sqlite", "empty.sqlite"):
        with pytest.raises(InvalidSetup, match="there is no run store"):
            RunStore.open(tmp_path / path)
    for directory in (tmp_path, tmp_path / "none"):
        with pytest.raises(InvalidSetup, match="there is no run store"):
            RunStore.open_in(directory)


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


def test_a_file_that_is_no_store_says_why(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_text("not a database at all, but long enough to be looked at" * 100)
    with pytest.raises(StoreCorrupt, match="not a database"):
        RunStore.open(path)


def test_a_database_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    _database(path, "CREATE TABLE notes (text)")
    with pytest.raises(StoreCorrupt, match="another program"):
        RunStore.open(path)


def test_a_store_of_a_later_version_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    RunStore.create(path).close()
    _database(path, "PRAGMA user_version = 99")
    with pytest.raises(StoreCorrupt, match="version 99"):
        RunStore.open(path)


def test_a_row_that_was_damaged_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    with RunStore.create(path) as store:
        store.append(store.begin_run("train", {}, {}), result())
    _database(path, "UPDATE results SET predicted = '{'", "UPDATE runs SET config = 'x'")
    with RunStore.open(path) as store:
        with pytest.raises(StoreCorrupt, match="does not hold what it should"):
            store.examples("r1")
        with pytest.raises(StoreCorrupt, match="does not hold what it should"):
            store.runs()


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = RunStore.create(tmp_path / "runs.sqlite")
    store.close()
    store.close()
    with pytest.raises(RuntimeError, match="is closed"):
        store.runs()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_what_was_written_survives_a_killed_process(tmp_path: Path) -> None:
    code = """
import sys, os, signal
from test_run_store import RunStore, result
store = RunStore.create(sys.argv[1])
run_id = store.begin_run("train", {}, {}, planned_ids=["1", "2"])
store.append(run_id, result("1"))
store.charge(1, "evaluate")
store.append(run_id, result("2"))
os.kill(os.getpid(), signal.SIGKILL)
"""
    path = tmp_path / "runs.sqlite"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    process = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, capture_output=True, timeout=100, check=False
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    with RunStore.open(path) as store:
        assert [one.example_id for one in store.examples("r1")] == ["1", "2"]
        assert store.charges() == [Charge(1, "evaluate")]


# Against a model.

texts = st.text(st.characters(), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts | st.binary(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
fields = st.dictionaries(texts, values, max_size=3)


@st.composite
def results(draw: st.DrawFn) -> ExampleResult:
    score = draw(st.floats(0, 1))
    count = draw(st.integers(0, 2))
    return ExampleResult(
        example_id=str(draw(st.integers(1, 6))),
        source_example_id=draw(st.none() | texts),
        inputs=draw(fields),
        expected=draw(fields),
        predicted=draw(values),
        score=score,
        passed=draw(st.booleans()),
        error=draw(st.none() | texts),
        error_kind=draw(st.none() | st.sampled_from(["program", "rate_limit"])),
        feedback=draw(st.none() | texts),
        steps=tuple(StepTrace(index, draw(texts), draw(texts), draw(fields), draw(fields)) for index in range(count)),
        seconds=draw(st.floats(0, 1e6)),
    )


class StoreAgainstModel(RuleBasedStateMachine):
    """Dicts and lists say what the store must hold, also after it was closed and opened."""

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

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), some=st.lists(results(), max_size=3))
    def append(self, data: st.DataObject, some: list[ExampleResult]) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.runs)))
        self.store.append(run_id, *some)
        self.runs[run_id]["rows"].update({one.example_id: one for one in some})

    @precondition(lambda self: self.runs)
    @rule(data=st.data(), cancelled=st.booleans())
    def finish(self, data: st.DataObject, cancelled: bool) -> None:
        run_id = data.draw(st.sampled_from(sorted(self.runs)))
        self.runs[run_id]["state"] = "cancelled" if cancelled else "finished"
        assert self.store.finish_run(run_id, cancelled=cancelled).state == self.runs[run_id]["state"]

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
        self.store = RunStore.open_in(self.directory.name)

    @invariant()
    def agrees(self) -> None:
        assert self.store.charges() == self.charges
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
            assert record.evaluated_count == len(rows)
            assert record.passed_count == sum(one.passed for one in rows)
            assert record.error_count == sum(one.error is not None for one in rows)
            if rows:
                assert record.score == pytest.approx(sum(one.score for one in rows) / len(rows))
            if record.split == "train":
                assert self.store.failed_ids(record.run_id) == tuple(one.example_id for one in rows if not one.passed)


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
