"""The ledger: spent + reserved + left == limit, whatever happens and in however many threads."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlmoptimizer.errors import BudgetExceededError
from rlmoptimizer.records import Charge
from rlmoptimizer.spending.ledger import LedgerState, UnitLedger
from rlmoptimizer.store.run_store import RunStore


class Journal:
    """A journal in memory: the same contract as the run store's."""

    def __init__(self, *charges: Charge) -> None:
        self.entries = list(charges)

    def charge(self, amount: int, purpose: str) -> None:
        self.entries.append(Charge(amount, purpose))

    def charges(self) -> list[Charge]:
        return self.entries


@pytest.mark.smoke
def test_units_are_set_aside_then_spent_and_the_rest_flows_back() -> None:
    journal = Journal()
    ledger = UnitLedger(100, journal)
    with ledger.reserve(40, "evaluate") as slot:
        assert ledger.state() == LedgerState(limit=100, spent=0, reserved=40, left=60)
        slot.settle(30)
        assert slot.open == 10
        assert ledger.state() == LedgerState(limit=100, spent=30, reserved=10, left=60)
    assert ledger.state() == LedgerState(limit=100, spent=30, reserved=0, left=70)
    assert journal.entries == [Charge(30, "evaluate")]


def test_leaving_without_settling_refunds_everything_also_after_an_error() -> None:
    ledger = UnitLedger(10)
    with ledger.reserve(10, "evaluate"):
        pass
    with pytest.raises(KeyError), ledger.reserve(10, "evaluate"):
        raise KeyError("the work failed")
    assert ledger.state() == LedgerState(10, 0, 0, 10)


def test_what_does_not_fit_is_refused_whole() -> None:
    ledger = UnitLedger(10)
    with ledger.reserve(7, "evaluate"):
        with pytest.raises(BudgetExceededError) as refused, ledger.reserve(4, "llm_query"):
            raise AssertionError("entered")
        assert (refused.value.asked, refused.value.left, refused.value.purpose) == (4, 3, "llm_query")
        with pytest.raises(BudgetExceededError):
            ledger.charge(4, "llm_query")
    assert ledger.left == 10


@pytest.mark.parametrize("amount", [-1, 4])
def test_a_slot_gives_no_more_than_it_holds(amount: int) -> None:
    journal = Journal()
    ledger = UnitLedger(10, journal)
    with ledger.reserve(3, "evaluate") as slot, pytest.raises(ValueError, match="cannot settle"):
        slot.settle(amount)
    assert ledger.spent == 0
    assert journal.entries == []


def test_a_slot_cannot_be_settled_after_its_block() -> None:
    ledger = UnitLedger(10)
    with ledger.reserve(3, "evaluate") as slot:
        pass
    with pytest.raises(ValueError, match="cannot settle 1 of 0"):
        slot.settle(1)


def test_negative_units_cannot_be_reserved() -> None:
    with pytest.raises(ValueError, match="cannot reserve"), UnitLedger(10).reserve(-1, "evaluate"):
        pass


def test_nothing_is_written_down_for_nothing() -> None:
    journal = Journal()
    ledger = UnitLedger(10, journal)
    with ledger.reserve(0, "evaluate") as slot:
        slot.settle(0)
    ledger.charge(0, "llm_query")
    assert journal.entries == []


def test_a_journal_that_fails_spends_nothing() -> None:
    class Broken(Journal):
        def charge(self, amount: int, purpose: str) -> None:
            raise OSError("disk full")

    ledger = UnitLedger(10, Broken())
    with pytest.raises(OSError, match="disk full"):
        ledger.charge(3, "llm_query")
    assert ledger.state() == LedgerState(10, 0, 0, 10)


def test_a_ledger_goes_on_where_its_journal_ends(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "runs.sqlite") as store:
        ledger = UnitLedger(50, store)
        with ledger.reserve(20, "evaluate") as slot:
            slot.settle(5)
            slot.settle(6)
        ledger.charge(2, "llm_query")
    with RunStore.open(tmp_path / "runs.sqlite") as store:
        assert UnitLedger(50, store).state() == LedgerState(50, 13, 0, 37)
        assert store.charges() == [Charge(5, "evaluate"), Charge(6, "evaluate"), Charge(2, "llm_query")]


def test_a_journal_beyond_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="holds 11 units of a limit of 10"):
        UnitLedger(10, Journal(Charge(11, "evaluate")))


def check_law(state: LedgerState) -> None:
    assert state.spent + state.reserved + state.left == state.limit
    assert min(state.spent, state.reserved, state.left) >= 0


@settings(deadline=None, max_examples=20)
@given(
    limit=st.integers(0, 60),
    jobs=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=40),
)
def test_the_law_holds_at_every_moment_under_threads(limit: int, jobs: list[tuple[int, int]]) -> None:
    journal = Journal()
    ledger = UnitLedger(limit, journal)
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            check_law(ledger.state())

    def work(job: tuple[int, int]) -> int:
        asked, used = job
        try:
            with ledger.reserve(asked, "evaluate") as slot:
                spent = min(asked, used)
                slot.settle(spent // 2)
                slot.settle(spent - spent // 2)
                return spent
        except BudgetExceededError:
            return 0

    with ThreadPoolExecutor(5) as pool:
        watcher = pool.submit(watch)
        spent = sum(pool.map(work, jobs))
        done.set()
        watcher.result()
    assert ledger.state() == LedgerState(limit, spent, 0, limit - spent)
    assert sum(charge.amount for charge in journal.entries) == spent


class LedgerAgainstModel(RuleBasedStateMachine):
    """Open, settle and leave slots in any order; three integers say what must come out."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal()
        self.ledger = UnitLedger(30, self.journal)
        self.spent = 0
        self.open: list[tuple[object, object, int]] = []

    @property
    def reserved(self) -> int:
        return sum(left for _, _, left in self.open)

    @rule(amount=st.integers(0, 40))
    def reserve(self, amount: int) -> None:
        block = self.ledger.reserve(amount, "evaluate")
        if amount > 30 - self.spent - self.reserved:
            with pytest.raises(BudgetExceededError):
                block.__enter__()
        else:
            self.open.append((block, block.__enter__(), amount))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.open) - 1))
        block, slot, left = self.open[index]
        amount = data.draw(st.integers(0, left))
        slot.settle(amount)
        self.open[index] = (block, slot, left - amount)
        self.spent += amount

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        block, _, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        block.__exit__(None, None, None)

    @rule()
    def begin_again_from_the_journal(self) -> None:
        assert UnitLedger(30, self.journal).spent == self.spent

    @invariant()
    def agrees(self) -> None:
        assert self.ledger.state() == LedgerState(30, self.spent, self.reserved, 30 - self.spent - self.reserved)


TestLedgerAgainstModel = LedgerAgainstModel.TestCase
TestLedgerAgainstModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_a_part_of_a_slot_is_taken_from_it_and_flows_back_to_it() -> None:
    ledger = UnitLedger(10)
    with ledger.reserve(8, "evaluate") as whole:
        with whole.reserve(5, "evaluate") as part:
            assert (whole.open, part.open, ledger.left) == (3, 5, 2)
            part.settle(2)
        assert (whole.open, part.open, ledger.spent, ledger.left) == (6, 0, 2, 2)
        whole.release(4)
        assert (whole.open, ledger.left) == (2, 6)
        for wrong in (lambda: whole.release(3), lambda: whole.reserve(3, "evaluate").__enter__()):
            with pytest.raises(ValueError, match="3 of 2 reserved"):
                wrong()
    assert ledger.state() == LedgerState(10, 2, 0, 8)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=8))
def test_parts_and_releases_keep_the_law_of_the_ledger(steps: list[tuple[int, int, int]]) -> None:
    ledger = UnitLedger(30)
    with ledger.reserve(20, "evaluate") as whole:
        for taken, settled, released in steps:
            with whole.reserve(min(taken, whole.open), "evaluate") as part:
                part.settle(min(settled, part.open))
                state = ledger.state()
                assert state.reserved == whole.open + part.open
                assert state.spent + state.reserved + ledger.left == 30
            whole.release(min(released, whole.open))
            assert ledger.state().reserved == whole.open
    assert ledger.state().reserved == 0
