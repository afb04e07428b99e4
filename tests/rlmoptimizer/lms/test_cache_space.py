"""DSPy's real cache, in memory and on disk: an agent does not learn from it what was asked about other examples."""

from __future__ import annotations

import asyncio
import multiprocessing
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import dspy
import pytest
import toy
from desk import desk
from dspy import lm15
from offline import ScriptedRootLM, asked, fields_text
from priced import by_call, priced
from responses_server import ResponsesServer

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.lms.cache_space import cache_space, rollout_space
from rlmoptimizer.task.dataset import build_dataset

pytestmark = pytest.mark.usefixtures("plain_repl")

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"


@pytest.fixture(params=["memory", "disk", "keys of one's own"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A new cache; and what empties it as the end of the process would."""
    before = dspy.cache

    class ByPrompt(dspy.clients.Cache):
        def cache_key(self, request: dict[str, Any], ignored_args_for_cache_key: list[str] | None = None) -> str:
            return str(request.get("messages") or request.get("request", {}).get("messages"))

    def configure() -> None:
        if request.param == "keys of one's own":
            dspy.cache = ByPrompt(False, True, None)
        else:
            on_disk = request.param == "disk"
            dspy.configure_cache(
                enable_disk_cache=on_disk, enable_memory_cache=not on_disk, disk_cache_dir=str(tmp_path / "cache")
            )

    configure()
    yield configure if request.param == "disk" else lambda: None
    dspy.cache = before


class Model:
    """An engine that keeps what it was asked."""

    def __init__(self) -> None:
        self.requests: list[lm15.Request] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.requests.append(request)
        question = asked(request)
        said = question.instructions.partition("Say: ")[2] or question.inputs.get("message")
        fields = {"topic": said, "answer": "so"}
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(fields_text({name: fields[name] for name in question.outputs}) or "heard"),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=1, output_tokens=1, total_tokens=2),
        )


def test_what_is_asked_in_one_space_is_found_in_no_other_and_again_in_the_same(cache: Callable[[], None]) -> None:
    model = Model()
    lm = priced(model, "spaces", cache=True)
    for _ in range(2):
        lm("one")
        with cache_space("a"):
            lm("one")
            with cache_space("b"):
                lm("one")
        cache()
    assert len(model.requests) == 3


def test_a_space_goes_into_threads_of_dspy_and_async_calls(cache: Callable[[], None]) -> None:
    model = Model()
    lm = priced(model, "threads", cache=True)

    class Asks(dspy.Module):
        def forward(self, text: str) -> str:
            return str(lm(text))

    async def ask() -> None:
        await lm.acall("three")

    for _ in range(2):
        with cache_space("a"):
            pairs = [(Asks(), {"text": text}) for text in ("one", "two")]
            dspy.Parallel(num_threads=2, disable_progress_bar=True)(pairs)
            asyncio.run(ask())
    assert len(model.requests) == 3
    lm("one")
    lm("two")
    asyncio.run(ask())
    assert len(model.requests) == 6


def test_rollouts_of_a_space_are_answered_each_anew_and_again_the_same(cache: Callable[[], None]) -> None:
    model = Model()
    lm = priced(model, "rollouts", cache=True)
    for _ in range(2):
        for space in ("a", "b"):
            with cache_space(space):
                for number in range(3):
                    with rollout_space(number):
                        lm("one")
                lm("one")  # as in rollout 0
        cache()
    assert len(model.requests) == 6


def test_examples_that_are_repeated_ask_the_lm_each_time_and_a_later_run_finds_all_of_it(
    cache: Callable[[], None], tmp_path: Path
) -> None:
    model = Model()
    lm = priced(model, "repeated", cache=True)
    for expected in (3 * 2 * 2, 2 * 3 * 2):  # examples, rollouts, steps
        with desk(tmp_path / str(len(model.requests)), lm=lm, baseline=False) as at:
            at.evaluate(limit=3, repeats=2)
            assert len(model.requests) == expected
            at.evaluate(limit=3)  # the first rollouts
            assert len(model.requests) == expected
            assert at.ledger.spent == 9
        cache()


class OnDisk:
    """An engine for other processes; each request makes a file."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def complete(self, request: lm15.Request) -> lm15.Response:
        with tempfile.NamedTemporaryFile(dir=self.directory, delete=False):
            return Model().complete(request)


def test_rollouts_in_another_process_are_kept_apart_too(tmp_path: Path) -> None:
    asked_for = tmp_path / "asked"
    asked_for.mkdir()
    lm = priced(OnDisk(asked_for), "elsewhere", cache=True)
    rows = [replace(row, rollout=number) for number in range(2) for row in build_dataset(toy.trainset(3)).train]
    with (
        ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), partial(dspy.configure_cache, enable_disk_cache=False)
        ) as pool,
        Evaluator(toy.metric, lm, executor=pool) as evaluator,
    ):
        for space in ("rlmoptimizer train", "rlmoptimizer val", "rlmoptimizer train"):
            results = evaluator.score(toy.Triage(), rows, space=space)
            assert [result.rollout for result in results] == [0, 0, 0, 1, 1, 1]
    assert len(list(asked_for.iterdir())) == 2 * 6 * 2  # spaces, rows, steps


def test_many_threads_that_enter_a_space_at_once_make_the_same_keys() -> None:
    before = dspy.cache
    try:
        for _ in range(20):
            dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)

            def key(_: int) -> str:
                with cache_space("a"):
                    return dspy.cache.cache_key({"messages": "x"})

            with ThreadPoolExecutor(8) as pool:
                assert len(set(pool.map(key, range(8)))) == 1
    finally:
        dspy.cache = before


# in a compile: one LM with a cache for sub and eval

class Narrow(dspy.Module):
    """A step that sees nothing but what the step before was made to say, and a prompt of the program's own."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = dspy.Predict(dspy.Signature("message -> topic", "Say what the message is about."))
        self.reply = dspy.Predict(dspy.Signature("topic -> answer", "Answer."))

    def forward(self, message: str) -> dspy.Prediction:
        cast("dspy.LM", dspy.settings.lm)(message)
        return self.reply(topic=self.topic(message=message).topic)


def test_a_prompt_to_the_sub_lm_and_a_run_on_train_do_not_tell_what_val_has_asked(cache: Callable[[], None]) -> None:
    model = Model()
    lm = priced(model, "shared", cache=True, price=by_call(0.01))
    backwards = toy.valset()[1].message[::-1]  # the guess is right
    code = f"""
def price(call):
    before = optimization_status()["cost_usd"]
    call()
    return round(optimization_status()["cost_usd"] - before, 4)
guess = {backwards!r}[::-1]
evaluate_program("val", prompts={{"topic": "Copy the message."}})
said = {{"topic": "Say: " + guess}}
for _ in range(2):
    print(price(lambda: llm_query(guess)), price(lambda: evaluate_program(ids=[1], prompts=said)))
"""
    for prices in (["0.01 0.02", "0.0 0.0"], ["0.0 0.0", "0.0 0.0"]):
        root = ScriptedRootLM([code, SUBMIT])
        optimizer = toy.optimizer(root, root_lm=priced(root.engine, "root"), eval_lm=lm, sub_lm=lm)
        result = optimizer.compile(Narrow(), trainset=toy.trainset(), valset=toy.valset(), metric=toy.metric)
        # A prompt and two steps that nobody had asked in their spaces. What this compile has asked, another one finds.
        assert result.agent_trajectory[0]["output"].split("\n")[:2] == prices
        cache()


def test_neither_split_is_answered_from_the_other_nor_from_what_was_asked_before(cache: Callable[[], None]) -> None:
    answer = fields_text({"topic": "bug", "answer": "we fix it"})
    with ResponsesServer(lambda said: answer) as server:
        lm = dspy.LM("openai/shared", api_base=server.url, api_key="none", num_retries=0)
        rows = toy.trainset(2)
        with dspy.context(lm=lm):
            program = toy.Triage()
            for row in rows:  # as in an evaluation of the caller's own
                program(message=row.message)
        assert len(server.calls) == 4
        for expected in (4 + 4 + 4, 12):
            toy.compiled([SUBMIT], eval_lm=lm, trainset=rows, valset=rows)
            assert len(server.calls) == expected
