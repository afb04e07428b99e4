"""Compiles that are branched: while they run, after their end, and where the process dies in between."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, Engine, ScriptedRootLM
from stoppable import Running, finished, killed, lines_of

from rlmoptimizer import RLMDocstringOptimizer
from rlmoptimizer.compilation import stored_compile
from rlmoptimizer.lms.person_notes import NOTES_FIELD
from rlmoptimizer.outcome.ending import AgentOutcome, Outcome
from rlmoptimizer.outcome.recorded_setup import unit_limit
from rlmoptimizer.steering.branches import prepare_branch
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
TRY = f"print(evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})['run_id'])"


def store_in(directory: Path, number: int = 1) -> Path:
    return directory / f"runs-{number:04}.sqlite"


def branching(directory: Path, code: str, run_id: str = "r3", **options: Any) -> Callable[[Asked], str]:
    """A turn of the agent in which, while the root LM thinks, a person makes a branch."""

    def answer(question: Asked) -> str:
        with StoreReader.open(store_in(directory)) as store:
            prepare_branch(store, run_id, **options)
        return code

    return answer


def compiled(root: ScriptedRootLM, directory: Path, **options: Any) -> Any:
    """Gives the program, and how often the LM of the program was asked."""
    lm = toy.eval_lm()
    program = toy.optimizer(root, run_storage_dir=directory, eval_lm=lm).compile(
        toy.Triage(), **toy.arguments(**options)
    )
    engine: Any = lm.engine
    assert isinstance(engine, Engine)
    return program, engine.calls


def test_a_branch_of_a_running_optimization_is_gone_on_with_by_the_same_compile(tmp_path: Path) -> None:
    root = ScriptedRootLM([TRY, branching(tmp_path, "print('never run')", note="Now shorter."), SUBMIT])
    program, calls = compiled(root, tmp_path)
    result = program.optimization_result
    assert result.branched_from == {"store": "runs-0001.sqlite", "run_id": "r3"}
    assert "branched from run r3 of runs-0001.sqlite" in result.summary()
    assert result.prompts_after["topic"] == toy.FIX
    assert [candidate["topic"] for candidate in result.candidates] == [result.prompts_before["topic"], toy.FIX]
    assert result.parents == (None, 0)
    assert result.store_path == str(store_in(tmp_path, 2))
    # What was measured came along: nothing is run once more, not even for the final choice.
    assert calls == 2 * (6 + 4 + 4)
    assert result.budget == {"limit": 5 * 6 + 4 - 4, "spent": 0}
    first = root.seen[2]
    assert "A person has begun this work from a run of an earlier optimization" in first.text
    assert "it had score 100.00 on 4 of 4 examples of val" in first.text
    assert json.loads(first.inputs[NOTES_FIELD]) == [{"before_turn": 1, "text": "Now shorter."}]
    with StoreReader.open(store_in(tmp_path)) as parent, StoreReader.open(store_in(tmp_path, 2)) as branch:
        ended, outcome = AgentOutcome.of(parent), Outcome.of(parent)
        assert ended is not None
        assert ended.stop_reason == "branched"
        assert outcome is not None
        assert [record.data for record in branch.events("Branched")] == [{"store": "runs-0001.sqlite", "run_id": "r3"}]
        assert branch.events("CompileResumed") == []
    assert not Requests(store_in(tmp_path)).directory.exists()
    assert not Requests(store_in(tmp_path, 2)).directory.exists()


def test_a_finished_optimization_is_branched_with_a_new_budget_and_the_branch_again(tmp_path: Path) -> None:
    compiled(ScriptedRootLM([TRY, SUBMIT]), tmp_path)
    with StoreReader.open(store_in(tmp_path)) as store:
        prepare_branch(store, "r3", units=3)
    best = RLMDocstringOptimizer.best_program(toy.Triage(), tmp_path)
    assert (best.best_score, best.topic.signature.instructions) == (100.0, toy.FIX)

    root = ScriptedRootLM(["print(evaluate_program('train', ids=['1', '3']))", SUBMIT])
    program, calls = compiled(root, tmp_path, resume=True)
    assert calls == 2 * 2
    assert program.optimization_result.budget == {"limit": 3, "spent": 2}

    with StoreReader.open(store_in(tmp_path, 2)) as store:
        prepare_branch(store, program.latest_run_id)
    again, _ = compiled(ScriptedRootLM([SUBMIT]), tmp_path, resume=True)
    assert again.optimization_result.branched_from["store"] == "runs-0002.sqlite"
    assert again.optimization_result.budget == {"limit": 1, "spent": 0}
    assert again.optimized_dspy_program["topic"] == toy.FIX


def test_where_the_process_dies_before_its_branch_has_begun_a_resume_begins_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The LM fails while the branch is made, as if the process were killed: the parent has not ended."""
    dying = branching(tmp_path, "pass")

    def answer(question: Asked) -> str:
        dying(question)
        raise dspy.LMError("the provider is down")

    with pytest.raises(dspy.LMError):
        compiled(ScriptedRootLM([TRY, answer]), tmp_path)
    with StoreReader.open(store_in(tmp_path)) as parent:
        assert parent.outcome() is None
        left = unit_limit(parent.setup() or {}) - parent.spent()
    with pytest.raises(dspy.LMError):
        compiled(ScriptedRootLM(["pass", dspy.LMError("once more")]), tmp_path, resume=True)
    assert "the branch in" in capfd.readouterr().err
    root = ScriptedRootLM([SUBMIT])
    program, calls = compiled(root, tmp_path, resume=True)
    assert "A person has begun this work" in root.seen[0].text
    assert "1 of 8 turns are done" in root.seen[0].text
    assert calls == 0
    assert program.optimization_result.budget == {"limit": left, "spent": 0}
    assert program.optimization_result.branched_from == {"store": "runs-0001.sqlite", "run_id": "r3"}


def test_a_branch_is_resumed_only_with_the_setup_of_its_parent(tmp_path: Path) -> None:
    compiled(ScriptedRootLM([TRY, SUBMIT]), tmp_path)
    with StoreReader.open(store_in(tmp_path)) as store:
        prepare_branch(store, "r3")
    with pytest.raises(ValueError, match="trainset had 6 examples, has 5"):
        compiled(ScriptedRootLM([]), tmp_path, resume=True, trainset=toy.trainset(5))


def test_a_branch_while_the_submission_is_about_to_be_tested_leaves_that_out(tmp_path: Path) -> None:
    """The agent has submitted; neither its check on val nor the test is worth its price any more."""
    root = ScriptedRootLM([branching(tmp_path, f"update_prompt('topic', {toy.FIX!r})\n{SUBMIT}", "r1"), SUBMIT])
    program, _ = compiled(root, tmp_path, testset=[toy.example(number) for number in (20, 21)])
    with StoreReader.open(store_in(tmp_path)) as parent:
        outcome = Outcome.of(parent)
        assert outcome is not None
        assert outcome.test_problem == "the optimization was branched before it"
        assert [run.split for run in parent.runs()] == ["train", "val"]
    assert program.optimization_result.branched_from == {"store": "runs-0001.sqlite", "run_id": "r1"}


def test_a_branch_of_a_directory_that_is_not_kept_works_too() -> None:
    stores: list[Path] = []

    def watch(event: Any) -> None:
        stores.extend([Path(event.store)] if type(event).__name__ == "CompileStarted" else [])

    def answer(question: Asked) -> str:
        with StoreReader.open(stores[0]) as store:
            prepare_branch(store, "r1")
        return "pass"

    root = ScriptedRootLM([answer, SUBMIT])
    program = toy.optimizer(root, callbacks=[watch]).compile(toy.Triage(), **toy.arguments())
    assert program.optimization_result.branched_from == {"store": "runs-0001.sqlite", "run_id": "r1"}
    assert not stores[0].parent.exists()


def test_parent_and_branch_are_killed_and_every_unit_is_spent_once(tmp_path: Path) -> None:
    with Running(tmp_path, "thinking", plain=True) as running:
        running.wait_there()
        with StoreReader.open_in(tmp_path) as parent:
            left = unit_limit(parent.setup() or {}) - parent.spent()
            prepare_branch(parent, "r4")
        running.stop(signal.SIGKILL)
        running.ended()
    before = len(lines_of(tmp_path))
    killed(tmp_path, "validation", plain=True)  # the branch, within its run on val
    result = finished(tmp_path, plain=True)["optimization_result"]
    assert (left, result["budget"]["limit"]) == (34 - 2 - 6, left)
    assert result["branched_from"] == {"store": "runs-0001.sqlite", "run_id": "r4"}
    with StoreReader.open_in(tmp_path) as branch:
        assert result["budget"]["spent"] == sum(charge.amount for charge in branch.charges()) == 2 + 6 + 4 + 2
        assert [record.data["run_id"] for record in branch.events("Branched")] == ["r4"]
    assert len(lines_of(tmp_path)) - before == 2 + 6 + 4


@pytest.mark.parametrize("cut", ["before it begins", "when its budget is fixed"])
def test_a_kill_between_the_parents_end_and_the_branchs_begin_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    root = ScriptedRootLM([TRY, branching(tmp_path, "pass")])
    with monkeypatch.context() as patched:
        if cut == "before it begins":
            patched.setattr(stored_compile, "branch_of", die)
        else:
            replace = RunStore.replace_setup
            patched.setattr(RunStore, "replace_setup", lambda store, setup: (replace(store, setup), die()))
        with pytest.raises(Killed):
            compiled(root, tmp_path)
    with StoreReader.open(store_in(tmp_path)) as parent:
        assert parent.outcome() is not None
    program, calls = compiled(ScriptedRootLM([SUBMIT]), tmp_path, resume=True)
    assert program.optimization_result.branched_from == {"store": "runs-0001.sqlite", "run_id": "r3"}
    assert program.optimization_result.budget == {"limit": 30, "spent": 0}
    assert calls == 0
