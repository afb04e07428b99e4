"""`try_program`: the program on inputs of the agent's own."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from child_process import forked
from desk import Desk, desk
from offline import Asked, field_lm

from rlmoptimizer import BudgetExceededError, PromptUpdateError
from rlmoptimizer.agent.trial_inputs import MOST_CHARS, TrialInputs
from rlmoptimizer.compilation.resume import close_and_read_past
from rlmoptimizer.errors import InputsError
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import build_dataset

MARK = "<<CUSTOM-TYPE-START-IDENTIFIER>>"


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Desk]:
    with desk(tmp_path) as ready:
        yield ready


def tried(at: Desk, message: Any, **options: Any) -> dict[str, Any]:
    return at.bench.tools.try_program({"message": message}, **options)


def test_it_runs_the_program_once_for_one_unit_and_asks_no_metric(tmp_path: Path) -> None:
    def metric(gold: Any, prediction: Any, trace: Any = None) -> float:
        assert "my own" not in gold.message
        return 1.0

    with desk(tmp_path, metric=metric) as at:
        found = tried(at, "my own message at length about bug")
        assert set(found) == {"outputs", "steps", "error", "remaining_budget"}
        assert found["outputs"] == {"topic": "I believe that it is bug", "answer": "what do you mean?"}
        assert [(step["step_name"], step["inputs"]["message"]) for step in found["steps"]] == [
            ("topic", "my own message at length about bug"),
            ("reply", "my own message at length about bug"),
        ]
        assert (found["error"], found["remaining_budget"]) == (None, 99)
        assert tried(at, "at length about bug", prompts={"topic": toy.FIX})["outputs"]["topic"] == "bug"
        assert at.bench.prompts.current == at.bench.prompts.original
        assert (at.ledger.spent, at.store.spent("try"), len(at.store.runs())) == (2, 2, 2)


def test_a_program_that_fails_says_why_and_costs_its_unit(at: Desk) -> None:
    found = tried(at, "m", prompts={"topic": "explode"})
    assert found["outputs"] is None
    assert "cannot read m" in found["error"]
    assert at.ledger.spent == 1


def test_an_lm_that_fails_costs_nothing_unless_a_step_was_answered(tmp_path: Path) -> None:
    def respond(question: Asked) -> dict[str, object]:
        if question.inputs["message"] == "first" or question.outputs == ("answer",):
            raise dspy.LMRateLimitError("slow down", model="m", provider="p")
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond, "eval"), baseline=False) as at:
        first, second = tried(at, "first"), tried(at, "second plainly about bug")
        assert (first["error_kind"], first["outputs"], first["remaining_budget"]) == ("rate_limit", None, 100)
        assert (second["error_kind"], second["remaining_budget"]) == ("rate_limit", 99)
        assert second["steps"][0]["outputs"] == {"topic": "bug"}


def test_without_a_unit_it_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    with desk(tmp_path, budget=6) as at:
        at.evaluate()
        with pytest.raises(BudgetExceededError):
            tried(at, "anything")
        assert at.ledger.spent == 6


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (None, "must be a dict"),
        (["message"], "must be a dict"),
        ({}, "the program's inputs are message"),
        ({"message": "m", "other": 1}, "the program's inputs are message"),
        ({"topic": "m"}, "inputs named 'topic'"),
        ({5: "m"}, "inputs named 5"),
        ({"message": f"see {MARK}[]"}, "mark of attachments"),
        ({"message": [{"deep": {MARK: 1}}]}, r"inputs\['message'\]\[0\]\['deep'\] holds DSPy's mark"),
        ({"message": {1: "m"}}, "keys of a dict must be texts"),
        ({"message": object()}, "plain values only, got object"),
        ({"message": ("m",)}, "plain values only, got tuple"),
        ({"message": "m" * (MOST_CHARS + 1)}, "characters are taken"),
        ({"message": [["x"] * 200] * 100}, "values are taken"),
        ({"message": 1 << 20_000}, "too long"),
    ],
)
def test_other_inputs_than_the_programs_are_refused(at: Desk, inputs: Any, said: str) -> None:
    with pytest.raises(InputsError, match=said):
        at.bench.tools.try_program(inputs)
    with pytest.raises(PromptUpdateError):
        tried(at, "m", prompts={"nobody": "x"})
    assert at.ledger.spent == 0


def test_values_nested_without_end_are_refused(at: Desk) -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(InputsError, match="nested at most"):
        tried(at, nested)


def test_plain_values_of_every_kind_reach_the_program(at: Desk) -> None:
    given = {"text": "é", "list": [1, 2.5, None, True], "bytes": b"x"}
    assert tried(at, given)["steps"][0]["inputs"]["message"] == given


@pytest.mark.parametrize(
    ("example", "said"),
    [
        ({"picture": dspy.Image(url="https://x.invalid/y.png")}, "'picture' holds a dspy.Image"),
        ({"talk": [{"turns": dspy.History(messages=[])}]}, "'talk' holds a History"),
        ({"config": "text"}, "named 'config'"),
        ({"signature": "a -> b"}, "named 'signature'"),
    ],
)
def test_a_program_whose_inputs_dspy_would_resolve_is_not_tried(example: dict[str, Any], said: str) -> None:
    rows = build_dataset([dspy.Example(**example).with_inputs(*example)]).train
    with pytest.raises(InputsError, match=said):
        TrialInputs(rows).checked(dict.fromkeys(example, "text"))


def test_what_ran_on_val_before_is_not_in_the_cache_of_a_trial(tmp_path: Path) -> None:
    engine_calls: list[str] = []

    def respond(question: Asked) -> dict[str, object]:
        engine_calls.append(question.inputs["message"])
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond, "eval")) as at:
        guess = toy.valset()[0].message
        asked = engine_calls.count(guess)
        tried(at, guess)
        assert engine_calls.count(guess) > asked


def test_an_answer_that_nobody_got_is_given_again_for_nothing(at: Desk) -> None:
    paid = tried(at, "m about bug")
    at.bench.turns.kernel_died()
    again = tried(at, "m about bug")
    assert again == paid
    assert at.ledger.spent == 1
    assert tried(at, "m about bug")["remaining_budget"] == 98  # the agent has that answer: this is another trial
    at.bench.turns.kernel_died()
    at.bench.turns.record("r", "c", "o", 0.0)
    at.bench.turns.count += 1
    assert tried(at, "m about bug")["remaining_budget"] == 98  # lost with the kernel
    at.bench.turns.record("r", "c", "o", 0.0)
    at.bench.turns.kernel_died()
    assert tried(at, "m about bug")["remaining_budget"] == 97  # it was answered in a turn that ended


CHILD = """
import os, signal, sys
from pathlib import Path
from desk import desk
from rlmoptimizer.store.run_store import RunStore

record = RunStore.record_event
def killed(self, kind, data, **options):
    when = "WHEN" if kind == "ProgramTried" else ""
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    record(self, kind, data, **options)
    if when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
RunStore.record_event = killed
with desk(Path("PATH"), baseline=False) as at:
    at.bench.turns.count += 1
    at.store.begin_iteration("try_program(...)")
    at.bench.tools.try_program({"message": "m about bug"})
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
@pytest.mark.parametrize(("when", "spent"), [("before", 0), ("after", 1)])
def test_a_kill_leaves_the_unit_and_the_answer_or_neither(tmp_path: Path, when: str, spent: int) -> None:
    with forked(CHILD.replace("PATH", str(tmp_path)).replace("WHEN", when)) as child:
        assert child.ended().status == -signal.SIGKILL
    with RunStore.open_in(tmp_path) as store:
        assert (store.spent(), len(store.events("ProgramTried"))) == (spent, spent)
        close_and_read_past(store)
    with desk(tmp_path, baseline=False, again=True) as at:
        at.bench.turns.count += 1
        assert tried(at, "m about bug")["remaining_budget"] == 99
        assert at.ledger.spent == 1


def test_it_waits_while_val_runs_and_is_refused_when_its_kernel_is_gone_by_then(tmp_path: Path) -> None:
    held, entered = threading.Event(), threading.Event()

    def respond(question: Asked) -> dict[str, object]:
        if toy.SECRET in question.inputs["message"]:
            entered.set()
            held.wait(60)
        return toy.respond(question)

    with desk(tmp_path, lm=field_lm(respond, "eval"), baseline=False) as at:
        val = threading.Thread(target=at.evaluate, args=("val",))
        val.start()
        assert entered.wait(60)
        answers: list[dict[str, Any]] = []
        trial = threading.Thread(target=lambda: answers.append(tried(at, "m about bug")))
        trial.start()
        trial.join(0.2)
        assert answers == []
        held.set()
        val.join(60)
        trial.join(60)
        assert answers[0]["remaining_budget"] == 95


def test_all_trials_together_take_no_more_inputs_than_the_disk_can_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlmoptimizer.agent.program_trials._MOST_BYTES", 100)
    with desk(tmp_path, baseline=False) as at:
        for number in range(2):
            tried(at, f"{number} {'m' * 20}")  # with the name and the quotes 37 bytes
        with pytest.raises(InputsError, match="may have 100 bytes together; 74 are used, and these have 37"):
            tried(at, f"2 {'m' * 20}")
        tried(at, "short")
    with desk(tmp_path, baseline=False, again=True) as at:
        with pytest.raises(InputsError, match="are used"):
            tried(at, "m" * 20)
        assert at.ledger.spent == 3


def test_an_input_may_have_the_name_of_a_parameter_of_dspys_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Program(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = dspy.Predict("base -> answer")

        def forward(self, base: str) -> Any:
            return self.step(base=base)

    rows: Any = [dspy.Example({"base": "b", "answer": "a"}).with_inputs("base")]
    monkeypatch.setattr(toy, "trainset", lambda count: rows)
    lm = field_lm(lambda question: {"answer": f"got {question.inputs['base']}"}, "eval")
    with desk(tmp_path, program=Program(), lm=lm, val=None, baseline=False) as at:
        assert at.bench.tools.try_program({"base": "mine"})["outputs"] == {"answer": "got mine"}
