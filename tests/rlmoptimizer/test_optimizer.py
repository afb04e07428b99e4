"""The optimizer as a caller sees it: its parameters, what `compile` gives back, and what it leaves alone."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy.utils.callback import BaseCallback
from offline import ScriptedRootLM

from kernel_bridge import KernelInterpreter
from rlmoptimizer import InvalidSetup, MetricFailed, RLMDocstringOptimizer
from rlmoptimizer.other_optimizers import advice_on
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.program import fingerprint, read_prompts

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

SUBMIT_FIX = f"""
update_prompt("topic", {toy.FIX!r})
print(evaluate_program()["summary_line"], evaluate_program("val")["summary_line"])
SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])
"""
SUBMIT_SAME = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
PARAMETERS = inspect.signature(RLMDocstringOptimizer).parameters


# parameters


@pytest.mark.smoke
def test_the_parameters_are_keyword_only_and_have_the_documented_defaults() -> None:
    parameters = PARAMETERS
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters.values())
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        "metric": None,  # that of `compile`
        "max_iterations": None,  # 5, or what `auto` says
        "auto": None,
        "root_lm": inspect.Parameter.empty,
        "sub_lm": None,
        "eval_lm": None,
        "root_adapter": None,
        "num_threads": 8,
        "rlm_max_iterations": 200,
        "rlm_max_llm_calls": 200,
        "rlm_max_output_chars": 10_000,
        "rlm_max_history_chars": 200_000,
        "root_stateful_session": True,
        "rlm_multiturn_history": False,
        "verbose": False,
        "run_storage_dir": None,
        "sub_agents": False,
        "kernel": None,  # KernelInterpreter.factory()
        "max_cost_usd": None,
        "seed": 0,
        "perfect_score": 1.0,
        "example_timeout": None,
        "target_score": None,
        "patience": None,
        "max_seconds": None,
        "share_source": False,
        "max_prompt_tokens": None,
        "callbacks": (),
        "executor": None,
    }


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("max_iterations", 0),
        ("max_iterations", -3),
        ("max_iterations", 2.5),
        ("max_iterations", True),
        ("max_iterations", "5"),
        ("metric", 0.5),
        ("metric", dspy.Example),
        ("auto", "middle"),
        ("auto", 2),
        ("root_adapter", dspy.ChatAdapter),
        ("root_adapter", "json"),
        ("root_lm", None),
        ("root_lm", "openai/gpt-5"),
        ("sub_lm", "openai/gpt-5"),
        ("eval_lm", object()),
        ("sub_agents", 1),
        ("sub_agents", None),
        ("num_threads", 0),
        ("num_threads", None),
        ("rlm_max_iterations", 0),
        ("rlm_max_llm_calls", -1),
        ("rlm_max_output_chars", 0),
        ("rlm_max_history_chars", 999),
        ("root_stateful_session", 1),
        ("rlm_multiturn_history", None),
        ("verbose", "yes"),
        ("run_storage_dir", 7),
        ("run_storage_dir", " "),
        ("run_storage_dir", __file__),
        ("executor", 4),
        ("executor", lambda workers: None),
        ("kernel", "local"),
        ("kernel", 3),
        ("max_cost_usd", 0),
        ("max_cost_usd", -1.0),
        ("max_cost_usd", float("nan")),
        ("max_cost_usd", float("inf")),
        ("max_cost_usd", True),
        ("max_cost_usd", "5"),
        ("seed", "0"),
        ("seed", 1.0),
        ("seed", False),
        ("perfect_score", 0),
        ("perfect_score", -1),
        ("perfect_score", float("nan")),
        ("perfect_score", None),
        ("example_timeout", 0),
        ("example_timeout", float("inf")),
        ("example_timeout", "60"),
        ("target_score", 0.9),
        ("target_score", 1),
        ("target_score", 101),
        ("target_score", -1),
        ("patience", 0),
        ("patience", 1.5),
        ("max_seconds", 0),
        ("max_seconds", True),
        ("share_source", 1),
        ("max_prompt_tokens", 0),
        ("max_prompt_tokens", 100.0),
        ("callbacks", None),
        ("callbacks", print),
        ("callbacks", "log"),
    ],
)
def test_a_wrong_parameter_is_refused_with_its_name_what_came_and_what_is_accepted(name: str, wrong: Any) -> None:
    options: dict[str, Any] = {"root_lm": ScriptedRootLM([]).lm, name: wrong}
    with pytest.raises(InvalidSetup) as refused:
        RLMDocstringOptimizer(**options)
    assert str(refused.value).startswith(f"{name} must be ")
    assert repr(wrong)[:50] in str(refused.value)
    assert isinstance(refused.value, ValueError)


@pytest.mark.parametrize("name", ["perfect_score", "example_timeout", "max_seconds", "target_score", "max_cost_usd"])
@pytest.mark.parametrize("wrong", [10**400, -(10**5000)], ids=["400 digits", "5000 digits"])
def test_a_number_too_large_to_be_one_is_refused(name: str, wrong: int) -> None:
    options: dict[str, Any] = {"root_lm": ScriptedRootLM([]).lm, name: wrong}
    with pytest.raises(InvalidSetup, match=f"{name} must be "):
        RLMDocstringOptimizer(**options)


@pytest.mark.parametrize("wrong", [3, None, list, BaseCallback()])
def test_a_callback_that_takes_no_event_is_refused_by_its_place(wrong: Any) -> None:
    with pytest.raises(InvalidSetup, match=r"callbacks\[1\] must be a function that takes one event") as refused:
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, callbacks=[print, wrong])
    assert ("dspy.configure(callbacks=[...])" in str(refused.value)) is isinstance(wrong, BaseCallback)


def test_an_interpreter_in_place_of_a_factory_is_refused() -> None:
    with pytest.raises(InvalidSetup, match="kernel must be a callable"):
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, kernel=KernelInterpreter(confinement="off"))  # type: ignore[arg-type]


def test_a_kernel_factory_that_needs_arguments_is_refused() -> None:
    for factory in (KernelInterpreter, KernelInterpreter.factory(), lambda: KernelInterpreter()):
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, kernel=factory)
    with pytest.raises(InvalidSetup, match="kernel must be a callable without arguments"):
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, kernel=lambda python: KernelInterpreter(python=python))  # type: ignore[arg-type,misc]


def test_an_unknown_or_missing_parameter_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        RLMDocstringOptimizer()  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, max_iteration=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("reflection_lm", "use root_lm"),
        ("prompt_model", "use root_lm"),
        ("task_model", "use eval_lm"),
        ("log_dir", "use run_storage_dir"),
        ("max_metric_calls", "use max_iterations or auto"),
        ("max_full_evals", "use max_iterations or auto"),
        ("num_trials", "use max_iterations or auto"),
        ("track_stats", "optimization_result"),
        ("max_bootstrapped_demos", "only instructions are changed"),
        ("num_candidates", "the agent decides"),
        ("breadth", "the agent decides"),
        ("depth", "the agent decides"),
        ("max_errors", "a row with an error"),
    ],
)
def test_a_keyword_of_another_optimizer_is_refused_with_ours(name: str, said: str) -> None:
    optimizer: Any = RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm)
    for call in (
        lambda: RLMDocstringOptimizer(**{"root_lm": ScriptedRootLM([]).lm, name: 3}),
        lambda: optimizer.compile(toy.Triage(), **compile_arguments(), **{name: 3}),
    ):
        with pytest.raises(TypeError, match=rf"has no parameter '{name}' \(.*{said}.*coming-from-gepa") as refused:
            call()
        assert not isinstance(refused.value, ValueError)
    with pytest.raises(AttributeError, match=said):
        setattr(optimizer, name, 3)


def test_a_call_of_gepa_is_refused_with_everything_that_is_to_be_changed() -> None:
    make: Any = RLMDocstringOptimizer
    with pytest.raises(TypeError) as refused:
        make(metric=toy.metric, auto="light", reflection_lm=ScriptedRootLM([]).lm, log_dir="logs", track_stats=True)
    for name in ("reflection_lm", "log_dir", "track_stats"):
        assert f"{name!r} (" in str(refused.value)
    assert "'auto'" not in str(refused.value)


def test_any_other_unknown_keyword_is_refused_with_the_closest() -> None:
    optimizer: Any = RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm)
    make: Any = RLMDocstringOptimizer
    for call, said in (
        (lambda: make(root_lm=optimizer.root_lm, num_thread=3), r"'num_thread' \(did you mean 'num_threads'\?\)$"),
        (lambda: make(root_lm=optimizer.root_lm, zzzz=3), r"RLMDocstringOptimizer has no parameter 'zzzz'$"),
        (lambda: make(root_lm=optimizer.root_lm, trainset=[]), r"'trainset' \(it is a parameter of compile\("),
        (lambda: optimizer.compile(toy.Triage(), trainsets=[]), r"\.compile has no parameter .*'trainset'"),
        (lambda: optimizer.compile(toy.Triage(), trainset=[], num_threads=3), "a parameter of the constructor"),
        (lambda: make(toy.metric), r"takes parameters by name: metric=\.\.\., root_lm=\.\.\."),
        (lambda: optimizer.compile(toy.Triage(), []), r"\.compile takes parameters by name: trainset=\.\.\."),
    ):
        with pytest.raises(TypeError, match=said):
            call()


def test_every_parameter_of_dspys_optimizers_is_ours_or_explained() -> None:
    ours = {*PARAMETERS, *inspect.signature(RLMDocstringOptimizer.compile).parameters, "testset"}
    kinds = [kind for kind in vars(dspy.teleprompt).values() if inspect.isclass(kind) and kind.__module__ != "typing"]
    optimizers = [kind for kind in kinds if issubclass(kind, dspy.teleprompt.Teleprompter)]
    assert {"GEPA", "MIPROv2", "COPRO", "SIMBA", "BootstrapFewShot"} <= {kind.__name__ for kind in optimizers}
    for kind in optimizers:
        for function in (kind.__init__, kind.compile):
            for parameter in inspect.signature(function).parameters.values():
                named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
                if named and parameter.name != "self" and parameter.name not in ours:
                    assert advice_on(parameter.name, ()) is not None, (kind.__name__, parameter.name)


def test_what_the_optimizer_was_made_with_can_be_read_and_set(tmp_path: Path) -> None:
    root = ScriptedRootLM([])
    optimizer = RLMDocstringOptimizer(root_lm=root.lm, num_threads=3, run_storage_dir=str(tmp_path), max_cost_usd=2)
    assert (optimizer.root_lm, optimizer.num_threads, optimizer.max_iterations) == (root.lm, 3, 5)
    assert (optimizer.run_storage_dir, optimizer.max_cost_usd, optimizer.sub_lm) == (tmp_path, 2.0, None)
    assert optimizer.get_params() == {
        name: None if name == "max_iterations" else getattr(optimizer, name) for name in PARAMETERS
    }
    again = RLMDocstringOptimizer(**optimizer.get_params())
    assert again.settings == optimizer.settings
    optimizer.num_threads = 5
    optimizer.run_storage_dir = None
    assert (optimizer.num_threads, optimizer.run_storage_dir, optimizer.root_lm) == (5, None, root.lm)
    with pytest.raises(InvalidSetup, match="num_threads must be a whole number of at least 1, got 0"):
        optimizer.num_threads = 0
    assert optimizer.num_threads == 5
    assert set(PARAMETERS) <= set(dir(optimizer))
    with pytest.raises(InvalidSetup, match="settings must be a Settings, got int"):
        optimizer.settings = 5  # type: ignore[assignment]
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = optimizer.no_such_thing


def test_a_misspelt_attribute_is_refused_with_the_right_name() -> None:
    optimizer = RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm)
    with pytest.raises(AttributeError, match=r"no attribute 'num_thread'; did you mean 'num_threads'\?"):
        optimizer.num_thread = 16
    with pytest.raises(AttributeError, match=r"no attribute 'max_second'; did you mean 'max_seconds'\?"):
        _ = optimizer.max_second
    with pytest.raises(AttributeError, match=r"no attribute 'no_such_thing'$"):
        optimizer.no_such_thing = 16
    assert optimizer.num_threads == 8


def test_a_subclass_has_attributes_of_its_own() -> None:
    class Named(RLMDocstringOptimizer):
        title = ""

        def __init__(self, title: str, **options: Any) -> None:
            super().__init__(**options)
            self.title = title
            self._private = title

    named = Named("mine", root_lm=ScriptedRootLM([]).lm)
    assert (named.title, named._private) == ("mine", "mine")
    with pytest.raises(AttributeError, match="did you mean 'num_threads'"):
        named.num_thread = 16


@pytest.mark.parametrize(("auto", "iterations"), [(None, 5), ("light", 2), ("medium", 5), ("heavy", 12)])
def test_auto_is_a_name_for_max_iterations(auto: Any, iterations: int) -> None:
    optimizer = RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, auto=auto)
    assert (optimizer.auto, optimizer.max_iterations) == (auto, iterations)


def test_auto_sets_the_budget() -> None:
    result, _ = toy.compiled([SUBMIT_SAME], val=0, auto="light")
    assert result.trial_logs[0]["remaining_budget"] == 2 * len(toy.trainset())


def test_max_iterations_and_auto_together_are_refused() -> None:
    root = ScriptedRootLM([]).lm
    with pytest.raises(InvalidSetup, match="max_iterations and auto both set the budget, got 3 and 'light'"):
        RLMDocstringOptimizer(root_lm=root, max_iterations=3, auto="light")
    optimizer = RLMDocstringOptimizer(root_lm=root, auto="light")
    with pytest.raises(InvalidSetup, match="max_iterations and auto both"):
        optimizer.max_iterations = 3
    optimizer.auto = None
    optimizer.max_iterations = 3
    assert optimizer.max_iterations == 3


def test_a_target_below_two_percent_is_taken_for_a_fraction_and_refused() -> None:
    with pytest.raises(InvalidSetup, match=r"target_score must be a percentage from 0 to 100 \(90, not 0\.9\)"):
        RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, target_score=0.9)
    assert RLMDocstringOptimizer(root_lm=ScriptedRootLM([]).lm, target_score=90).target_score == 90.0


# the metric


def test_the_metric_may_be_given_to_the_constructor() -> None:
    result, _ = toy.compiled([SUBMIT_FIX], metric=None, optimizer_metric=toy.metric)
    assert result.best_score == 100.0


def test_the_metric_of_compile_goes_before_that_of_the_constructor() -> None:
    def never(gold: Any, prediction: Any) -> bool:
        raise AssertionError("the metric of the constructor was called")

    result, _ = toy.compiled([SUBMIT_FIX], optimizer_metric=never)
    assert result.best_score == 100.0


def test_without_any_metric_compile_says_where_to_give_one() -> None:
    root = ScriptedRootLM([])
    with pytest.raises(InvalidSetup, match=r"pass it to compile\(\.\.\., metric=\.\.\.\) or to RLMDocstringOptimizer"):
        toy.optimizer(root).compile(toy.Triage(), trainset=toy.trainset())
    assert root.seen == []


# what compile refuses


def compile_arguments(**changed: Any) -> dict[str, Any]:
    return {"trainset": toy.trainset(), "metric": toy.metric, "valset": toy.valset(), **changed}


@pytest.mark.parametrize(
    "changed",
    [
        {"trainset": []},
        {"trainset": None},
        {"trainset": [{"message": "x"}]},
        {"trainset": [dspy.Example(message="x")]},
        {"valset": ["x"]},
        {"metric": None},  # nor has the constructor one
        {"metric": "exact"},
        {"metric": lambda: 1.0},
    ],
)
def test_what_compile_cannot_work_with_is_refused_before_anything_runs(changed: dict[str, Any]) -> None:
    root = ScriptedRootLM([])
    with pytest.raises(InvalidSetup):
        toy.optimizer(root).compile(toy.Triage(), **compile_arguments(**changed))
    assert root.seen == []


@pytest.mark.parametrize("student", [None, "program", toy.Triage, lambda message: message])
def test_a_student_that_is_no_program_is_refused(student: Any) -> None:
    with pytest.raises(InvalidSetup, match="student"):
        toy.optimizer(ScriptedRootLM([])).compile(student, **compile_arguments())


def test_without_any_lm_for_the_program_compile_says_what_to_set() -> None:
    optimizer = toy.optimizer(ScriptedRootLM([]), eval_lm=None)
    with dspy.context(lm=None), pytest.raises(InvalidSetup, match=r"eval_lm is None and dspy\.settings\.lm is not set"):
        optimizer.compile(toy.Triage(), **compile_arguments())


def test_an_lm_named_by_text_in_the_settings_is_refused() -> None:
    optimizer = toy.optimizer(ScriptedRootLM([]), eval_lm=None)
    with dspy.context(lm="openai/gpt-5"), pytest.raises(InvalidSetup, match=r"dspy\.settings\.lm must be"):
        optimizer.compile(toy.Triage(), **compile_arguments())


# the whole road


@pytest.fixture(scope="module")
def improved() -> tuple[Any, ScriptedRootLM]:
    return toy.compiled([SUBMIT_FIX])


@pytest.mark.smoke
def test_the_submitted_prompts_are_in_the_result(improved: tuple[Any, ScriptedRootLM]) -> None:
    result, _ = improved
    assert result.optimized_dspy_program == {"topic": toy.FIX, "reply": "Answer by the topic."}
    assert read_prompts(result) == result.optimized_dspy_program
    with dspy.context(lm=toy.eval_lm()):
        assert result(message="message 1 at length about bug").answer == "we fix it"


def test_the_result_says_how_it_came_about(improved: tuple[Any, ScriptedRootLM]) -> None:
    result, _ = improved
    assert (result.baseline_run_id, result.latest_run_id, result.best_run_id) == ("r1", "r4", "r4")
    assert result.best_score == 100.0
    (turn,) = result.agent_trajectory
    assert set(turn) == {"reasoning", "code", "output"}
    assert turn["output"].startswith("FINAL")
    assert result.agent_final_reasoning == "turn 1"
    assert result._compiled is True


def test_the_trial_logs_hold_every_run_in_order(improved: tuple[Any, ScriptedRootLM]) -> None:
    logs = improved[0].trial_logs
    assert [
        (log["run_id"], log["split"], log["baseline"], log["score"], log["passed_count"], log["evaluated_count"])
        for log in logs
    ] == [
        ("r1", "train", True, 50.0, 3, 6),
        ("r2", "val", True, 50.0, 2, 4),
        ("r3", "train", False, 100.0, 6, 6),
        ("r4", "val", False, 100.0, 4, 4),
    ]
    assert [log["remaining_budget"] for log in logs] == [34, 34, 28, 24]  # 5 x 6 + 4
    assert [log["prompts"]["topic"] == toy.FIX for log in logs] == [False, False, True, True]
    assert all(log["config"]["split"] == log["split"] for log in logs)
    json.dumps(logs)


def test_the_agent_is_told_the_ids_and_scores_of_the_baseline(improved: tuple[Any, ScriptedRootLM]) -> None:
    first = improved[1].seen[0].text
    assert '"run_id": "r1"' in first
    assert '"run_id": "r2"' in first
    assert '"score": 50.0' in first


def test_the_result_is_saved_and_loaded_by_dspy(improved: tuple[Any, ScriptedRootLM], tmp_path: Path) -> None:
    result, _ = improved
    for name, options in (("state.json", {}), ("state.pkl", {"allow_pickle": True})):
        result.save(tmp_path / name)
        fresh = toy.Triage()
        fresh.load(tmp_path / name, **options)
        assert read_prompts(fresh) == result.optimized_dspy_program
    result.save(tmp_path / "program", save_program=True, modules_to_serialize=[toy])
    loaded: Any = dspy.load(str(tmp_path / "program"), allow_pickle=True)
    assert loaded.trial_logs == result.trial_logs
    assert loaded.agent_trajectory == result.agent_trajectory
    assert read_prompts(loaded) == result.optimized_dspy_program


def test_the_result_can_be_copied_and_improved_again(improved: tuple[Any, ScriptedRootLM]) -> None:
    first, _ = improved
    again = copy.deepcopy(first)
    assert read_prompts(again) == first.optimized_dspy_program
    second, _ = toy.compiled([SUBMIT_SAME], student=first)
    assert [log["score"] for log in second.trial_logs] == [100.0, 100.0]
    assert len(first.trial_logs) == 4


@pytest.mark.parametrize("frozen", [False, True])
def test_the_student_is_not_touched(frozen: bool) -> None:
    student = toy.Triage()
    student.topic.demos = [dspy.Example(message="m", topic="bug")]
    student._compiled = frozen
    before = fingerprint(student), read_prompts(student), dict(vars(student))
    result, _ = toy.compiled([SUBMIT_FIX], student=student)
    assert (fingerprint(student), read_prompts(student), dict(vars(student))) == before
    assert fingerprint(result) == fingerprint(student)
    assert result.topic.demos == student.topic.demos
    assert result is not student


def test_a_single_predictor_is_a_program_too() -> None:
    lm = toy.field_lm(lambda asked: {"topic": "bug" if "one word" in asked.instructions else "hm"})
    result, _ = toy.compiled(
        ["step = program_steps[0]['step']\nSUBMIT(optimized_dspy_program={step: 'In one word.'})"],
        student=dspy.Predict("message -> topic"),
        metric=lambda gold, prediction: prediction.topic == gold.topic,
        eval_lm=lm,
    )
    assert list(result.optimized_dspy_program.values()) == ["In one word."]
    assert result.signature.instructions == "In one word."


def test_without_a_validation_set_the_budget_is_for_train_alone() -> None:
    result, root = toy.compiled([SUBMIT_SAME], val=0, max_iterations=2)
    assert [log["split"] for log in result.trial_logs] == ["train"]
    assert result.trial_logs[0]["remaining_budget"] == 12
    assert '"split": "val"' not in root.seen[0].text


# where things run and what is left


def test_the_settings_lm_runs_the_program_when_no_eval_lm_is_given() -> None:
    with dspy.context(lm=toy.eval_lm()):
        result, _ = toy.compiled([SUBMIT_FIX], eval_lm=None)
    assert result.best_score == 100.0


def test_a_step_with_an_lm_of_its_own_keeps_it() -> None:
    student = toy.Triage()
    student.reply.lm = toy.field_lm(lambda asked: {"answer": "from its own lm"}, "own")
    result, _ = toy.compiled(["print(run_data('r1')['examples'][0]['predicted'])", SUBMIT_SAME], student=student)
    assert "from its own lm" in result.agent_trajectory[0]["output"]
    assert result.reply.lm is student.reply.lm


def test_compile_works_inside_a_running_event_loop_and_in_a_thread() -> None:
    async def inside() -> Any:
        return toy.compiled([SUBMIT_FIX])[0]

    results = [asyncio.run(inside())]
    thread = threading.Thread(target=lambda: results.append(toy.compiled([SUBMIT_FIX])[0]))
    thread.start()
    thread.join(60)
    assert [result.best_score for result in results] == [100.0, 100.0]


def test_what_the_caller_has_set_reaches_the_program_and_is_left_as_it_was() -> None:
    seen: set[Any] = set()

    def metric(gold: Any, prediction: Any) -> bool:
        seen.add(dspy.settings.max_errors)
        return True

    with dspy.context(max_errors=77):
        toy.compiled([SUBMIT_SAME], metric=metric)
        assert dspy.settings.max_errors == 77
    assert seen == {77}


def test_the_run_store_is_kept_where_it_was_asked_for(tmp_path: Path) -> None:
    result, _ = toy.compiled([SUBMIT_FIX], run_storage_dir=tmp_path / "runs", kernel=KERNEL)
    with RunStore.open_in(tmp_path / "runs") as store:
        assert [record.run_id for record in store.runs()] == [log["run_id"] for log in result.trial_logs]
        assert [turn.output[:5] for turn in store.iterations()] == ["FINAL"]
        assert sum(charge.amount for charge in store.charges()) == 10
        kinds = [event.kind for event in store.events()]
        [started] = store.events("KernelStarted")
    assert kinds[0] == "CompileStarted"
    assert kinds[-1] == "CompileFinished"
    assert "AgentSubmitted" in kinds
    assert (started.data["interpreter"], started.data["tier"]) == ("KernelInterpreter", None)
    assert "own_process" in started.data["in_force"]
    assert started.data["missing"]["no_network"] == 'confinement="off"'


def test_two_compiles_share_a_storage_directory(tmp_path: Path) -> None:
    for _ in range(2):
        toy.compiled([SUBMIT_SAME], run_storage_dir=str(tmp_path))
    assert len(list(tmp_path.glob("*.sqlite"))) == 2


def test_a_metric_that_always_raises_stops_compile_with_its_traceback(tmp_path: Path) -> None:
    def broken(gold: Any, prediction: Any) -> float:
        return gold.label_that_is_not_there

    with pytest.raises(MetricFailed, match="label_that_is_not_there"):
        toy.compiled([SUBMIT_SAME], metric=broken, run_storage_dir=tmp_path)
    assert list(tmp_path.glob("*.sqlite"))


def test_without_a_kernel_given_the_agent_works_in_a_jupyter_kernel() -> None:
    result, _ = toy.compiled(["print(type(get_ipython()).__name__)", SUBMIT_SAME], kernel=None)
    assert "Shell" in result.agent_trajectory[0]["output"]


def test_a_kernel_that_cannot_start_stops_compile() -> None:
    missing = KernelInterpreter.factory(python=os.path.join(os.sep, "nowhere", "python"), confinement="off")
    with pytest.raises(RuntimeError, match="nowhere"):
        toy.compiled([SUBMIT_SAME], kernel=missing)


def test_a_kernel_factory_that_makes_something_else_is_refused() -> None:
    with pytest.raises(InvalidSetup, match="kernel made a dict"):
        toy.compiled([SUBMIT_SAME], kernel=dict)


# what people see


def test_only_progress_and_the_verdict_are_shown_and_only_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    toy.compiled([SUBMIT_FIX])
    out, err = capfd.readouterr()
    assert out == ""
    *progress, verdict = err.splitlines()
    assert [line.split(" score")[0] for line in progress] == [
        "r1 baseline train 6/6",
        "r2 baseline val 4/4",
        "r3 train 6/6",
        "r4 val 4/4",
    ]
    assert verdict.startswith("RLMDocstringOptimizer: no proven gain on val: 50.0 -> 100.0, +50.0 points on 4 examples")


def test_with_verbose_the_trajectory_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    toy.compiled([SUBMIT_FIX], verbose=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "Turn 1/8" in err
    assert 'update_prompt("topic"' in err


def test_a_teacher_is_not_used_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        toy.compiled([SUBMIT_SAME], teacher=toy.Triage())
    assert "teacher is not used" in caplog.text


def test_dspys_compile_callbacks_see_the_result() -> None:
    from dspy.utils.callback import BaseCallback

    ended: list[Any] = []

    class Watch(BaseCallback):
        def on_compile_end(self, call_id: str, outputs: Any, exception: Any = None) -> None:
            ended.append(outputs)

    with dspy.context(callbacks=[Watch()]):
        result, _ = toy.compiled([SUBMIT_SAME])
    assert ended == [result]
