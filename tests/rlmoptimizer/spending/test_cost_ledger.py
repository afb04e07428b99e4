"""The ledger in dollars and its law; for whole compiles see test_costs_of_compiles.py."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from rlmoptimizer import CostExceededError
from rlmoptimizer.agent.call_gate import CallGate
from rlmoptimizer.agent.llm_tools import SubLMMeter
from rlmoptimizer.events import Emitter
from rlmoptimizer.records import LMCall, Role, RoleUsage, dollars, picodollars, total_usd
from rlmoptimizer.spending.cost_ledger import BUFFER_SECONDS, CostLedger
from rlmoptimizer.spending.ledger import LedgerState, Slot, UnitLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.text import usd_text

DOLLAR = 10**12


def call(role: Role = "eval", usd: float | None = 0.01, *, cached: bool = False, tokens: int | None = 10) -> LMCall:
    if cached:
        return LMCall(role, "offline/x", "cached", 0, 0, 0)
    return LMCall(role, "offline/x", "answered", tokens, tokens, None if usd is None else picodollars(usd))


class Journal:
    """A journal in memory: the same contract as the run store's."""

    def __init__(self) -> None:
        self.calls: list[LMCall] = []
        self.examples = 0

    def record_lm_calls(self, *calls: LMCall) -> None:
        self.calls += calls

    def lm_usage(self) -> dict[Role, RoleUsage]:
        roles = {call.role for call in self.calls}
        return {
            role: sum((RoleUsage.of(call) for call in self.calls if call.role == role), RoleUsage()) for role in roles
        }

    def evaluated_examples(self) -> int:
        return self.examples


# money


@given(st.floats(0, 999_999))
def test_dollars_are_kept_to_the_picodollar(usd: float) -> None:
    amount = picodollars(usd)
    assert amount is not None
    assert abs(dollars(amount) - usd) <= max(1e-12, usd * 1e-15)


@pytest.mark.parametrize("figure", [-0.01, float("nan"), float("inf"), 1e6, True, None, "1", 1j])
def test_what_is_no_price_is_none(figure: Any) -> None:
    assert picodollars(figure) is None


@pytest.mark.parametrize(
    ("usd", "text"),
    [
        (0, "$0.00"),
        (12.345, "$12.35"),
        (1234.5, "$1,234.50"),
        (0.5, "$0.500"),
        (0.0123, "$0.0123"),
        (0.000123456, "$0.000123"),
        (-0.02, "-$0.0200"),
        (-3.0, "-$3.00"),
    ],
)
def test_dollars_can_be_read(usd: float, text: str) -> None:
    assert usd_text(usd) == text


# the ledger


@pytest.mark.smoke
def test_what_calls_cost_is_spent_and_what_is_to_come_is_set_aside() -> None:
    ledger = CostLedger(1.0)
    assert ledger.state() == LedgerState(limit=DOLLAR, spent=0, reserved=0, left=DOLLAR)
    with ledger.reserve(2, "evaluate") as baseline:
        for _ in range(4):  # two calls for each example
            ledger.record(call())
        baseline.settle(2)
    with ledger.reserve(10, "evaluate") as slot:
        assert ledger.state() == LedgerState(DOLLAR, spent=4 * 10**10, reserved=20 * 10**10, left=76 * 10**10)
        ledger.record(call(usd=0.03))
        slot.settle(1)
        assert ledger.state() == LedgerState(DOLLAR, spent=7 * 10**10, reserved=18 * 10**10, left=75 * 10**10)
    assert ledger.state() == LedgerState(DOLLAR, spent=7 * 10**10, reserved=0, left=93 * 10**10)


def test_examples_that_do_not_fit_are_refused_whole_and_told_what_would_fit() -> None:
    ledger = CostLedger(0.10)
    with ledger.reserve(1, "evaluate") as slot:
        ledger.record(call(usd=0.02))
        slot.settle(1)
    with pytest.raises(CostExceededError) as refused, ledger.reserve(5, "evaluate"):
        raise AssertionError("entered")
    assert (refused.value.asked_usd, refused.value.left_usd, refused.value.fits) == (0.1, 0.08, 4)
    said = "expected to cost $0.100, and $0.0800 of max_cost_usd are left; pass fewer ids or a limit of 4"
    assert str(refused.value) == said
    with ledger.reserve(4, "evaluate"), pytest.raises(CostExceededError), ledger.reserve(1, "evaluate"):
        raise AssertionError("entered")
    assert ledger.state().reserved == 0


@pytest.mark.parametrize(
    ("asked", "left", "purpose", "fits", "advice"),
    [
        (0.5, 0.2, "validate", 3, "val always runs whole; what is left can still be spent on train (limit=3)"),
        (0.5, 0.2, "llm_query", 1, "send at most 1 prompt"),
        (0.5, 0.2, "llm_query", 2, "send at most 2 prompts"),
        (0.5, 0.2, "evaluate", 0, "no more of it can be paid; submit what is best so far"),
        (0.5, -0.1, "evaluate", 0, "max_cost_usd is used up; no more of it can be paid; submit what is best so far"),
    ],
)
def test_a_refusal_says_what_would_do(asked: float, left: float, purpose: str, fits: int, advice: str) -> None:
    assert str(CostExceededError(asked, left, purpose, fits=fits)).endswith(advice)


def test_no_more_examples_are_settled_than_something_was_set_aside_for() -> None:
    ledger = CostLedger(1.0)
    with ledger.reserve(2, "evaluate") as slot:
        slot.settle(2)
        for count in (1, -1):
            with pytest.raises(ValueError, match=f"cannot settle {count} of 0"):
                slot.settle(count)
    assert ledger.state().reserved == 0


def test_a_prompt_is_expected_to_cost_what_prompts_have_cost_on_average() -> None:
    ledger = CostLedger(1.0)
    ledger.check("sub", 1000)  # nobody knows yet
    ledger.record(call("sub", 0.1))
    ledger.record(call("sub", 0.3))
    ledger.record(call("sub", cached=True))  # cost nothing, and says nothing of the price
    ledger.record(call("sub", None))  # neither does this
    ledger.check("sub", 3)
    with pytest.raises(CostExceededError) as refused:
        ledger.check("sub", 4)
    assert (refused.value.fits, refused.value.asked_usd) == (3, 0.8)
    with ledger.calling("sub"):
        assert ledger.state().reserved == picodollars(0.2)
        with pytest.raises(CostExceededError):
            ledger.check("sub", 3)
    assert ledger.state().reserved == 0


def test_a_turn_is_expected_to_cost_no_less_than_the_one_before() -> None:
    ledger = CostLedger(1.0)
    for usd in (0.1, 0.2, 0.3):  # each tells the whole history once more
        ledger.record(call("root", usd))
    ledger.check("root")
    ledger.record(call("eval", 0.2))
    with pytest.raises(CostExceededError):
        ledger.check("root")  # the mean would fit


def test_the_agent_may_go_on_while_evaluations_in_its_background_hold_the_rest() -> None:
    ledger = CostLedger(1.0)
    ledger.record(call("root", 0.1))
    with ledger.reserve(1, "evaluate") as slot:
        ledger.record(call("eval", 0.2))
        slot.settle(1)
    with ledger.reserve(3, "evaluate"):
        ledger.record(call("sub", 0.05))
        with pytest.raises(CostExceededError):
            ledger.check("sub", 2)
        ledger.check("root")


def test_an_example_is_taken_to_cost_as_if_nothing_came_from_the_cache() -> None:
    ledger = CostLedger(1.0)
    with ledger.reserve(4, "evaluate") as slot:
        for _ in range(3):
            ledger.record(call(cached=True))
        ledger.record(call(usd=0.3))
        slot.settle(4)
    with pytest.raises(CostExceededError) as refused, ledger.reserve(3, "evaluate"):
        raise AssertionError("entered")
    assert refused.value.asked_usd == 0.9


def test_once_the_limit_is_spent_nothing_may_begin_even_if_it_was_free_so_far() -> None:
    ledger = CostLedger(0.01)
    ledger.record(call("eval", 0.0))
    assert not ledger.reached
    ledger.record(call("root", 0.0100001))
    assert ledger.reached
    left = ledger.state().left
    assert left is not None
    assert left < 0
    for role in ("root", "sub"):
        with pytest.raises(CostExceededError, match="used up"):
            ledger.check(role)
    with pytest.raises(CostExceededError), ledger.reserve(1, "evaluate"):
        raise AssertionError("entered")


def test_without_a_limit_everything_is_counted_and_nothing_refused() -> None:
    ledger = CostLedger()
    ledger.record(call("root", 900_000.0))
    ledger.check("root", 10**6)
    with ledger.reserve(10**6, "evaluate"):
        assert not ledger.reached
    assert ledger.state() == LedgerState(None, spent=900_000 * DOLLAR, reserved=0, left=None)


def test_an_unknown_price_makes_the_sum_unknown_not_smaller() -> None:
    ledger = CostLedger(1.0)
    ledger.record(call("eval", 0.25))
    ledger.record(call("eval", None))
    ledger.record(call("root", 0.5))
    used = {role: usage.as_dict() for role, usage in ledger.usage().items()}
    assert used["eval"] == {
        "calls": 2,
        "cached_calls": 0,
        "prompt_tokens": 20,
        "completion_tokens": 20,
        "cost_usd": None,
        "known_cost_usd": 0.25,
        "unpriced_calls": 1,
    }
    assert used["root"]["cost_usd"] == 0.5
    assert used["sub"]["cost_usd"] == 0.0  # nothing was asked
    assert total_usd(ledger.usage()) is None
    assert ledger.state().spent == picodollars(0.75)


def test_tokens_that_nobody_reported_are_unknown_and_those_of_cached_answers_are_none() -> None:
    silent = RoleUsage.of(call(tokens=None)).as_dict()
    assert (silent["prompt_tokens"], silent["completion_tokens"]) == (None, None)
    assert RoleUsage.of(call(cached=True)).as_dict()["prompt_tokens"] == 0
    assert (RoleUsage.of(call(tokens=None)) + RoleUsage.of(call())).as_dict()["prompt_tokens"] == 10


def test_a_ledger_goes_on_from_what_its_journal_holds(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "runs.sqlite") as store:
        ledger = CostLedger(1.0, journal=store)
        for made in (call("root", 0.1), call("eval", 0.2), call("eval", None, tokens=None), call("sub", cached=True)):
            ledger.record(made)
    with RunStore.open(tmp_path / "runs.sqlite") as store:
        again = CostLedger(1.0, journal=store)
        assert again.usage() == ledger.usage()
        assert again.state() == ledger.state()
        # a larger limit, as after "Raise it"
        assert CostLedger(2.0, journal=store).state().left == picodollars(1.7)


@pytest.mark.parametrize("limit", [None, 5.0])
def test_calls_of_the_program_are_written_together_unless_there_is_a_limit(limit: float | None) -> None:
    now = 0.0
    journal = Journal()
    ledger = CostLedger(limit, journal, clock=lambda: now)
    ledger.record(call("eval", 0.1))
    assert len(journal.calls) == (0 if limit is None else 1)
    now += BUFFER_SECONDS
    ledger.record(call("eval", 0.2))
    assert len(journal.calls) == 2
    ledger.record(call("eval", 0.3))
    ledger.record(call("root", 0.4))  # takes what waits along
    assert [made.cost for made in journal.calls] == [picodollars(usd) for usd in (0.1, 0.2, 0.3, 0.4)]
    ledger.record(call("eval", 0.5))
    ledger.flush()
    assert len(journal.calls) == 5
    assert ledger.state().spent == picodollars(1.5)


def test_a_call_that_cannot_be_written_down_is_counted_all_the_same() -> None:
    class Full(Journal):
        room = 0

        def record_lm_calls(self, *calls: LMCall) -> None:
            if not self.room:
                raise OSError("no space left")
            super().record_lm_calls(*calls)

    journal = Full()
    ledger = CostLedger(1.0, journal)
    for usd in (0.4, 0.3):
        with pytest.raises(OSError, match="no space"):
            ledger.record(call("root", usd))
    assert ledger.state().spent == picodollars(0.7)
    journal.room = 1
    ledger.flush()
    assert [made.cost for made in journal.calls] == [picodollars(0.4), picodollars(0.3)]


def test_threads_that_spend_together_spend_no_more_than_was_admitted(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "runs.sqlite") as store:
        ledger = CostLedger(1.0, journal=store)
        with ledger.reserve(1, "evaluate") as slot:
            ledger.record(call(usd=0.01))
            slot.settle(1)
        broken: list[LedgerState] = []

        def work(count: int) -> int:
            try:
                with ledger.reserve(count, "evaluate") as slot:
                    for _ in range(count):
                        ledger.record(call(usd=0.01))
                        slot.settle(1)
                        state = ledger.state()
                        assert state.left is not None
                        if state.spent + state.reserved + state.left != DOLLAR:
                            broken.append(state)
            except CostExceededError:
                return 0
            return count

        with ThreadPoolExecutor(16) as pool:
            done = sum(pool.map(work, [1, 2, 3, 5, 7] * 12))
        assert not broken
        assert ledger.state() == LedgerState(DOLLAR, (done + 1) * 10**10, 0, DOLLAR - (done + 1) * 10**10)
        assert ledger.state().spent <= DOLLAR
        assert store.lm_usage()["eval"].calls == done + 1


def test_of_threads_that_ask_at_one_moment_only_those_whose_prompts_can_be_paid_go_on() -> None:
    costs = CostLedger(1.0)
    costs.record(call("sub", 0.3))
    meter = SubLMMeter(1000, UnitLedger(1000), Emitter([]), CallGate(), UsageMeter(costs))
    start = threading.Barrier(64)

    def reserve(_: int) -> bool:
        start.wait(30)
        try:
            meter.reserve()
        except CostExceededError:
            return False
        return True

    with ThreadPoolExecutor(64) as pool:
        assert sum(pool.map(reserve, range(64))) == 2  # 70 cents are left, a prompt is expected to cost 30
    assert costs.state().reserved == picodollars(0.6)
    assert meter.calls == 2


def test_prompts_that_were_admitted_together_leave_nothing_set_aside() -> None:
    ledger = CostLedger(1.0)
    ledger.record(call("sub", 0.1))
    ledger.admit(5)
    with pytest.raises(CostExceededError):
        ledger.admit(5)
    assert ledger.state().reserved == picodollars(0.5)
    with ledger.calling("sub", 3):
        ledger.record(call("sub", 0.3))  # three completions in one call, twice as dear from now on
        with ledger.calling("sub"):
            pass
        assert ledger.state().reserved == picodollars(0.4)
    with ledger.calling("sub"), ledger.calling("sub"):  # one more than was admitted
        assert ledger.state().reserved == picodollars(0.1 + 0.2)
    assert ledger.state().reserved == 0


class DollarLedger(RuleBasedStateMachine):
    """Calls and evaluations that come and go, against sums that are kept beside them; the process dies now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.journal = Journal()
        self.limit = 10 * DOLLAR
        self.begin()

    def begin(self) -> None:
        self.ledger = CostLedger(10.0, journal=self.journal)
        self.open: list[tuple[Any, Slot]] = []
        self.calling: list[Any] = []
        self.admitted = 0

    @rule(role=st.sampled_from(["root", "sub", "eval"]), usd=st.none() | st.floats(0, 2), cached=st.booleans())
    def answered(self, role: Role, usd: float | None, cached: bool) -> None:
        self.ledger.record(call(role, usd, cached=cached))

    @rule(count=st.integers(0, 20))
    def evaluate(self, count: int) -> None:
        before = self.ledger.state()
        block = self.ledger.reserve(count, "evaluate")
        refused: CostExceededError | None = None
        try:
            slot = block.__enter__()
        except CostExceededError as error:
            refused = error
        if refused is not None:
            assert self.ledger.state() == before
            assert before.left is not None
            assert before.left <= 0 or refused.asked_usd > refused.left_usd
            if refused.fits:
                with self.ledger.reserve(refused.fits, "evaluate"):
                    pass
        else:
            left = self.ledger.state().left
            assert left is not None
            assert left >= 0  # never more is set aside than there is
            self.open.append((block, slot))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        _, slot = data.draw(st.sampled_from(self.open))
        done = data.draw(st.integers(0, slot.open))
        slot.settle(done)
        self.journal.examples += done

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        block, _ = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        block.__exit__(None, None, None)

    @rule()
    def ask_the_root(self) -> None:
        before = self.ledger.state()
        try:
            self.ledger.check("root")
        except CostExceededError:
            return
        finally:
            assert self.ledger.state() == before
        self.calling.append(self.ledger.calling("root"))
        self.calling[-1].__enter__()

    @rule(count=st.integers(1, 5))
    def admit(self, count: int) -> None:
        before = self.ledger.state()
        try:
            self.ledger.admit(count)
        except CostExceededError:
            assert self.ledger.state() == before
            return
        left = self.ledger.state().left
        assert left is not None
        assert left >= 0
        self.admitted += count

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        before, count = self.ledger.state(), data.draw(st.integers(1, self.admitted))
        self.admitted -= count
        self.calling.append(self.ledger.calling("sub", count))
        self.calling[-1].__enter__()
        assert self.ledger.state() == before

    @precondition(lambda self: self.calling)
    @rule()
    def asked(self) -> None:
        self.calling.pop().__exit__(None, None, None)

    @rule()
    def crash(self) -> None:
        spent = self.ledger.state().spent
        self.begin()
        assert self.ledger.state() == LedgerState(self.limit, spent, 0, self.limit - spent)

    @invariant()
    def the_law_holds(self) -> None:
        state = self.ledger.state()
        assert state.left is not None
        assert state.spent + state.reserved + state.left == self.limit
        assert state.spent == sum(made.cost or 0 for made in self.journal.calls)
        assert state.reserved >= 0
        if not self.open and not self.calling and not self.admitted:
            assert state.reserved == 0
        assert self.ledger.reached == (state.spent >= self.limit)

    @invariant()
    def unknown_is_not_zero(self) -> None:
        for role, usage in self.ledger.usage().items():
            unknown = any(made.role == role and made.cost is None for made in self.journal.calls)
            assert (usage.cost_usd is None) == unknown


DollarLedger.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestDollarLedger = DollarLedger.TestCase
