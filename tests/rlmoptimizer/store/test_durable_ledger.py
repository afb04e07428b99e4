"""The ledger on a real run store: the law under threads, and what is spent is what is stored, also after a crash."""

from __future__ import annotations

import random
import signal
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from child_process import forked
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from stored_runs import copy_as_killed, result

from rlmoptimizer.errors import BudgetExceededError
from rlmoptimizer.records import Charge
from rlmoptimizer.spending.ledger import LedgerState, Slot, UnitLedger
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

LIMIT = 60
PLAN = [str(number) for number in range(1, 400)]


def check_law(state: LedgerState) -> None:
    assert state.spent + state.reserved + state.left == state.limit
    assert min(state.spent, state.reserved, state.left) >= 0


class Work:
    """One piece of work of a thread: asked for so much, settled in these pieces, then left or failed."""

    def __init__(self, asked: int, pieces: list[int], how: str) -> None:
        self.asked = asked
        self.pieces = pieces
        self.how = how  # "journal", "results", "broken" (what is kept fails), "raises" (the work does)

    def __repr__(self) -> str:
        return f"Work({self.asked}, {self.pieces}, {self.how!r})"


works = st.builds(
    Work,
    st.integers(0, 12),
    st.lists(st.integers(0, 5), max_size=4),
    st.sampled_from(["journal", "results", "broken", "raises"]),
)


class LedgerOnAStore(RuleBasedStateMachine):
    """Threads reserve, settle and refund at random; the process dies and comes back; one number says what is spent.

    What is refused depends on which thread is first, so what is held does. Nothing that is drawn may depend on either.
    """

    @initialize()
    def make(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.crashes = 0
        self.store = RunStore.create_in(self.directory.name)
        self.run_id = self.store.begin_run("train", {}, {}, planned_ids=PLAN)
        self.next_example = iter(PLAN)
        self.spent = 0  # what was told as settled
        self.rows = 0  # results that were told as kept
        self.lock = threading.Lock()  # of the three above
        self.held: list[tuple[AbstractContextManager[Slot], Slot]] = []
        self.ledger = UnitLedger(LIMIT, self.store)

    def teardown(self) -> None:
        self.store.close()
        self.directory.cleanup()

    def settle(self, slot: Slot, amount: int, how: str) -> None:
        if how == "broken":
            with pytest.raises(OSError, match="full"):
                slot.settle(max(amount, 1), self.fail)
        elif how == "results":
            with self.lock:
                ids = [next(self.next_example) for _ in range(amount)]
            slot.settle(amount, lambda charge: self.store.append(self.run_id, *map(result, ids), charge=charge))
            with self.lock:
                self.rows += amount
        else:
            slot.settle(amount)

    def fail(self, charge: Charge) -> None:
        raise OSError("the disk is full")

    def work(self, work: Work) -> int:
        """Gives what it spent, 0 when it was refused."""
        spent = 0
        try:
            with self.ledger.reserve(work.asked, "evaluate") as slot:
                for piece in work.pieces:
                    check_law(self.ledger.state())
                    amount = min(piece, slot.open)
                    if work.how == "broken" and not slot.open:
                        break
                    self.settle(slot, amount, work.how)
                    spent += 0 if work.how == "broken" else amount
                if work.how == "raises":
                    raise KeyError("the work failed")
        except (BudgetExceededError, KeyError):
            pass
        return spent

    @rule(jobs=st.lists(works, min_size=1, max_size=16))
    def threads(self, jobs: list[Work]) -> None:
        done = threading.Event()

        def watch() -> None:
            latest = 0
            while not done.is_set():
                state = self.ledger.state()
                check_law(state)
                assert state.spent >= latest  # nothing that was spent ever comes back
                latest = state.spent

        with ThreadPoolExecutor(9) as pool:
            watcher = pool.submit(watch)
            try:
                self.spent += sum(pool.map(self.work, jobs))
            finally:
                done.set()
            watcher.result(30)

    @rule(amount=st.integers(0, 40))
    def hold(self, amount: int) -> None:
        block = self.ledger.reserve(amount, "llm_query")
        if amount > self.ledger.left:
            with pytest.raises(BudgetExceededError):
                block.__enter__()
        else:
            self.held.append((block, block.__enter__()))

    @rule(pick=st.integers(0, 9), amount=st.integers(0, 40), how=st.sampled_from(["journal", "results"]))
    def settle_what_is_held(self, pick: int, amount: int, how: str) -> None:
        if self.held:
            _, slot = self.held[pick % len(self.held)]
            amount %= slot.open + 1
            self.settle(slot, amount, how)
            self.spent += amount

    @rule(pick=st.integers(0, 9))
    def let_go(self, pick: int) -> None:
        if self.held:
            block, _ = self.held.pop(pick % len(self.held))
            block.__exit__(None, None, None)

    @rule(killed=st.booleans())
    def end_and_come_back(self, killed: bool) -> None:
        self.crashes += 1
        path = copy_as_killed(self.store, Path(self.directory.name) / str(self.crashes)) if killed else self.store.path
        self.store.close()
        self.held = []  # nobody gives back what died with its process
        self.store = RunStore.open(path)
        assert [run.run_id for run in self.store.cut_runs()] == [self.run_id]
        self.store.reopen_run(self.run_id)
        self.ledger = UnitLedger(LIMIT, self.store)

    @rule()
    def race_for_the_last_unit(self) -> None:
        left = self.ledger.left
        if self.held:
            return
        if left > 1:
            self.ledger.charge(left - 1, "evaluate")
            self.spent += left - 1
        assert race(self.ledger, 12) == min(left, 1)
        self.spent += min(left, 1)

    @invariant()
    def agrees(self) -> None:
        reserved = sum(slot.open for _, slot in self.held)
        assert self.ledger.state() == LedgerState(LIMIT, self.spent, reserved, LIMIT - self.spent - reserved)
        assert self.store.spent() == self.spent <= LIMIT
        assert self.store.evaluated_examples() == self.rows


TestLedgerOnAStore = LedgerOnAStore.TestCase
TestLedgerOnAStore.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)


def race(ledger: UnitLedger, threads: int) -> int:
    """How many of so many threads got a unit, each asking for one at the same moment."""
    start = threading.Barrier(threads)

    def ask(_: int) -> bool:
        start.wait(30)
        try:
            ledger.charge(1, "llm_query")
        except BudgetExceededError:
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        return sum(pool.map(ask, range(threads)))


def test_of_64_threads_that_race_for_the_last_unit_exactly_one_gets_it(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "runs.sqlite") as store:
        ledger = UnitLedger(10, store)
        ledger.charge(9, "evaluate")
        assert race(ledger, 64) == 1
        assert store.charges() == [Charge(9, "evaluate"), Charge(1, "llm_query")]
        assert race(ledger, 64) == 0
        assert ledger.state() == LedgerState(10, 10, 0, 0)


SPENDERS = """
import os, sys
from concurrent.futures import ThreadPoolExecutor
from stored_runs import result
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.spending.ledger import UnitLedger
from rlmoptimizer.errors import BudgetExceededError

path, log, limit = sys.argv[1], os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND), int(sys.argv[3])
store = RunStore.open(path)
(run,) = store.cut_runs()
left = [example_id for example_id, _ in store.reopen_run(run.run_id)]
ledger = UnitLedger(limit, store)

def work(example_id, units=3):
    try:
        with ledger.reserve(units, "evaluate") as slot:
            os.write(log, b"?")
            slot.settle(1, lambda charge: store.append(run.run_id, result(example_id), charge=charge))
            os.write(log, b"+")
    except BudgetExceededError:
        pass

with ThreadPoolExecutor(8) as pool:
    list(pool.map(work, left))
for example_id, _ in store.reopen_run(run.run_id):  # those refused while others held what they did not need
    work(example_id, 1)
os.write(log, b".")
sys.stdin.read()
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
@pytest.mark.parametrize("seed", range(2))
def test_threads_of_a_process_that_is_killed_have_spent_what_the_store_holds(
    tmp_path: Path, seed: int, wait_until: Callable[..., None]
) -> None:
    limit, rng = 300, random.Random(seed)
    path, log = tmp_path / "runs.sqlite", tmp_path / "told"
    log.touch()
    with RunStore.create(path) as store:
        store.begin_run("train", {}, {}, planned_ids=PLAN)
    killed_at = sorted(rng.sample(range(1, limit), 3))
    for stop in [*killed_at, None]:
        _run_until(path, log, limit, stop, wait_until)
        with StoreReader.open(path) as store:
            spent, begun, told = store.spent(), log.read_bytes().count(b"?"), log.read_bytes().count(b"+")
            assert told <= spent <= begun
            assert spent == store.evaluated_examples()
            state = UnitLedger(limit, store).state()
            check_law(state)
            assert state == LedgerState(limit, spent, 0, limit - spent)
    assert spent == limit  # there is more to do than can be paid


def _run_until(path: Path, log: Path, limit: int, stop: int | None, wait_until: Callable[..., None]) -> None:
    with forked(SPENDERS, path, log, limit) as child:

        def far_enough() -> bool:
            told = log.read_bytes()
            return b"." in told or not child.runs or (stop is not None and told.count(b"+") >= stop)

        wait_until(far_enough, "the spender came as far as it should", seconds=100)
        assert child.runs
