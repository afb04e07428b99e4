"""Branches of stored optimizations: what comes along, what is paid, and what a kill at any moment leaves."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_optimization import AFTER, BEFORE, add_run, setup_of, write_small

from rlmoptimizer.agent.person_requests import PersonRequests
from rlmoptimizer.compilation.resume import branch_text, open_store
from rlmoptimizer.errors import InvalidSetup, StoreInUse, UnknownRunError
from rlmoptimizer.events import Emitter
from rlmoptimizer.outcome.measured import measured_scores
from rlmoptimizer.outcome.recorded_setup import branch_in, unit_limit
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.records import Charge, LMCall
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.steering.branches import begin_branch, branch_of, prepare_branch
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.branch_copy import BranchCopy
from rlmoptimizer.store.directory import stores_in
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


def prepared(directory: Path, run_id: str = "r3", *, number: int = 1, units: int | None = None) -> Path:
    """A branch of a store that nobody has open."""
    with StoreReader.open(directory / f"runs-{number:04}.sqlite") as parent:
        return prepare_branch(parent, run_id, units=units)


def budget_of(store: StoreReader) -> tuple[int, int]:
    """Limit and spent."""
    setup = store.setup()
    assert setup is not None
    return unit_limit(setup), store.spent()


def test_a_branch_begins_with_the_prompts_and_the_finished_runs_of_its_run(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    path = prepared(tmp_path)
    with StoreReader.open(tmp_path / "runs-0001.sqlite") as parent, StoreReader.open(path) as branch:
        assert branch.prompts() == AFTER
        assert [candidate.prompts for candidate in branch.candidates()] == [BEFORE, AFTER]
        assert branch.candidates()[1].parent == branch.candidates()[0].candidate
        copied = branch.runs()
        assert [run.run_id for run in copied] == ["r1", "r2", "r3", "r4"]
        for run, original in zip(copied, parent.runs(), strict=True):
            assert (run.split, run.score, run.baseline) == (original.split, original.score, original.baseline)
            rows = [dataclasses.replace(row, reused=True) for row in parent.examples(original.run_id)]
            assert branch.examples(run.run_id) == rows
            assert branch.planned_ids(run.run_id) == parent.planned_ids(original.run_id)
            assert (run.turn, run.reused_count) == (0, run.judged_count)
        for split in ("train", "val"):
            assert measured_scores(branch, split) == measured_scores(parent, split)
        assert (branch.spent(), branch.evaluated_examples(), branch.iterations()) == (0, 0, [])
        assert state_of(branch) == "interrupted"


def test_runs_of_other_prompts_and_unfinished_ones_stay_behind(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as store:
        other = {**BEFORE, "topic": "Guess."}
        add_run(store, "train", [1, 1], other)
        add_run(store, "train", [1, 1], other, ends=False)
        add_run(store, "val", [1, 1, 1, 1], BEFORE)
    path = prepared(tmp_path, "r6")
    with StoreReader.open(path) as branch:
        assert branch.prompts() == other
        # Both baselines, one run of the other prompts, one more of the unchanged ones on val.
        assert [(run.split, dict(run.prompts), run.baseline) for run in branch.runs()] == [
            ("train", BEFORE, True),
            ("val", BEFORE, True),
            ("train", other, False),
            ("val", BEFORE, False),
        ]


def test_the_unchanged_prompts_can_be_branched_from(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    with StoreReader.open(prepared(tmp_path, "r1")) as branch:
        assert branch.prompts() == BEFORE
        assert [run.run_id for run in branch.runs()] == ["r1", "r2"]


def test_the_budget_is_what_the_parent_has_left_when_the_branch_begins(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as parent:
        limit, spent = budget_of(parent)
        path = prepare_branch(parent, "r3")  # while its process works
        parent.charge(3, "evaluate")  # what was under way
        with RunStore.open(path) as branch, pytest.raises(StoreInUse, match="runs-0001"):
            begin_branch(branch)
    with RunStore.open(path) as branch:
        begin_branch(branch)
        begin_branch(branch)
        assert budget_of(branch) == (limit - spent - 3, 0)
        ledger = UnitLedger(unit_limit(branch.setup() or {}), journal=branch)
        with ledger.reserve(2, "evaluate") as slot:
            slot.settle(1)
            state = ledger.state()
            assert (state.spent, state.reserved, state.left) == (1, 1, limit - spent - 5)


def test_with_units_of_its_own_neither_units_nor_dollars_of_the_parent_count(tmp_path: Path) -> None:
    with write_small(tmp_path) as parent:
        parent.record_lm_calls(LMCall("eval", "m", "answered", 1, 1, 2_000_000_000_000))
    for units, limit, dollars in [(7, 7, 0), (None, budget_of_small(), 2_000_000_000_000)]:
        with RunStore.open(prepared(tmp_path, units=units)) as branch:
            begin_branch(branch)
            setup = branch.setup()
            assert setup is not None
            assert unit_limit(setup) == limit
            before = setup["branch"]["picodollars_before"]
            assert before == dollars
            costs = CostLedger(5.0, journal=branch, spent_before=before).state()
            assert costs.spent == dollars
            assert costs.left == 5_000_000_000_000 - dollars


def budget_of_small() -> int:
    return 5 * 6 + 4 - 10  # of which r3 and r4 have taken ten


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(1, 6)), min_size=1, max_size=4))
def test_in_every_branch_of_a_branch_the_budget_is_exact(
    tmp_path_factory: pytest.TempPathFactory, chain: list[tuple[bool, int]]
) -> None:
    directory = tmp_path_factory.mktemp("chain")
    write_small(directory).close()
    left = budget_of_small()
    for number, (is_rest, amount) in enumerate(chain, start=1):
        with RunStore.open(prepared(directory, number=number, units=None if is_rest else 10 + amount)) as branch:
            begin_branch(branch)
            expected = left if is_rest else 10 + amount
            ledger = UnitLedger(unit_limit(branch.setup() or {}), journal=branch)
            with ledger.reserve(min(amount, expected - 1), "evaluate") as slot:
                slot.settle(slot.open)
            state = ledger.state()
            assert (state.limit, state.spent + state.reserved + (state.left or 0)) == (expected, expected)
            assert branch.prompts() == AFTER
            left = state.left or 0


def test_a_kill_while_a_branch_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path).close()
    fill = BranchCopy.__call__

    def killed(copy: BranchCopy, database: sqlite3.Connection) -> None:
        fill(copy, database)
        os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patched:
        patched.setattr(BranchCopy, "__call__", killed)
        child = os.fork()
        if not child:
            try:
                prepared(tmp_path)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert stores_in(tmp_path) == [1]
    prepared(tmp_path)
    assert stores_in(tmp_path) == [1, 2]
    assert not list(tmp_path.glob("*.new*"))


def test_a_copy_that_fails_leaves_no_branch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_small(tmp_path).close()
    with monkeypatch.context() as patched:
        patched.setattr(BranchCopy, "_fill", lambda copy, database: database.execute("SELECT nothing"))
        with pytest.raises(Exception, match="nothing"):
            prepared(tmp_path)
    assert stores_in(tmp_path) == [1]


def test_a_running_parent_is_asked_and_its_branch_is_found(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as parent:
        Requests(parent.path).note("Look at 3 first.")  # for a turn that the parent's agent no longer comes to
        path = prepare_branch(parent, "r3", note="Now shorter.")
        assert Requests(parent.path).branching
        assert branch_of(parent.path) == path
        assert Requests(parent.path).note_texts() == []
    assert Requests(path).take_notes() == ["Look at 3 first.", "Now shorter."]
    with RunStore.open(path) as branch:
        begin_branch(branch)
    assert branch_of(parent.path) is None  # it has begun


@pytest.mark.parametrize("planted", ["garbage", "a link to nothing", "another setup", "no setup"])
def test_what_others_put_in_the_place_of_a_branch_is_none(tmp_path: Path, planted: str) -> None:
    with write_small(tmp_path, ends=False) as parent:
        place = tmp_path / "runs-9999.sqlite"
        if planted == "garbage":
            place.write_bytes(b"SQLite format 3\0" * 100)
        elif planted == "a link to nothing":
            place.symlink_to(tmp_path / "nothing")
        else:
            with RunStore.create(place) as store:
                if planted == "another setup":
                    store.record_setup(setup_of(2, 0, branch=["runs-0001.sqlite"]))
        assert branch_of(parent.path) is None
        Requests(parent.path).branch()
        person = PersonRequests(Requests(parent.path), parent, Emitter())
        assert person.ending() is None
        assert not Requests(parent.path).branching


def test_a_parent_that_nobody_works_on_is_asked_nothing(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    path = prepared(tmp_path)
    assert not Requests(tmp_path / "runs-0001.sqlite").directory.exists()
    assert branch_of(tmp_path / "runs-0001.sqlite") == path
    assert branch_of(path) is None


def test_a_branch_that_cannot_be_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with write_small(tmp_path) as parent:
        parent.charge(budget_of_small(), "evaluate")
        for options, kind, match in [
            ({"run_id": "r9"}, UnknownRunError, "r9"),
            ({"run_id": "r3"}, InvalidSetup, "no budget left; give the branch units of its own"),
            ({"run_id": "r3", "units": 0}, InvalidSetup, "units must be from 1"),
            ({"run_id": "r3", "units": True}, InvalidSetup, "units must be a whole number"),
            ({"run_id": "r3", "units": 5, "note": " "}, InvalidSetup, "the note is empty"),
        ]:
            with pytest.raises(kind, match=match):
                prepare_branch(parent, **options)  # pyright: ignore[reportArgumentType] # some are wrong
    with RunStore.create_in(tmp_path / "new") as empty, pytest.raises(InvalidSetup, match="has not begun"):
        prepare_branch(empty, "r1")
    assert stores_in(tmp_path) == [1]


@pytest.mark.parametrize(("run_id", "told"), [("r4", True), ("r5", False)])
def test_the_agent_of_a_branch_is_told_of_its_run_unless_that_is_on_test(
    tmp_path: Path, run_id: str, told: bool
) -> None:
    with write_small(tmp_path) as parent:
        add_run(parent, "test", [1, 0, 0, 0, 0, 0, 0], AFTER)
    with RunStore.open(prepared(tmp_path, run_id, units=5)) as branch:
        assert branch.prompts() == AFTER
        described = branch_in(branch.setup())
        assert described is not None
        text = branch_text(described, branch.runs())
    assert ("of val." in text) is told
    assert ("14.29" in text, "of test" in text) == (False, False)


@pytest.mark.parametrize("next_one", ["a new one", "a branch"])
def test_what_was_asked_of_a_store_that_was_removed_is_not_heeded_by_the_next_one(
    tmp_path: Path, next_one: str
) -> None:
    write_small(tmp_path).close()
    old = tmp_path / "runs-0002.sqlite"
    write_small(tmp_path, ends=False).close()
    Requests(old).pause()
    Requests(old).stop()
    Requests(old).note("Look at the dates.")
    old.unlink()
    if next_one == "a branch":
        path = prepared(tmp_path)
    else:
        with open_store(tmp_path, setup_of(2, 0), resume=False) as store:
            path = store.path
    requests = Requests(path)
    assert path == old
    assert (requests.pausing, requests.stopping, requests.notes()) == (False, False, [])


def test_a_branch_that_has_not_begun_is_not_branched(tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as parent:
        first = prepare_branch(parent, "r3")
        with StoreReader.open(first) as branch, pytest.raises(InvalidSetup, match=r"has not begun; .* runs-0001"):
            prepare_branch(branch, "r1")  # it would get units that the parent may spend yet
        assert branch_of(parent.path) == first


def test_a_parent_that_is_gone_is_missed_only_where_its_budget_is_needed(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    rest, own = prepared(tmp_path), prepared(tmp_path, units=5)
    (tmp_path / "runs-0001.sqlite").unlink()
    with RunStore.open(rest) as branch, pytest.raises(InvalidSetup, match="is gone from its directory; put it back"):
        begin_branch(branch)
    with RunStore.open(own) as branch:
        begin_branch(branch)
        assert budget_of(branch) == (5, 0)


def test_a_setup_that_names_a_file_elsewhere_leads_nowhere(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path / "one") as store:
        branch = {"store": "../two/runs-0001.sqlite", "begun": False, "units": None, "limit": 9}
        store.record_setup(setup_of(2, 0, branch=branch))
        with RunStore.create_in(tmp_path / "two"), pytest.raises(InvalidSetup, match="is gone"):
            begin_branch(store)


def test_charges_of_a_branch_are_its_own(tmp_path: Path) -> None:
    write_small(tmp_path).close()
    with RunStore.open(prepared(tmp_path)) as branch:
        begin_branch(branch)
        run_id = add_run(branch, "train", [1, 0], AFTER)
        assert branch.run(run_id).run_id == "r5"
        assert branch.charges() == [Charge(2, "evaluate")]
