"""What a whole compile costs, and where it stops when it reaches its limit."""

from __future__ import annotations

import logging
from ast import literal_eval
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy import lm15
from offline import Asked, ScriptedRootLM
from priced import by_call, priced, priced_fields, priced_text
from responses_server import ResponsesServer, turn

from rlmoptimizer import CostLimitReached, InvalidSetup
from rlmoptimizer.records import LMCall, Role
from rlmoptimizer.store.run_store import RunStore

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


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
    result, root = compiled([code, SUBMIT], eval_lm=eval_lm, sub_lm=sub_lm, run_storage_dir=tmp_path, kernel=KERNEL)
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
    result, _ = compiled([code, SUBMIT], sub_lm=sub, sub_agents=True, kernel=KERNEL)
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
    told = [record.getMessage() for record in caplog.records if "price is" in record.getMessage()]
    assert told == [
        "No price is known of offline/eval (eval LM) (custom engine has no pricing provider): its cost in the result "
        "is None"
    ]


def test_all_prices_that_are_not_known_are_said_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    root = ScriptedRootLM(["llm_query('a')", SUBMIT])
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        toy.optimizer(root).compile(toy.Triage(), **toy.arguments())
    (told,) = [record.getMessage() for record in caplog.records if "price is" in record.getMessage()]
    assert "offline/eval (eval LM), offline/root (root LM), offline/sub (sub LM)" in told


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
    result, _ = compiled([code, SUBMIT], max_cost_usd=BASELINE + 0.105, kernel=KERNEL)
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
    result, _ = compiled([code, SUBMIT], max_cost_usd=BASELINE + 0.055, kernel=KERNEL)
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
    assert "the root LM is not asked again: max_cost_usd is used up" in caplog.text
    assert result.optimization_result.stop_reason == "max_cost_usd"


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
    result, _ = compiled(["llm_query('x')", code, SUBMIT], max_cost_usd=BASELINE + 0.20, kernel=KERNEL)
    assert outputs(result)[1] == "{'CostExceededError'}"
    assert result.cost_usd <= BASELINE + 0.20 + 0.01  # the turn that submits


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
