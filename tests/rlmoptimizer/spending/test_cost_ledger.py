"""The ledger in dollars: its law, by itself and in whole compiles."""

from __future__ import annotations

import logging
import threading
from ast import literal_eval
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy import lm15
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from offline import Asked, ScriptedRootLM
from priced import by_call, priced, priced_fields, priced_text
from responses_server import ResponsesServer, turn

from rlmoptimizer import CostExceededError, CostLimitReached, InvalidSetup
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
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


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


# prices that must be known before


@pytest.mark.parametrize("role", ["root", "sub", "eval"])
def test_a_limit_is_refused_before_anything_runs_if_an_lm_can_never_count_against_it(role: str) -> None:
    root = ScriptedRootLM([SUBMIT])
    lms: dict[str, Any] = {
        "root_lm": priced(root.engine, "root"),
        "sub_lm": priced_text(str, "sub"),
        "eval_lm": priced_fields(toy.respond, "eval"),
    }
    lms[f"{role}_lm"] = {"root": root.lm, "sub": toy.sub_lm(), "eval": toy.eval_lm()}[role]
    optimizer = toy.optimizer(root, max_cost_usd=1.0, **lms)
    with pytest.raises(InvalidSetup, match=rf"max_cost_usd must be None, .* offline/{role} \(the {role} LM\)"):
        optimizer.compile(toy.Triage(), trainset=toy.trainset(), metric=toy.metric)
    assert root.seen == []


def test_an_lm_that_is_never_asked_needs_no_price() -> None:
    result = compiled([SUBMIT], sub_lm=toy.sub_lm(), rlm_max_llm_calls=0, max_cost_usd=1.0)[0]
    assert result.usage["sub"]["calls"] == 0


# whole compiles


def compiled(turns: list[Any], *, root_price: Any = None, **options: Any) -> tuple[Any, ScriptedRootLM]:
    """`toy.compiled` with LMs that have prices: a turn 1 cent, a prompt 1 cent, an example 2 cents (two calls)."""
    root = ScriptedRootLM(turns, idle="pass")
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "metric": toy.metric, "valset": toy.valset()}
    arguments |= {name: options.pop(name) for name in ("trainset", "valset") if name in options}
    lms: dict[str, Any] = {
        "root_lm": priced(root.engine, "root", price=root_price or by_call(0.01)),
        "sub_lm": priced_text(lambda prompt: f"heard: {prompt}", "sub", price=by_call(0.01)),
        "eval_lm": priced_fields(toy.respond, "eval", price=by_call(0.01)),
    }
    resume = options.pop("resume", False)
    return toy.optimizer(root, **{**lms, **options}).compile(toy.Triage(), **arguments, resume=resume), root


def outputs(result: Any) -> list[str]:
    return [entry["output"].strip() for entry in result.agent_trajectory]


BASELINE = 0.20  # dollars: ten examples, two calls each


@pytest.mark.smoke
def test_what_each_role_used_and_cost_is_in_the_result_the_events_and_the_store(tmp_path: Path) -> None:
    eval_lm, sub_lm = priced_fields(toy.respond, "eval"), priced_text(lambda prompt: "two words", "sub")
    code = "llm_query('what is this?'); llm_query_batched(['a b', 'c']); evaluate_program(limit=3)"
    result, root = compiled([code, SUBMIT], eval_lm=eval_lm, sub_lm=sub_lm, run_storage_dir=tmp_path)
    assert result.usage["root"]["calls"] == 2 == len(root.seen)
    assert result.usage["root"]["cost_usd"] == 0.02
    assert result.usage["sub"] == {
        "calls": 3,
        "cached_calls": 0,
        "prompt_tokens": 3 + 2 + 1,
        "completion_tokens": 2 + 2 + 2,
        "cost_usd": 0.00012,
        "known_cost_usd": 0.00012,
        "unpriced_calls": 0,
    }
    used = result.usage["eval"]
    assert used["calls"] == 2 * (6 + 4 + 3) == len(eval_lm.history)
    assert used["prompt_tokens"] == sum(entry["usage"]["prompt_tokens"] for entry in eval_lm.history)
    assert used["cost_usd"] == pytest.approx(sum(entry["cost"] for entry in eval_lm.history), abs=1e-12)
    assert result.cost_usd == pytest.approx(sum(used["cost_usd"] for used in result.usage.values()), abs=1e-12)
    with RunStore.open_in(tmp_path) as store:
        assert {role: usage.as_dict() for role, usage in store.lm_usage().items()} == result.usage
        assert store.events("CompileFinished")[-1].data["usage"] == result.usage
        told = [event.data["usage"] for event in store.events("LMUsageCounted")]
    assert [usage["root"]["calls"] for usage in told] == [0, 1, 2]  # after the baseline, and after every turn
    assert [usage["eval"]["calls"] for usage in told] == [20, 26, 26]


def test_one_lm_in_all_three_roles_is_told_apart() -> None:
    root = ScriptedRootLM(["print(llm_query('what is this?')); evaluate_program(limit=2)", SUBMIT])

    class Everything:
        def complete(self, request: lm15.Request) -> lm15.Response:
            if "You improve a DSPy program" in str(request.system):
                return root.engine.complete(request)
            known = "Say what" in str(request.system) or "Answer by" in str(request.system)
            return toy.eval_lm().engine.complete(request) if known else toy.sub_lm().engine.complete(request)

    lm = priced(Everything(), "everything", price=by_call(0.001))
    with dspy.context(lm=lm):
        result = toy.optimizer(root, root_lm=lm, sub_lm=None, eval_lm=None).compile(
            toy.Triage(), trainset=toy.trainset(), metric=toy.metric
        )
    assert {role: used["calls"] for role, used in result.usage.items()} == {"root": 2, "sub": 1, "eval": 2 * (6 + 2)}
    assert result.usage["eval"]["cost_usd"] == 0.016
    assert len(lm.history) == 2 + 1 + 16


def test_answers_from_the_cache_cost_nothing() -> None:
    eval_lm = priced_fields(toy.respond, "cached-eval", cache=True, price=by_call(0.01))
    code = "for _ in range(3):\n    evaluate_program(limit=2)"
    result, _ = compiled([code, SUBMIT], eval_lm=eval_lm)
    used = result.usage["eval"]
    asked = len({str(request) for request in eval_lm.engine.requests})
    assert len(eval_lm.engine.requests) == asked  # nothing was asked twice
    assert (used["calls"], used["cached_calls"]) == (2 * 16, 2 * 16 - asked)
    assert used["cost_usd"] == pytest.approx(0.01 * asked)
    again = compiled([SUBMIT], eval_lm=eval_lm)[0].usage["eval"]
    assert (again["calls"], again["cached_calls"], again["cost_usd"], again["prompt_tokens"]) == (20, 20, 0.0, 0)


def test_what_sub_agents_ask_is_the_sub_lms() -> None:
    def fine(question: Asked) -> dict[str, object]:
        return dict.fromkeys(question.outputs or ("answer",), "fine")

    sub = priced_fields(fine, "sub", price=by_call(0.5))
    code = "import dspy; print(dspy.Predict('question -> answer')(question='q').answer)"
    result, _ = compiled([code, SUBMIT], sub_lm=sub, sub_agents=True)
    assert outputs(result)[0] == "fine"
    assert result.usage["sub"]["cost_usd"] == 0.5
    assert result.usage["root"]["calls"] == 2


def test_a_price_that_is_not_known_is_said_once_and_is_none(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, _ = compiled([SUBMIT], eval_lm=toy.eval_lm())
    assert result.usage["eval"]["cost_usd"] is None
    assert result.usage["eval"]["unpriced_calls"] == 20
    assert result.cost_usd is None
    assert result.usage["root"]["cost_usd"] == 0.01
    told = [record.getMessage() for record in caplog.records if "price" in record.getMessage()]
    assert told == [
        "The price of offline/eval (eval LM) is not known (custom engine has no pricing provider): its cost is given "
        "as None, and counts against no limit"
    ]


def test_the_figures_are_dspys_own_for_a_provider_that_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "true")
    with ResponsesServer([turn("done", SUBMIT)]) as server:
        lm = dspy.LM("openai/gpt-4o-mini", model_type="responses", api_base=server.url, api_key="none", cache=False)
        result, _ = compiled([], root_lm=lm, max_cost_usd=1.0)
    assert result.usage["root"]["calls"] == 1
    assert result.usage["root"]["cost_usd"] == pytest.approx(lm.history[0]["cost"])
    assert lm.history[0]["cost"] > 0
    assert result.usage["root"]["prompt_tokens"] == lm.history[0]["usage"]["prompt_tokens"]


# at the limit


def test_the_agent_is_told_what_it_may_cost_and_what_is_left_of_it() -> None:
    code = "s = optimization_status(); print(task_facts['max_cost_usd'], s['cost_usd'], s['remaining_cost_usd'])"
    result, _ = compiled([code, "print(evaluate_program(limit=1)['summary_line'])", SUBMIT], max_cost_usd=1.0)
    assert outputs(result)[0] == "1.0 0.21 0.79"
    assert outputs(result)[1].endswith("33 budget units left; $0.760 of max_cost_usd left")


def test_an_evaluation_that_is_expected_to_cost_too_much_is_refused_whole() -> None:
    code = """
try:
    evaluate_program()
except Exception as e:
    print(type(e).__name__, e)
s = optimization_status()
print(s['spent_budget'], len(s['runs']), s['cost_usd'])
print(evaluate_program(limit=4)['evaluated_count'])
"""
    result, _ = compiled([code, SUBMIT], max_cost_usd=BASELINE + 0.105)
    said = outputs(result)[0].splitlines()
    assert said == [
        "CostExceededError expected to cost $0.120, and $0.0950 of max_cost_usd are left; "
        "pass fewer ids or a limit of 4",
        "0 2 0.21",
        "4",
    ]
    assert result.usage["eval"]["cost_usd"] == 0.28


def test_sub_lm_prompts_that_are_expected_to_cost_too_much_are_refused_whole() -> None:
    code = """
llm_query('a')
try:
    llm_query_batched(['b'] * 4)
except Exception as e:
    print(type(e).__name__, e)
print(optimization_status()['spent_budget'], len(llm_query_batched(['b'] * 3)))
"""
    result, _ = compiled([code, SUBMIT], max_cost_usd=BASELINE + 0.055)
    assert outputs(result)[0].splitlines() == [
        "CostExceededError expected to cost $0.0400, and $0.0350 of max_cost_usd are left; send at most 3 prompts",
        "1 3",
    ]
    assert result.usage["sub"]["calls"] == 4


def test_an_agent_that_has_used_up_the_limit_is_not_asked_again_and_the_best_run_is_taken(
    caplog: pytest.LogCaptureFixture,
) -> None:
    improve = f"update_prompt('topic', {toy.FIX!r}); print(evaluate_program('val')['score'])"
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = compiled([improve], max_cost_usd=BASELINE + 0.13)
    assert outputs(result)[0] == "100.0"
    assert result.optimized_dspy_program["topic"] == toy.FIX
    assert len(root.seen) == 5  # 8 cents for val, and one for each turn
    assert root.extracts == 0
    assert result.usage["root"]["cost_usd"] == 0.05
    assert result.cost_usd == pytest.approx(BASELINE + 0.13)
    assert "the root LM cannot be asked again: max_cost_usd is used up" in caplog.text


def test_an_agent_at_its_last_turn_is_not_asked_for_a_conclusion_that_cannot_be_paid() -> None:
    result, root = compiled(["pass"], rlm_max_iterations=1, max_cost_usd=BASELINE + 0.01)
    assert (len(root.seen), root.extracts) == (1, 0)
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."


def test_an_evaluation_that_turns_out_dearer_stops_when_the_limit_is_spent() -> None:
    price = 0.01
    eval_lm = priced_fields(toy.respond, "eval", price=lambda usage: price)

    def then(question: Asked) -> str:
        nonlocal price
        price = 0.10
        return "r = evaluate_program(); print(r['evaluated_count'], r['summary_line'])"

    result, _ = compiled([then, SUBMIT], eval_lm=eval_lm, num_threads=2, max_cost_usd=BASELINE + 0.5)
    run = result.trial_logs[-1]
    assert run["state"] == "cancelled"
    assert run["evaluated_count"] in (3, 4)  # at 20 cents each; two were under way when the third was through
    assert run["remaining_budget"] == 34 - run["evaluated_count"]
    assert "; max_cost_usd is reached: submit now" in outputs(result)[0]
    overshot = result.cost_usd - (BASELINE + 0.5)
    assert 0 < overshot <= 2 * 0.20


@pytest.mark.parametrize("cap", [0.05, 0.15])
def test_a_limit_that_does_not_pay_for_the_baseline_says_so(cap: float, tmp_path: Path) -> None:
    with pytest.raises(CostLimitReached, match=f"max_cost_usd={cap} does not pay for the baseline") as reached:
        compiled([SUBMIT], max_cost_usd=cap, num_threads=1, run_storage_dir=tmp_path)
    split = "train" if cap == 0.05 else "val"
    assert (reached.value.split, reached.value.limit_usd) == (split, cap)
    # Two calls of an example that is under way are finished. What val costs was known, so it was not begun.
    assert reached.value.spent_usd == (0.06 if split == "train" else 0.12)
    with RunStore.open_in(tmp_path) as store:
        assert store.lm_usage()["eval"].cost_usd == reached.value.spent_usd


def test_many_threads_of_the_agent_do_not_overspend_together() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def grab(n):
    try:
        llm_query(str(n)) if n % 2 else evaluate_program(ids=n % 6 + 1)
        return None
    except Exception as e:
        return type(e).__name__
with ThreadPoolExecutor(32) as pool:
    print(set(pool.map(grab, range(32))) - {None})
"""
    result, _ = compiled(["llm_query('x')", code, SUBMIT], max_cost_usd=BASELINE + 0.20)
    assert outputs(result)[1] == "{'CostExceededError'}"
    assert result.cost_usd <= BASELINE + 0.20 + 0.01  # the turn that submits


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


def test_a_batch_of_prompts_that_turn_out_dearer_stops_when_the_limit_is_spent() -> None:
    prices = iter([0.01] + [0.10] * 20)
    sub_lm = priced_text(lambda prompt: f"heard {prompt}", "sub", price=lambda usage: next(prices))
    code = "llm_query('x'); told = llm_query_batched([str(n) for n in range(20)]); print(told)"
    result, _ = compiled([code, SUBMIT], sub_lm=sub_lm, max_cost_usd=BASELINE + 0.32)
    told = literal_eval(outputs(result)[0])
    answered = [answer for answer in told if answer.startswith("heard")]
    assert set(told) - set(answered) == {"[ERROR] max_cost_usd is used up; this prompt was not sent"}
    # 30 cents were there: three of them, and what was under way beside them on DSPy's eight threads.
    assert 3 <= len(answered) <= 3 + 8
    assert result.usage["sub"]["calls"] == 1 + len(answered)


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


@pytest.mark.parametrize("role", ["root", "sub", "eval"])
def test_a_store_that_cannot_keep_a_call_stops_the_compile(role: Role, monkeypatch: pytest.MonkeyPatch) -> None:
    record = RunStore.record_lm_calls

    def full(self: RunStore, *calls: LMCall) -> None:
        if any(made.role == role for made in calls):
            raise OSError("no space left on device")
        record(self, *calls)

    monkeypatch.setattr(RunStore, "record_lm_calls", full)
    with pytest.raises(OSError, match="no space left"):
        compiled(["llm_query('a')", SUBMIT])


def test_a_limit_in_dollars_leaves_the_budget_in_units_as_it_is() -> None:
    turns = ["evaluate_program(limit=2); llm_query('a')", SUBMIT]
    plain, capped = compiled(turns)[0], compiled(turns, max_cost_usd=100.0)[0]
    left = [[run["remaining_budget"] for run in result.trial_logs] for result in (plain, capped)]
    assert left[0] == left[1]
    assert plain.usage == capped.usage



def test_dollars_go_on_being_counted_where_a_compile_was_cut(tmp_path: Path) -> None:
    tried = "evaluate_program(limit=3); llm_query('x')"  # 7 cents
    told = "s = optimization_status(); print(s['cost_usd'], s['remaining_cost_usd'])"
    spent_before = BASELINE + 0.01 + 0.07  # the cut turn was not answered, so it has no price
    options: dict[str, Any] = {"run_storage_dir": tmp_path, "max_cost_usd": 0.5}
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        compiled([tried, RuntimeError("the key was revoked")], **options)
    result, _ = compiled([told, f"{tried}\n{told}", SUBMIT], resume=True, **options)
    first = 0.01 + spent_before
    assert outputs(result)[1:3] == [f"{first:g} {0.5 - first:g}", f"{first + 0.08:g} {0.5 - first - 0.08:g}"]
    assert result.cost_usd == pytest.approx(first + 0.08 + 0.01, abs=1e-12)
    assert result.usage["eval"]["calls"] == 2 * (6 + 4 + 3 + 3)
    assert result.usage["root"]["calls"] == 4
    again, root = compiled([], resume=True, **options)
    assert (again.cost_usd, again.usage, root.seen) == (result.cost_usd, result.usage, [])
