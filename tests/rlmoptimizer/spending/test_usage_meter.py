"""The usage meter against DSPy itself: every kind of LM, every way to call one, every setting that is in its way."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.clients.base_lm import GLOBAL_HISTORY
from dspy.utils.callback import BaseCallback
from offline import fields_text
from priced import WordEngine, by_call, no_price, priced, priced_fields, priced_text

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.records import LMCall, RoleUsage
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.usage_meter import UsageMeter


class Calls:
    """A journal that only keeps what it is told."""

    def __init__(self) -> None:
        self.made: list[LMCall] = []

    def record_lm_calls(self, *calls: LMCall) -> None:
        self.made += calls

    def lm_usage(self) -> dict[Any, RoleUsage]:
        return {}

    def evaluated_examples(self) -> int:
        return 0


class Metered:
    def __init__(self, *lms: dspy.BaseLM) -> None:
        self._calls = Calls()
        self.failures: list[BaseException] = []
        self.meter = UsageMeter(CostLedger(journal=self._calls), lms, self.failures.append)

    @property
    def calls(self) -> Calls:
        self.meter.ledger.flush()
        return self._calls

    @property
    def seen(self) -> list[tuple[str, str, float | None]]:
        """Role, outcome and cost in dollars of every call."""
        return [
            (call.role, call.outcome, None if call.cost is None else call.cost / 10**12) for call in self.calls.made
        ]


@pytest.fixture
def metered() -> Iterator[Metered]:
    metered = Metered()
    yield metered
    assert metered.failures == []


def answering(name: str = "fields", **options: Any) -> Any:
    return priced_fields(lambda question: dict.fromkeys(question.outputs, "fine"), name, **options)


# Made once: CPython 3.11 raises a SystemError now and then when several threads parse at one moment.
ANSWER = dspy.Signature("question -> answer")


def ask(question: str = "why?") -> str:
    return dspy.Predict(ANSWER)(question=question).answer


# roles


@pytest.mark.smoke
def test_calls_are_those_of_the_innermost_role_and_of_none_outside(metered: Metered) -> None:
    with dspy.context(lm=answering(price=by_call(0.5))):
        ask()
        with metered.meter.role("root"):
            ask()
            with metered.meter.role("eval"):
                ask()
            ask()
        ask()
    assert metered.seen == [("root", "answered", 0.5), ("eval", "answered", 0.5), ("root", "answered", 0.5)]


def test_a_context_that_was_copied_in_a_role_stays_in_it(metered: Metered) -> None:
    lm = answering(price=by_call(0.5))
    with metered.meter.role("eval"):
        context = contextvars.copy_context()
    with metered.meter.role("root"), ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            pool.submit(context.copy().run, lm, "hello").result()
    assert metered.seen == [("eval", "answered", 0.5)] * 8


def test_threads_that_dspy_starts_are_in_the_role(metered: Metered) -> None:
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=answering(price=by_call(0.5))), metered.meter.role("sub"):
        dspy.Parallel(num_threads=4, disable_progress_bar=True)([(program, {"question": str(n)}) for n in range(12)])
    assert metered.seen == [("sub", "answered", 0.5)] * 12


def test_async_calls_are_in_the_role_of_their_task(metered: Metered) -> None:
    lm = answering(price=by_call(0.5))

    async def work(role: Any) -> None:
        with metered.meter.role(role):
            await asyncio.sleep(0)
            await dspy.Predict("question -> answer").acall(question="why?")

    async def together() -> None:
        await asyncio.gather(*(work(role) for role in ("root", "sub", "eval") * 5))

    with dspy.context(lm=lm):
        asyncio.run(together())
    assert sorted(metered.seen) == sorted([(role, "answered", 0.5) for role in ("root", "sub", "eval") * 5])


def test_two_meters_see_the_calls_of_both() -> None:
    # As when a program that is optimized optimizes another one.
    inner, outer = Metered(), Metered()
    lm = answering("both", cache=True, price=by_call(0.5))
    for history in (True, False):
        with dspy.context(lm=lm, disable_history=not history), outer.meter.role("eval"), inner.meter.role("root"):
            ask("a")
            ask(f"b {history}")
            with inner.meter.role("sub"):
                ask("a")
    for metered, roles in ((inner, ("root", "root", "sub")), (outer, ("eval", "eval", "eval"))):
        assert [role for role, *_ in metered.seen] == [*roles] * 2
        assert [outcome[0] for _, outcome, _ in metered.seen] == ["a", "a", "c", "c", "a", "c"]


def test_a_closed_meter_counts_nothing_more(metered: Metered) -> None:
    with dspy.context(lm=answering()), metered.meter.role("eval"):
        ask()
        metered.meter.close()
        ask()
    assert len(metered.seen) == 1


# LMs


def test_tokens_and_cost_are_those_of_the_lms_history(metered: Metered) -> None:
    lm = answering()
    with dspy.context(lm=lm), metered.meter.role("eval"):
        ask()
        ask("or perhaps not?")
    entries = [(entry["usage"]["prompt_tokens"], entry["usage"]["completion_tokens"]) for entry in lm.history]
    assert [(call.prompt_tokens, call.completion_tokens) for call in metered.calls.made] == entries
    assert [cost for *_, cost in metered.seen] == pytest.approx([entry["cost"] for entry in lm.history])
    assert {call.model for call in metered.calls.made} == {"offline/fields"}


@pytest.mark.parametrize("reports", [True, False], ids=["usage", "no usage"])
@pytest.mark.parametrize("price", [by_call(0.5), no_price], ids=["price", "no price"])
@pytest.mark.parametrize(("how", "n"), [("call", 1), ("call", 3), ("acall", 1), ("acall", 3), ("request", 1)])
def test_an_answer_from_the_cache_is_told_from_a_new_one(
    metered: Metered, reports: bool, price: Any, how: str, n: int
) -> None:
    name = f"cached-{reports}-{price.__qualname__}-{n}-{how}"
    # DSPy knows no cost of an answer without usage; one that states a cost states it of a cached answer too.
    lm = priced_text(lambda prompt: "fine", name, cache=True, reports=reports, price=price)
    message = lm15.Message.user("why?")
    request = lm15.Request(model=lm.model, messages=(message,))
    options: dict[str, Any] = {"n": n, "temperature": 1.0} if n > 1 else {}
    with metered.meter.role("eval"):
        for _ in range(3):
            if how == "call":
                lm("why?", **options)
            elif how == "acall":
                asyncio.run(lm.acall("why?", **options))
            else:
                lm(request)
    assert len(lm.engine.requests) == n
    cost = price({})
    if not reports and cost is not None:
        assert metered.seen[0] == ("eval", "answered", cost)  # the others cannot be told apart
        return
    assert metered.seen == [("eval", "answered", cost), ("eval", "cached", 0.0), ("eval", "cached", 0.0)]


def test_every_completion_of_one_call_is_paid(metered: Metered) -> None:
    lm = answering()
    with dspy.context(lm=lm), metered.meter.role("eval"):
        dspy.Predict("question -> answer", n=3, temperature=1.0)(question="why?")
    assert len(lm.engine.requests) == 3
    (call,) = metered.calls.made
    assert call.prompt_tokens == lm.history[0]["usage"]["prompt_tokens"]
    assert call.prompt_tokens is not None
    assert call.prompt_tokens % 3 == 0


def test_a_call_that_raises_is_not_counted_and_leaves_nothing_behind(metered: Metered) -> None:
    def respond(prompt: str) -> str:
        if prompt == "fail":
            raise lm15.AuthError("no such key")
        return "fine"

    lm = priced_text(respond, price=by_call(0.5))
    with metered.meter.role("eval"):
        for prompt in ("a", "fail", "b"):
            try:
                lm(prompt)
            except dspy.LMError:
                assert prompt == "fail"
    assert metered.seen == [("eval", "answered", 0.5)] * 2


def test_a_dummy_lm_has_no_price(metered: Metered) -> None:
    with dspy.context(lm=dspy.utils.DummyLM([{"answer": "fine"}] * 2)), metered.meter.role("eval"):
        ask()
    assert metered.seen == [("eval", "answered", None)]


class ForwardLM(dspy.BaseLM):
    """The kind of custom LM that DSPy 3.4 still takes."""

    def forward(self, prompt: Any = None, messages: Any = None, **kwargs: Any) -> Any:
        return SimpleNamespace(
            choices=[SimpleNamespace(message=SimpleNamespace(content=fields_text({"answer": "fine"})))],
            usage={"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
            model="forward",
            _hidden_params={"response_cost": 0.25},
        )


def test_an_lm_with_a_forward_of_its_own_states_its_cost(metered: Metered) -> None:
    with warnings.catch_warnings(), dspy.context(lm=ForwardLM("own/forward")), metered.meter.role("eval"):
        warnings.simplefilter("ignore", DeprecationWarning)
        ask()
    assert metered.seen == [("eval", "answered", 0.25)]
    assert (metered.calls.made[0].prompt_tokens, metered.calls.made[0].completion_tokens) == (7, 3)


@pytest.mark.parametrize("wrong", [{"usage": ["tokens"]}, {"cost_details": "none", "usage": {}}, {"usage": 7}])
def test_an_entry_that_cannot_be_read_is_a_call_without_a_price_and_no_failure_of_the_program(
    wrong: dict[str, Any], metered: Metered, caplog: pytest.LogCaptureFixture
) -> None:
    class Careless(dspy.LM):
        def update_history(self, entry: dict[str, Any]) -> None:
            super().update_history({**entry, **wrong})

    lm = Careless("priced/fields", engine=WordEngine(lambda asked: fields_text({"answer": "so"})), cache=False)
    with metered.meter.role("eval"), dspy.context(lm=lm):
        assert ask() == "so"
    assert metered.seen == [("eval", "answered", None)]
    metered.meter.warn_of_unpriced()
    assert "its entry in the history cannot be read" in caplog.text


class CallLM(dspy.BaseLM):
    """An LM that makes its calls in a way of its own and writes DSPy's history itself."""

    usage: dict[str, int] = {"input_tokens": 7, "output_tokens": 3}  # noqa: RUF012
    cost: float | None = 0.25

    def __call__(self, prompt: Any = None, *, messages: Any = None, **kwargs: Any) -> list[str]:
        self.update_history({"usage": self.usage, "cost": self.cost, "model": self.model, "outputs": ["fine"]})
        return [fields_text({"answer": "fine"})]


@pytest.mark.parametrize(("usage", "tokens"), [({"input_tokens": 7, "output_tokens": 3}, 7), ({}, None)])
@pytest.mark.parametrize("cost", [0.25, None])
def test_an_lm_with_a_call_of_its_own_is_seen_by_its_history(
    metered: Metered, usage: Any, tokens: Any, cost: Any
) -> None:
    lm = CallLM("own/call")
    lm.usage, lm.cost = usage, cost
    with dspy.context(lm=lm), metered.meter.role("eval"):
        assert ask() == "fine"
    assert metered.seen == [("eval", "answered", cost)]
    assert metered.calls.made[0].prompt_tokens == tokens


def test_copies_of_an_lm_are_seen(metered: Metered) -> None:
    lm = answering(price=by_call(0.5))
    with metered.meter.role("eval"), dspy.context(lm=lm.copy(rollout_id=1, temperature=1.0)):
        ask()
    with metered.meter.role("eval"), dspy.context(lm=copy.copy(lm)):
        ask()
    assert metered.seen == [("eval", "answered", 0.5)] * 2


# settings


def test_the_history_is_what_it_would_be_without_a_meter() -> None:
    def work(lm: Any, **settings: Any) -> tuple[int, int, int]:
        program, before = dspy.Predict("question -> answer"), len(GLOBAL_HISTORY)
        with dspy.context(lm=lm, **settings):
            for number in range(4):
                program(question=str(number))
        return len(lm.history), len(program.history), len(GLOBAL_HISTORY) - before

    GLOBAL_HISTORY.clear()  # a full one stays as long as it is
    for settings in ({}, {"disable_history": True}, {"max_history_size": 0}, {"max_history_size": 2}):
        lm = answering(price=by_call(0.5))
        metered = Metered(lm)
        plain = work(answering(), **settings)
        with dspy.context(**settings), metered.meter.role("eval"):
            seen = work(lm)
        assert seen[0] == plain[0], settings
        assert seen[2] == plain[2], settings
        assert metered.seen == [("eval", "answered", 0.5)] * 4, settings


def test_a_history_that_is_switched_off_keeps_nothing_of_a_call_anywhere() -> None:
    lm = answering(price=by_call(0.5))
    lm.history.append({"kept": True})
    metered = Metered(lm)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm, disable_history=True), metered.meter.role("eval"):
        program(question="why?")
        with metered.meter.role("sub"):
            program(question="why?")
    assert metered.seen == [("eval", "answered", 0.5), ("sub", "answered", 0.5)]
    assert lm.history == [{"kept": True}]
    assert [entry for entry in program.history if entry] == []


def test_a_prediction_still_says_what_it_used(metered: Metered) -> None:
    lm = answering("tracked", cache=True)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=lm, track_usage=True), metered.meter.role("eval"):
        used = program(question="why?").get_lm_usage()
        assert program(question="why?").get_lm_usage() == {}
    assert used["offline/tracked"]["prompt_tokens"] == lm.history[0]["usage"]["prompt_tokens"]
    assert [outcome for _, outcome, _ in metered.seen] == ["answered", "cached"]


def test_a_tracker_around_or_within_a_role_hears_all(metered: Metered) -> None:
    with dspy.context(lm=answering("x")), dspy.track_usage() as around:
        with metered.meter.role("eval"):
            ask()
            with dspy.track_usage() as within:
                ask()
        with metered.meter.role("root"):
            dspy.Parallel(num_threads=2, disable_progress_bar=True)(
                [(dspy.Predict("question -> answer"), {"question": "why?"})]
            )
    assert len(within.usage_data["offline/x"]) == 1
    assert len(around.usage_data["offline/x"]) == 3
    assert [role for role, *_ in metered.seen] == ["eval", "eval", "root"]


def test_callbacks_of_the_program_are_called_as_ever(metered: Metered) -> None:
    heard: list[str] = []

    class Listener(BaseCallback):
        def on_lm_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            heard.append("lm")

    with dspy.context(lm=answering(), callbacks=[Listener()]), metered.meter.role("eval"):
        ask()
        with dspy.context(callbacks=[]):
            ask()
    assert heard == ["lm"]
    assert len(metered.seen) == 2


def test_many_threads_are_counted_to_the_last_call() -> None:
    metered = Metered()
    lm = answering(price=by_call(0.5))
    start = threading.Barrier(16)

    def work(number: int) -> None:
        start.wait(30)
        with dspy.context(lm=lm), metered.meter.role("eval" if number % 2 else "sub"):
            for _ in range(10):
                ask()

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(work, range(16)))
    used = metered.meter.ledger.usage()
    assert (used["eval"].calls, used["sub"].calls) == (80, 80)
    assert used["eval"].cost_usd == 40.0


def test_a_journal_that_fails_is_told_to_the_owner_not_to_the_program() -> None:
    metered = Metered()

    def full(*calls: LMCall) -> None:
        raise OSError("no space left")

    metered.calls.record_lm_calls = full  # type: ignore[method-assign]
    with dspy.context(lm=answering()), metered.meter.role("sub"):
        assert ask() == "fine"
    (failure,) = metered.failures
    assert str(failure) == "no space left"
    assert metered.meter.ledger.usage()["sub"].calls == 1


# the evaluator


class Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        return await self.answer.acall(question=question)


def judged(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    return float(dspy.Predict("answer -> verdict")(answer=prediction.answer).verdict == "fine")


def test_async_programs_and_metrics_that_ask_an_lm_are_metered_in_the_evaluator(metered: Metered) -> None:
    from rlmoptimizer.task.dataset import build_dataset

    rows = build_dataset([dspy.Example(question=str(n)).with_inputs("question") for n in range(6)]).train
    with metered.meter.role("eval"):
        context = contextvars.copy_context()
    with Evaluator(judged, answering(price=by_call(0.5)), 3, context=context) as evaluator:
        results = evaluator.score(Program(), rows)
    assert [result.score for result in results] == [1.0] * 6
    assert metered.seen == [("eval", "answered", 0.5)] * 12


def test_an_evaluation_for_another_process_takes_no_meter_along(metered: Metered) -> None:
    import pickle

    from rlmoptimizer.evaluation.metric import bind_metric
    from rlmoptimizer.evaluation.workers.pickled_evaluation import pickled_base

    with metered.meter.role("eval"):
        context = contextvars.copy_context()
    scorer = bind_metric(lambda gold, pred: 1.0)
    base = pickle.loads(pickled_base(Program(), scorer, dspy.LM("openai/gpt-4o-mini"), context).pickled or b"")
    assert not {"caller_modules", "usage_tracker", "callbacks"} & base.settings.keys()


def test_an_engine_that_asks_another_lm_is_counted_beside_it(metered: Metered) -> None:
    inner = priced_text(lambda prompt: "fine", "inner", price=by_call(0.5))

    class Router:
        def complete(self, request: lm15.Request) -> lm15.Response:
            return WordEngine(lambda request: inner(request.messages[-1].text or "")[0]).complete(request)

    outer = priced(Router(), "router", price=no_price)
    with metered.meter.role("eval"):
        outer("why?")
    assert metered.seen == [("eval", "answered", 0.5), ("eval", "answered", None)]
