"""Nothing is lost: a compile that ended in any way goes on where it was, and pays for nothing twice."""

from __future__ import annotations

import functools
import json
import os
import stat
import tempfile
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from child_process import forked, output_of
from offline import ScriptedRootLM, field_lm, text_lm
from stoppable import attributes, finished, killed, lines_of

from kernel_bridge import KernelInterpreter
from rlmoptimizer import InvalidSetup, MetricFailed, RLMDocstringOptimizer
from rlmoptimizer.agent.turns import Turns
from rlmoptimizer.compilation.resume import CUT_OUTPUT
from rlmoptimizer.compilation.setup_record import metric_name
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.program import read_prompts

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
FIXED = {"topic": toy.FIX, "reply": "Answer by the topic."}


def begun(directory: Path, turns: list[Any], **options: Any) -> None:
    """A compile whose root LM fails after these turns."""
    root = ScriptedRootLM([*turns, RuntimeError("the key was revoked")])
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir=directory, **options).compile(toy.Triage(), **toy.arguments())


def resumed(directory: Path, turns: list[Any], **options: Any) -> tuple[Any, ScriptedRootLM]:
    changed = {name: options.pop(name) for name in ("trainset", "metric", "valset", "student") if name in options}
    student = changed.pop("student", None) or toy.Triage()
    root = ScriptedRootLM(turns)
    optimizer = toy.optimizer(root, run_storage_dir=directory, **options)
    return optimizer.compile(student, **toy.arguments(**changed), resume=True), root


# killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Counter[str]]:
    """The result of a compile that nothing happened to, and the calls of its program."""
    directory = tmp_path_factory.mktemp("undisturbed")
    return finished(directory), Counter(lines_of(directory))


@pytest.mark.parametrize("point", ["created", "baseline", "evaluation", "thinking", "sub-lm", "cell", "submitted"])
def test_a_compile_that_was_killed_at_any_point_goes_on_to_the_same_result(
    point: str, undisturbed: tuple[dict[str, Any], Counter[str]], tmp_path: Path
) -> None:
    expected, calls = undisturbed
    killed(tmp_path, point)
    result = finished(tmp_path)
    for name in ("optimized_dspy_program", "best_score", "best_run_id", "latest_run_id", "baseline_run_id"):
        assert result[name] == expected[name], name
    assert [log["score"] for log in result["trial_logs"]] == [log["score"] for log in expected["trial_logs"]]
    with StoreReader.open_in(tmp_path) as store:
        spent = store.spent()
    # Not finished when it was killed: one example, and one prompt whose price was paid before it was sent.
    again = {"sub-lm": 1, "cell": 1}.get(point, 0)
    assert spent == 2 + 6 + 4 + 1 + 1 + again
    assert Counter(lines_of(tmp_path)) == calls


@pytest.mark.usefixtures("plain_repl")
def test_a_cell_that_was_cut_is_told_to_the_agent_and_counts_as_a_turn(tmp_path: Path) -> None:
    killed(tmp_path, "evaluation", plain=True)
    with StoreReader.open_in(tmp_path) as store:
        cut = store.unfinished_iteration()
    result, root = resumed(
        tmp_path,
        ["print(previous_trajectory[-1]['turn'], previous_trajectory[-1]['output'])", SUBMIT],
        rlm_max_iterations=20,
    )
    assert cut is not None
    assert cut.number == 2
    assert f"2 {CUT_OUTPUT}" in root.history
    assert "Turn 2 was cut: previous_trajectory[-1] has its code, and no output" in root.seen[0].text
    assert "run r4 on train was cut and ended after 3 of 6 examples" in root.seen[0].text
    assert [turn["output"] == CUT_OUTPUT for turn in result.agent_trajectory] == [False, True, False, False]


# raised


@pytest.mark.usefixtures("plain_repl")
def test_an_example_nested_deeper_than_python_could_follow_is_optimized_on_and_gone_on_with(tmp_path: Path) -> None:
    def nested(word: str, levels: int = 400) -> list[dspy.Example]:
        value: Any = word
        for _ in range(levels):
            value = [value]
        return [*toy.trainset(5), dspy.Example(**toy.example(5), notes=value).with_inputs("message")]

    root = ScriptedRootLM([RuntimeError("the key was revoked")])
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments(trainset=nested("one")))
    result, _ = resumed(tmp_path, [SUBMIT], trainset=nested("one"))
    assert result.best_score == 50.0
    for other in (nested("other", 20), nested("one", 20)):
        with pytest.raises(InvalidSetup, match=r"trainset: example 6 differs \(of 6\)"):
            resumed(tmp_path, [], trainset=other)


@pytest.mark.smoke
def test_an_agent_whose_lm_failed_goes_on_with_its_turns_runs_prompts_and_budget(tmp_path: Path) -> None:
    begun(tmp_path, [f"update_prompt('topic', {toy.FIX!r})\nprint(evaluate_program(limit=4)['run_id'])"])
    look = "s = optimization_status()\nprint(s['current_prompts']['topic'], s['spent_budget'], s['root_lm_calls'])"
    result, root = resumed(tmp_path, [look, "print([t['code'] for t in previous_trajectory])", SUBMIT])
    assert f"{toy.FIX} 4 2" in root.history
    assert "1 of 8 turns are done, 7 left; 30 budget units are left" in root.seen[0].text
    assert "r3 on train: score 100.00 on 4 of 4" in root.seen[0].text
    assert result.optimized_dspy_program == FIXED
    assert [turn["reasoning"] for turn in result.agent_trajectory] == ["turn 1", "turn 1", "turn 2", "turn 3"]
    assert [log["run_id"] for log in result.trial_logs] == ["r1", "r2", "r3", "r4"]  # the last one is the final check


@pytest.mark.usefixtures("plain_repl")
def test_going_on_is_shown_and_kept_as_an_event(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, ["evaluate_program(limit=4)"])
    assert "Going on" not in capfd.readouterr().err
    resumed(tmp_path, [SUBMIT], verbose=True)
    shown = capfd.readouterr().err
    assert "Going on" in shown
    assert "so far: turns 1, runs 3; 30 of 34 budget units left" in shown
    with StoreReader.open_in(tmp_path) as store:
        so_far = {"turns": 1, "runs": 3, "left": 30, "best": [0.5, "r2"]}
        assert [event.data for event in store.events("CompileResumed")] == [so_far]


@pytest.mark.usefixtures("plain_repl")
def test_a_resume_says_what_it_found(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    begun(tmp_path, ["evaluate_program(limit=4)"])
    assert "RLMDocstringOptimizer: " not in capfd.readouterr().err
    path = tmp_path / "runs-0001.sqlite"
    for said in (
        f"RLMDocstringOptimizer: going on with {path}: so far runs 3, turns of the agent 1.\n",
        f"RLMDocstringOptimizer: the optimization in {path} is finished; this is its result.\n",
    ):
        resumed(tmp_path, [SUBMIT])
        assert said in capfd.readouterr().err
    resumed(tmp_path / "mistyped", [SUBMIT])
    assert f"there was nothing to resume in {tmp_path / 'mistyped'}; a new one begins in" in capfd.readouterr().err


@pytest.mark.usefixtures("plain_repl")
def test_a_new_compile_has_nothing_behind_it(tmp_path: Path) -> None:
    result, root = resumed(tmp_path / "none yet", ["print([previous_trajectory, work_so_far])", SUBMIT])
    assert "[[], '']" in root.history
    assert len(result.agent_trajectory) == 2


@pytest.mark.usefixtures("plain_repl")
def test_without_turns_left_the_agent_is_only_asked_for_its_conclusion(tmp_path: Path) -> None:
    begun(tmp_path, [f"update_prompt('topic', {toy.FIX!r})"], rlm_max_iterations=2)
    with RunStore.open_in(tmp_path) as store:
        store.begin_iteration("evaluate_program('val')")  # as a process leaves it that is killed in the last turn
    made: list[object] = []
    root = ScriptedRootLM([], extract={"optimized_dspy_program": json.dumps(FIXED)})
    optimizer = toy.optimizer(root, run_storage_dir=tmp_path, rlm_max_iterations=2, kernel=lambda: made.append(1))
    result = optimizer.compile(toy.Triage(), **toy.arguments(), resume=True)
    assert result.optimized_dspy_program == FIXED
    assert (made, root.extracts, len(root.seen)) == ([], 1, 1)
    assert "update_prompt" in root.history
    assert CUT_OUTPUT in root.history


@pytest.mark.usefixtures("plain_repl")
def test_a_turn_that_was_cut_is_counted_in_the_line_that_says_what_was_found(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    begun(tmp_path, ["pass"])
    with RunStore.open_in(tmp_path) as store:
        store.begin_iteration("pass")
        turns = len(store.iterations()) + 1
    result, _ = resumed(tmp_path, [SUBMIT])
    assert f"turns of the agent {turns}." in capfd.readouterr().err
    assert len(result.agent_trajectory) == turns + 1


@pytest.mark.usefixtures("plain_repl")
def test_without_turns_or_a_conclusion_the_best_run_is_taken(tmp_path: Path) -> None:
    begun(tmp_path, [f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})"], rlm_max_iterations=2)
    with RunStore.open_in(tmp_path) as store:
        store.begin_iteration("pass")
    result, _ = resumed(tmp_path, [], rlm_max_iterations=2)
    assert (result.optimized_dspy_program, result.best_run_id) == (FIXED, "r3")


def test_the_turns_and_the_sub_lm_prompts_of_earlier_processes_count(tmp_path: Path) -> None:
    begun(tmp_path, ["llm_query_batched(['a', 'b'])"], rlm_max_llm_calls=3, rlm_max_iterations=3)
    ask = "try:\n    llm_query_batched(['c', 'd'])\nexcept Exception as e:\n    print(type(e).__name__, e)"
    result, root = resumed(tmp_path, [ask, SUBMIT], rlm_max_llm_calls=3, rlm_max_iterations=3)
    assert "BudgetExceededError asked for 2 units, 1 left" in root.history
    assert len(result.agent_trajectory) == 3
    assert "1/2" in root.seen[0].inputs["iteration"]


@pytest.mark.usefixtures("plain_repl")
def test_a_metric_that_has_worked_may_fail_on_all_examples_later(tmp_path: Path) -> None:
    begun(tmp_path, [])

    def broken(gold: Any, prediction: Any, trace: Any = None) -> float:
        raise RuntimeError("out of order")

    broken.__module__, broken.__qualname__ = toy.metric.__module__, toy.metric.__qualname__
    look = "print(evaluate_program(limit=2)['examples'][0]['error'])"
    _, root = resumed(tmp_path, [look, SUBMIT], metric=broken)
    assert "RuntimeError: out of order" in root.history


# finished


@pytest.mark.usefixtures("plain_repl")
def test_a_baseline_whose_metric_failed_is_no_baseline_of_the_result(tmp_path: Path) -> None:
    works = False

    def metric(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> dspy.Prediction:
        if not works:
            raise RuntimeError("not yet")
        return toy.metric(gold, prediction)

    with pytest.raises(MetricFailed):
        toy.optimizer(ScriptedRootLM([]), run_storage_dir=tmp_path).compile(
            toy.Triage(), **toy.arguments(metric=metric, valset=None)
        )
    works = True
    program, _ = resumed(tmp_path, [SUBMIT], metric=metric, valset=None)
    assert program.optimization_result.run_ids["train"]["baseline"] == ("r2",)
    with StoreReader.open_in(tmp_path) as store:
        assert [(run.state, run.score) for run in store.runs()] == [("failed", 0.0), ("finished", 0.5)]
        assert store.events("CompileFinished")[0].data["baseline_score"] == 0.5


@pytest.mark.usefixtures("plain_repl")
def test_a_finished_optimization_gives_its_result_at_once(tmp_path: Path) -> None:
    turns = [f"update_prompt('topic', {toy.FIX!r})\nevaluate_program('val')\nllm_query('x')", SUBMIT]
    first = toy.optimizer(ScriptedRootLM(turns), run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments())
    before = (tmp_path / "runs-0001.sqlite").read_bytes()
    made: list[object] = []
    again, root = resumed(tmp_path, [], kernel=lambda: made.append(1))
    assert attributes(again) == attributes(first)
    assert read_prompts(again) == FIXED
    assert again._compiled is True
    assert (made, root.seen) == ([], [])
    assert (tmp_path / "runs-0001.sqlite").read_bytes() == before
    other, _ = resumed(tmp_path, [], num_threads=1, verbose=True)
    assert attributes(other) == attributes(first)


def test_a_submission_that_was_recorded_ends_it_without_the_agent(tmp_path: Path) -> None:
    killed(tmp_path, "submitted", plain=True)
    result, root = resumed(tmp_path, [], rlm_max_iterations=20)
    assert (result.optimized_dspy_program, root.seen) == (FIXED, [])
    assert result.agent_final_reasoning == "turn 6"
    assert len(result.agent_trajectory) == 6


# what must be the same


def reworded() -> dspy.Module:
    student = toy.Triage()
    student.reply.signature = dspy.Signature("message, topic -> answer", "Answer politely.")
    return student


def more_inputs(**splits: list[dspy.Example]) -> dict[str, list[dspy.Example]]:
    return {name: [row.with_inputs("message", "topic") for row in rows] for name, rows in splits.items()}


def with_demos() -> dspy.Module:
    student = toy.Triage()
    student.topic.demos = [dspy.Example(message="x", topic="bug")]
    return student


def larger() -> dspy.Module:
    student = toy.Triage()
    student.check = dspy.Predict("answer -> verdict")  # type: ignore[attr-defined]
    return student


def other_metric(gold: Any, prediction: Any, trace: Any = None) -> float:
    return 1.0


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where an optimization has begun. Each test that is refused it leaves it as it was."""
    directory = tmp_path_factory.mktemp("stopped")
    begun(directory, [], kernel=dspy.LocalInterpreter)
    return directory


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"max_iterations": 6}, "max_iterations was 5, is 6"),
        ({"max_iterations": None, "auto": "heavy"}, "max_iterations was 5, is 12"),
        ({"seed": 7}, "seed was 0, is 7"),
        ({"perfect_score": 10}, "perfect_score was 1.0, is 10.0"),
        ({"share_source": True}, "share_source was False, is True"),
        ({"max_prompt_tokens": 500}, "max_prompt_tokens was None, is 500"),
        ({"root_adapter": dspy.JSONAdapter()}, "root_adapter was 'ChatAdapter', is 'JSONAdapter'"),
        ({"eval_lm": text_lm(str, "other")}, "eval_lm was 'offline/eval', is 'offline/other'"),
        ({"rlm_max_llm_calls": 5, "num_threads": 1}, "rlm_max_llm_calls was 200, is 5. "),
        ({"metric": other_metric}, "metric was 'toy.metric', is 'test_resume.other_metric'"),
        ({"valset": None}, "valset was 4 examples, is None"),
        ({"trainset": toy.trainset(7)}, "trainset had 6 examples, has 7 examples"),
        ({"trainset": [*toy.trainset(5), toy.example(9)]}, "trainset: example 6 differs (of 6)"),
        ({"trainset": [toy.example(n) for n in (0, 7, 8, 3, 4, 5)]}, "trainset: examples 2, 3 differ (of 6)"),
        ({"trainset": toy.trainset()[::-1]}, "trainset: the same 6 examples in another order"),
        (more_inputs(trainset=toy.trainset(), valset=toy.valset()), "1, 2, 3, 4, 5, 6 differ (of 6)"),
        ({"student": reworded()}, "student: other instructions in 'reply'"),
        ({"student": with_demos()}, "student: 'topic' differs in more than its instructions"),
        ({"student": larger()}, "student: 'check' is new"),
    ],
)
def test_whatever_is_not_the_same_is_named(changed: dict[str, Any], said: str, stopped: Path) -> None:
    store = stopped / "runs-0001.sqlite"
    before = store.read_bytes()
    with pytest.raises(InvalidSetup, match="cannot be resumed, because this is another one: ") as refused:
        resumed(stopped, [], **changed)
    assert said in str(refused.value)
    assert "resume=False to begin a new one" in str(refused.value)
    assert "message" not in str(refused.value).replace("more than", "")  # no word of any example
    assert store.read_bytes() == before


def test_all_differences_are_named_at_once(stopped: Path) -> None:
    with pytest.raises(InvalidSetup) as refused:
        resumed(stopped, [], max_iterations=6, trainset=toy.trainset(3), metric=other_metric)
    for name in ("max_iterations", "trainset", "metric"):
        assert name in str(refused.value)


@pytest.mark.usefixtures("plain_repl")
def test_what_does_not_decide_the_result_may_change(tmp_path: Path) -> None:
    begun(tmp_path, [])
    others: dict[str, Any] = {"example_timeout": 60, "target_score": 99, "patience": 9, "max_seconds": 3600}
    result, _ = resumed(tmp_path, [SUBMIT], num_threads=1, verbose=True, kernel=dspy.LocalInterpreter, **others)
    assert result.best_score == 50.0


@pytest.mark.usefixtures("plain_repl")
def test_a_seed_that_was_drawn_is_used_again(tmp_path: Path) -> None:
    draw = "print(evaluate_program(limit=2, sample='random')['config']['sample_seed'])"
    begun(tmp_path, [draw], seed=None)
    with StoreReader.open_in(tmp_path) as store:
        drawn = store.setup()["drawn_seed"]  # type: ignore[index]
        first = store.iterations()[0].output
    _, root = resumed(tmp_path, ["update_prompt('topic', 'x')", draw, SUBMIT], seed=None)
    assert 0 <= drawn < 2**63
    assert first is not None
    _, again = toy.compiled([draw, SUBMIT], seed=drawn)
    assert first.strip() in again.history
    assert first.strip() not in root.history.partition("=== Step 2")[2]


def test_a_directory_is_the_one_that_was_named_whatever_the_metric_does_to_the_working_directory(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    wait_until: Callable[..., None],
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)

    def restless(gold: Any, prediction: Any, trace: Any = None) -> float:
        os.chdir(elsewhere)
        return float(toy.metric(gold, prediction).score)

    def kept_by_now(asked: Any) -> str:
        # At the end it is waited for, too, but not for long.
        wait_until((tmp_path / "runs" / "runs-0001.namespace").exists, "the namespace is kept")
        raise RuntimeError("the key was revoked")

    root = ScriptedRootLM(["kept = 5", "print(kept)", kept_by_now])
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir="runs").compile(toy.Triage(), **toy.arguments(metric=restless))
    assert list(elsewhere.iterdir()) == []
    kept = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert kept == ["runs-0001.events.jsonl", "runs-0001.namespace", "runs-0001.sqlite"]
    assert f"run_storage_dir={str(tmp_path / 'runs')!r}" in capfd.readouterr().err


def test_resuming_needs_a_directory_and_true_or_false() -> None:
    with pytest.raises(InvalidSetup, match="resume=True needs the directory of the optimization"):
        toy.optimizer(ScriptedRootLM([])).compile(toy.Triage(), **toy.arguments(), resume=True)
    with pytest.raises(InvalidSetup, match="resume must be True or False"):
        toy.optimizer(ScriptedRootLM([])).compile(toy.Triage(), **toy.arguments(), resume=1)  # type: ignore[arg-type]


@pytest.mark.usefixtures("plain_repl")
def test_without_resume_a_new_store_is_made_beside_the_old_one_and_the_newest_is_resumed(tmp_path: Path) -> None:
    for _ in range(2):
        begun(tmp_path, [])
    resumed(tmp_path, [SUBMIT])
    assert sorted(path.name for path in tmp_path.glob("*.sqlite")) == ["runs-0001.sqlite", "runs-0002.sqlite"]
    with StoreReader.open(tmp_path / "runs-0001.sqlite") as first:
        assert first.outcome() is None


@pytest.mark.parametrize(
    ("metric", "name"),
    [
        (toy.metric, "toy.metric"),
        (functools.partial(toy.metric, trace="a secret"), "partial(toy.metric, trace=...)"),
        (toy.Triage().forward, "toy.Triage.forward"),
        (toy.Triage(), "toy.Triage"),
        (print, "builtins.print"),
    ],
)
def test_a_metric_has_a_name_that_is_the_same_in_every_process(metric: Any, name: str) -> None:
    assert metric_name(metric) == name


# the best so far


@pytest.mark.usefixtures("plain_repl")
def test_the_best_program_so_far_is_there_while_the_compile_goes_on(tmp_path: Path) -> None:
    found: list[Any] = []

    def look(asked: Any) -> str:
        found.append(RLMDocstringOptimizer.best_program(toy.Triage(), tmp_path))
        return SUBMIT

    better = f"update_prompt('topic', {toy.FIX!r})\nevaluate_program('val')\nupdate_prompt('topic', 'worse')"
    root = ScriptedRootLM([better, look])
    toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments())
    (best,) = found
    assert (read_prompts(best), best.best_run_id, best.best_score) == (FIXED, "r3", 100.0)


def test_the_best_program_so_far_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    killed(tmp_path, "sub-lm", plain=True)
    student = reworded()
    best = RLMDocstringOptimizer.best_program(student, str(tmp_path))
    assert (read_prompts(best), best.best_run_id, best.best_score) == (FIXED, "r5", 100.0)
    assert read_prompts(student)["reply"] == "Answer politely."


READER = """
import os
import numpy  # while this user may still read the environment: it is imported only where scores are compared
import toy
from offline import ScriptedRootLM
from rlmoptimizer import RLMDocstringOptimizer
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
print(RLMDocstringOptimizer.best_program(toy.Triage(), {directory!r}).best_run_id)
if {ended!r}:
    again = toy.optimizer(ScriptedRootLM([]), run_storage_dir={directory!r})
    print(again.compile(toy.Triage(), **toy.arguments(), resume=True).best_score)
"""


@pytest.mark.usefixtures("plain_repl")
@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="directories cannot be closed to writing")
@pytest.mark.parametrize("ended", [True, False], ids=["a finished optimization", "a killed one without its index"])
def test_what_is_kept_in_a_directory_that_cannot_be_written_to_is_read_there(ended: bool) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as open_to_all:  # the tests' own place is not
        Path(open_to_all).chmod(0o755)
        directory = Path(open_to_all) / "runs"
        if ended:
            resumed(directory, [SUBMIT])
        else:
            killed(directory, "thinking", plain=True)
            (directory / "runs-0001.sqlite-shm").unlink()
        held = {path.name: path.read_bytes() for path in directory.iterdir()}
        if os.geteuid() == 0:  # whom no mode keeps from writing, so another user reads
            for path in directory.iterdir():
                os.chown(path, 65534, 65534)
        directory.chmod(0o555)
        try:
            reader = forked(READER.format(directory=str(directory), ended=ended), variables={"TMPDIR": "/tmp"})
            read = output_of(reader).split()
        finally:
            directory.chmod(0o755)
        assert read == (["r2", "50.0"] if ended else ["r2"])
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == held


@pytest.mark.usefixtures("plain_repl")
def test_a_best_program_that_cannot_be_had_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(InvalidSetup, match="there is no run store in"):
        RLMDocstringOptimizer.best_program(toy.Triage(), tmp_path)
    RunStore.create_in(tmp_path).close()
    with pytest.raises(InvalidSetup, match="has no finished run yet"):
        RLMDocstringOptimizer.best_program(toy.Triage(), tmp_path)
    begun(tmp_path, [])
    with pytest.raises(InvalidSetup, match="another student than the one that was optimized: student: 'check' is new"):
        RLMDocstringOptimizer.best_program(larger(), tmp_path)
    with pytest.raises(InvalidSetup, match="run_storage_dir must be"):
        RLMDocstringOptimizer.best_program(toy.Triage(), None)  # type: ignore[arg-type]


# the agent's variables


@pytest.mark.parametrize("confinement", ["auto", "off"])
def test_the_agent_has_its_variables_again_as_of_the_turn_that_it_is_told(
    confinement: str, tmp_path: Path, wait_until: Callable[..., None]
) -> None:
    kernel = KernelInterpreter.factory(confinement=confinement)
    file = tmp_path / "runs-0001.namespace"

    def kept(asked: Any) -> str:
        wait_until(lambda: file.exists() and file.read_bytes()[68:70] == b"2\0", "the namespace of turn 2 is kept")
        raise RuntimeError("the key was revoked")

    turns = ["def double(x):\n    return 2 * x\nnotes = [1]", "notes.append(double(2))\nhandle = open('f', 'w')", kept]
    root = ScriptedRootLM(turns)
    with pytest.raises(dspy.LMError, match="the key was revoked"):
        toy.optimizer(root, run_storage_dir=tmp_path, kernel=kernel).compile(toy.Triage(), **toy.arguments())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, root = resumed(tmp_path, ["notes.append(double(3))\nprint(notes)", SUBMIT], kernel=kernel)
    told = root.seen[0].text.partition("This work was interrupted")[2]
    assert "The REPL holds your variables as of the end of turn 2: double, notes." in told
    assert "Not restored: handle (" in told
    assert "[1, 4, 6]" in root.history
    assert not file.exists()


def test_what_the_agent_has_put_in_the_place_of_its_inputs_is_gone_when_it_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, ["previous_trajectory = work_so_far = task_facts = 'forged'"])
    look = "print(len(previous_trajectory), work_so_far[:21], task_facts['program'])"
    _, root = resumed(tmp_path, [look, SUBMIT])
    assert "1 This work was interru Triage" in root.history


def test_a_copy_of_the_namespace_that_was_killed_does_not_outlive_the_optimization(tmp_path: Path) -> None:
    killed(tmp_path, "submitted")
    (tmp_path / "runs-0001.namespace.new").write_bytes(b"half of it")
    resumed(tmp_path, [], rlm_max_iterations=20)
    assert not list(tmp_path.glob("*.namespace*"))


def test_a_namespace_that_cannot_be_used_is_told_and_the_work_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, ["x = 1"])
    (tmp_path / "runs-0001.namespace").write_bytes(b"something else")
    result, root = resumed(tmp_path, ["print('x' in globals())", SUBMIT])
    told = "The REPL is new: the kept variables could not be used, because it is no checkpoint of a kernel."
    assert told in root.seen[0].text
    assert "False" in root.history
    assert result.best_score == 50.0


def test_an_interpreter_without_checkpoints_is_told_as_new(tmp_path: Path) -> None:
    begun(tmp_path, ["x = 1"], kernel=dspy.LocalInterpreter)
    _, root = resumed(tmp_path, [SUBMIT], kernel=dspy.LocalInterpreter)
    assert "The REPL is new: it holds none of your earlier variables." in root.seen[0].text


def test_without_a_directory_nothing_of_the_namespace_stays(tmp_path: Path) -> None:
    result, _ = toy.compiled(["x = 1", SUBMIT])
    assert result.best_score == 50.0
    assert list(tmp_path.iterdir()) == []


# an evaluation cut by a dying kernel


def test_an_evaluation_that_a_dying_kernel_cut_is_told_by_its_id_and_pays_only_what_ran() -> None:
    entered, gone = threading.Event(), threading.Event()
    lock, calls = threading.Lock(), [0]

    def respond(question: Any) -> dict[str, object]:
        if "one word" in question.instructions:
            with lock:
                calls[0] += 1
                third = calls[0] == 3
            if third:
                entered.set()
                assert gone.wait(60)
        return toy.respond(question)

    def sub(prompt: str) -> str:
        assert entered.wait(60)
        return "it runs"

    die = f"""
import os, threading
threading.Thread(target=evaluate_program, kwargs=dict(prompts={{"topic": {toy.FIX!r}}})).start()
llm_query("wait until the third example runs")
os._exit(1)
"""
    look = "print(run_data('r3')['evaluated_count'], optimization_status()['spent_budget'])"
    again = f"print(evaluate_program(prompts={{'topic': {toy.FIX!r}}})['summary_line'])"
    root = ScriptedRootLM([die, look, again, SUBMIT])
    optimizer = toy.optimizer(root, eval_lm=field_lm(respond, "eval"), sub_lm=text_lm(sub, "sub"), num_threads=1)
    died = Turns.kernel_died

    def kernel_died(self: Turns) -> None:
        died(self)
        gone.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Turns, "kernel_died", kernel_died)
        result = optimizer.compile(toy.Triage(), **toy.arguments())
    assert "budget, runs, prompts" in result.agent_trajectory[0]["output"]
    assert "run r3 on train was cut and ended after 3 of 6 examples" in result.agent_trajectory[0]["output"]
    assert result.agent_trajectory[1]["output"].strip() == "3 4"
    said = "run r3 on train: score 100.00 (95% interval 61-100), 6/6 passed; 27 budget"
    assert result.agent_trajectory[2]["output"].startswith(said)
