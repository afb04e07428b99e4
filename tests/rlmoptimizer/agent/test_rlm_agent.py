"""The agent: its prompt, the places where `dspy.RLM` is extended, and how it ends."""

from __future__ import annotations

import inspect
import logging
import re
from typing import Any

import dspy
import pytest
import toy
from dspy.lm15 import ServerError
from dspy.primitives.code_interpreter import CodeInterpreterError
from offline import Asked, ScriptedRootLM, fields_text

from rlmoptimizer.agent.agent_signature import agent_instructions
from rlmoptimizer.agent.rlm_agent import Agent
from rlmoptimizer.agent.tools import AgentTools

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part

PROMPTS = {"topic": toy.FIX, "reply": "Answer by the topic."}
SUBMIT = f"SUBMIT(optimized_dspy_program={PROMPTS!r})"
TOOLS = (
    "evaluate_program",
    "run_data",
    "compare_runs",
    "race_prompts",
    "try_program",
    "update_prompt",
    "optimization_status",
)


def local() -> Any:
    return dspy.LocalInterpreter()


SPENT = "print(optimization_status()['spent_budget'])"
WRONG_CALLS = {
    "evaluate_program(splitt='val')": "evaluate_program",
    "update_prompt('topic')": "text",
    "run_data()": "run_id",
    "evaluate_program(ids='99')": "SelectionError",
    "run_data('r99')": "UnknownRunError",
    "update_prompt('nobody', 'x')": "PromptUpdateError",
    "evaluate_program(limit=0)": "SelectionError",
}
WRONG_PROMPTS = ("llm_query(3)", "llm_query('')", "llm_query_batched('abc')", "llm_query_batched(['a', None])")
CELLS = {
    **{call: f"print('before')\n{call}" for call in WRONG_CALLS},
    **{call: f"try:\n    {call}\nexcept (TypeError, ValueError) as e:\n    print(e)" for call in WRONG_PROMPTS},
    "caught": "try:\n    evaluate_program(ids='99')\nexcept Exception as e:\n    print(type(e).__name__, '|', e)",
    "spent": SPENT,
    "prompts": "print(llm_query('a'), llm_query_batched(['b', 'c', 'd']), llm_query_batched([]))",
    "keys": "print(sorted(run_data('r1')), sorted(run_data('r1')['examples'][0]))",
    "help": "\n".join(f"help({name})" for name in TOOLS),
}


@pytest.fixture(scope="module")
def work() -> tuple[Any, ScriptedRootLM]:
    """All of the cells, one after the other in one kernel."""
    return toy.compiled([*CELLS.values(), SUBMIT], rlm_max_iterations=len(CELLS) + 1)


@pytest.fixture(scope="module")
def seen(work: tuple[Any, ScriptedRootLM]) -> dict[str, str]:
    """What the agent sees of each of them."""
    return {name: turn["output"] for name, turn in zip(CELLS, work[0].agent_trajectory, strict=False)}


@pytest.fixture(scope="module")
def first_request(work: tuple[Any, ScriptedRootLM]) -> Asked:
    """What the root LM is asked first."""
    return work[1].seen[0]


# the prompt


@pytest.mark.smoke
def test_every_tool_is_described_once_and_as_it_is_called(first_request: Asked) -> None:
    for name in TOOLS:
        parameters = list(inspect.signature(getattr(AgentTools, name)).parameters.values())[1:]
        call = f"`{name}({', '.join(_shown(parameter) for parameter in parameters)})`"
        assert first_request.instructions.count(call) == 1
        assert first_request.instructions.count(f"- `{name}(") == 1
    for call in ("`llm_query(prompt)`", "`llm_query_batched(prompts)`"):
        assert first_request.instructions.count(call) == 1


def _shown(parameter: inspect.Parameter) -> str:
    return parameter.name if parameter.default is inspect.Parameter.empty else f"{parameter.name}={parameter.default!r}"


def test_dspys_own_text_on_the_repl_is_not_sent_beside_ours(first_request: Asked) -> None:
    for words in ("You have access to a Python REPL", "ALWAYS print", "sub-LLM", "EXPLORE FIRST", "Additional tools"):
        assert words not in first_request.text


def test_the_kernels_rules_stand_in_every_request_once(first_request: Asked) -> None:
    assert first_request.instructions.count("persistent IPython kernel") == 1


def test_the_request_shows_the_result_of_a_run_as_it_is(seen: dict[str, str], first_request: Asked) -> None:
    shown = re.findall(r"'(\w+)'", seen["keys"])
    assert len(shown) == 10 + 10
    told = first_request.instructions.partition("- `evaluate_program(")[2].partition("- `run_data(")[0]
    for key in (*shown, "remaining_budget", "step_index", "step_name", "signature_name", "inputs", "outputs"):
        assert re.search(rf"\b{key}\b", told), key


@pytest.mark.parametrize(
    "topic",
    ["overfitting", "val", "baseline", "Group the failures", "first step", "noise", "notes", "One unit", "SUBMIT("],
)
def test_the_prompt_holds_what_an_agent_has_to_know(topic: str) -> None:
    assert topic in agent_instructions()


def test_a_new_work_is_told_its_variables_whole_and_nothing_of_an_interruption(first_request: Asked) -> None:
    told = first_request.inputs["variables_info"]
    for name in ("program_steps", "baseline_runs", "task_facts"):
        assert f"`{name}`" in told
    assert '"prompt": "Say what the message is about."' in told
    assert f'"max_turns": {len(CELLS) + 1}' in told
    assert "previous_trajectory" not in first_request.text
    assert "work_so_far" not in first_request.text


def test_a_long_variable_is_shown_without_its_middle() -> None:
    program = toy.Triage()
    program.topic.signature = program.topic.signature.with_instructions("Say it. " + "x" * 20_000 + " The end.")
    shown = toy.compiled([SUBMIT], student=program)[1].seen[0].inputs["variables_info"]
    assert "Say it. xxx" in shown
    assert "Answer by the topic." in shown
    assert len(shown) < 12_000


def test_help_shows_a_tools_real_signature_and_description(seen: dict[str, str]) -> None:
    shown = seen["help"]
    # A long signature is one line up to Python 3.12, and a line for each parameter from then on.
    flat = " ".join(shown.split()).replace("( ", "(")
    assert "evaluate_program(split='train', limit=None, ids=None, sample='first', sample_seed=None" in flat
    assert "update_prompt(step, text)" in shown
    assert "Replace the whole prompt of one step from now on." in shown


# tools as the agent calls them


@pytest.mark.parametrize("kernel", [KERNEL, local], ids=["kernel", "local"])
def test_tools_take_positional_and_keyword_arguments(kernel: Any) -> None:
    result, _ = toy.compiled(
        [
            "print(evaluate_program('train', 2)['evaluated_count'], evaluate_program(limit=3)['evaluated_count'])",
            f"print(update_prompt('topic', {toy.FIX!r})['changed'], update_prompt(step='topic', text='x')['changed'])",
            "print(run_data('r1')['score'], run_data(run_id='r1')['score'])",
            SUBMIT,
        ],
        kernel=kernel,
    )
    assert [turn["output"].strip() for turn in result.agent_trajectory[:3]] == ["2 3", "True True", "50.0 50.0"]


@pytest.mark.parametrize("call", WRONG_CALLS)
def test_a_wrong_call_is_told_to_the_agent_and_costs_nothing(seen: dict[str, str], call: str) -> None:
    assert WRONG_CALLS[call] in seen[call]
    assert seen["spent"].strip() == "0"


def test_a_refusal_has_the_same_class_name_in_the_kernel_and_no_traceback_of_the_host(seen: dict[str, str]) -> None:
    assert seen["caught"].startswith("SelectionError | ")
    for output in (seen["caught"], seen["evaluate_program(ids='99')"]):
        assert "rlmoptimizer" not in output
        assert "workbench" not in output


@pytest.mark.parametrize("call", WRONG_PROMPTS)
def test_a_prompt_that_is_none_is_refused_before_it_is_paid(seen: dict[str, str], call: str) -> None:
    assert "nothing was spent" in seen[call]
    assert seen["spent"].strip() == "0"


def test_prompts_are_answered_in_order(seen: dict[str, str]) -> None:
    assert seen["prompts"].strip() == "heard: a ['heard: b', 'heard: c', 'heard: d'] []"


# how dspy.RLM is extended


def test_dspys_rlm_still_has_every_place_where_it_is_extended() -> None:
    extended = [
        name
        for name, value in vars(Agent).items()
        if inspect.isfunction(value) and name.startswith("_") and not name.startswith("__")
    ]
    inherited = {name: getattr(dspy.RLM, name, None) for name in extended}
    own = {
        "_outcome_of", "_ending_before", "_unreadable_turn", "_ended_unreadable", "_begin_turn", "_saw_turn",
        "_tell_of_death", "_raise_failure",
        "_ended_by", "_ended_without_outputs", "_with_turns",
    }  # fmt: skip
    assert {name for name, value in inherited.items() if value is None} == own
    assert "budget" in inspect.signature(dspy.RLM._prepare_execution_tools).parameters
    assert "budget" in inspect.signature(dspy.RLM._setup_facade).parameters


# how it ends


def refused_then_mended(kernel: Any) -> Any:
    turns: list[Any] = ["SUBMIT(optimized_dspy_program={'topic': 'x'})", SUBMIT]
    return toy.compiled(turns, kernel=kernel)[0]


@pytest.mark.parametrize("kernel", [KERNEL, local], ids=["kernel", "local"])
def test_a_refused_submission_is_told_and_can_be_mended(kernel: Any) -> None:
    result = refused_then_mended(kernel)
    assert "SubmissionError" in result.agent_trajectory[0]["output"]
    assert "no prompt for 'reply'" in result.agent_trajectory[0]["output"]
    assert result.optimized_dspy_program == PROMPTS


def test_a_refused_submission_can_be_mended_within_the_cell() -> None:
    code = f"try:\n    SUBMIT(optimized_dspy_program={{}})\nexcept Exception as e:\n    print(e)\n    {SUBMIT}"
    result, _ = toy.compiled([code], kernel=KERNEL)
    assert len(result.agent_trajectory) == 1
    assert result.optimized_dspy_program == PROMPTS


def test_without_a_submission_the_prompts_are_extracted_from_the_trajectory(caplog: pytest.LogCaptureFixture) -> None:
    result, root = toy.compiled(
        ["print(1)"], rlm_max_iterations=2, extract={"optimized_dspy_program": '{"topic": "A.", "reply": "B."}'}
    )
    assert root.extracts == 1
    assert result.optimized_dspy_program == {"topic": "A.", "reply": "B."}
    assert len(result.agent_trajectory) == 2


EXPLORED = f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})"


@pytest.mark.parametrize(
    "extract",
    [
        {"optimized_dspy_program": '{"topic": "A."}'},
        {"optimized_dspy_program": "I would rather not."},
        {},
        ServerError("the provider is down"),
    ],
    ids=["incomplete", "no map", "nothing", "an error"],
)
def test_without_a_valid_extract_the_best_candidate_is_taken_with_a_warning(
    extract: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, _ = toy.compiled([EXPLORED], rlm_max_iterations=2, extract=extract)
    assert result.optimized_dspy_program == PROMPTS
    assert "no valid submission" in caplog.text
    assert "run r3" in caplog.text
    assert len(result.agent_trajectory) == 2


def test_without_a_validation_set_the_best_candidate_is_by_train() -> None:
    tried = f"evaluate_program(prompts={{'topic': {toy.FIX!r}}}); evaluate_program(ids='1')"
    result, _ = toy.compiled([tried], val=0, rlm_max_iterations=1)
    assert result.optimized_dspy_program == PROMPTS


def test_an_agent_that_does_nothing_gives_the_student_back() -> None:
    result, _ = toy.compiled(["pass"], rlm_max_iterations=1)
    assert result.optimized_dspy_program["topic"] == "Say what the message is about."
    assert result.optimization_result.stop_reason == "turns"


def test_an_interpreter_that_is_lost_ends_the_agent_not_the_compile(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result, root = toy.compiled([EXPLORED, "import os; os._exit(1)", SUBMIT], kernel=local)
    assert result.optimized_dspy_program == PROMPTS
    assert "interpreter is lost" in caplog.text
    assert "The REPL has ended" in result.agent_trajectory[1]["output"]
    assert result.optimization_result.stop_reason == "kernel_lost"
    assert root.extracts >= 1
    assert result.trial_logs[-1]["remaining_budget"] == 30


def test_an_interpreter_that_is_lost_before_the_first_turn_stops_compile() -> None:
    class Broken(dspy.LocalInterpreter):
        def execute(self, code: str, variables: Any = None) -> Any:
            raise CodeInterpreterError("no room for a kernel")

    with pytest.raises(CodeInterpreterError, match="no room"):
        toy.compiled([SUBMIT], kernel=Broken)


def answering(*answers: str) -> ScriptedRootLM:
    """A root LM that gives these raw answers, each as often as one turn asks, then submits."""
    root = ScriptedRootLM([SUBMIT])
    waiting = [answer for answer in answers for _ in range(3)]
    plain = root.engine._answer
    root.engine._answer = lambda request: waiting.pop(0) if waiting else plain(request)
    return root


def run(root: ScriptedRootLM) -> Any:
    return toy.optimizer(root).compile(toy.Triage(), trainset=toy.trainset(), metric=toy.metric, valset=toy.valset())


def test_an_answer_that_cannot_be_read_costs_a_turn_and_is_told() -> None:
    root = answering("I think I will wait.", "And wait.")
    result = run(root)
    assert result.optimized_dspy_program == PROMPTS
    assert "Your answer could not be read" in result.agent_trajectory[0]["output"]
    assert len(result.agent_trajectory) == 3


def test_answers_that_can_never_be_read_stop_compile() -> None:
    from dspy.utils.exceptions import AdapterParseError

    with pytest.raises(AdapterParseError):
        run(answering("No.", "No.", "No."))


def test_answers_that_cannot_be_read_any_more_end_the_work_with_the_best_candidate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    root = ScriptedRootLM([f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})"])
    plain = root.engine._answer
    root.engine._answer = lambda request: plain(request) if root.engine.calls == 1 else "No."
    with caplog.at_level(logging.WARNING, "rlmoptimizer"):
        result = run(root)
    assert result.optimized_dspy_program["topic"] == toy.FIX
    assert "3 answers of the root LM in a row could not be read" in caplog.text
    assert result.optimization_result.stop_reason == "unreadable"
    assert root.extracts == 0


def test_fenced_code_of_another_language_is_told_to_the_agent() -> None:
    root = ScriptedRootLM([SUBMIT])
    plain = root.engine._answer
    first = [fields_text({"reasoning": "hm", "code": "```javascript\nalert(1)\n```"})]
    root.engine._answer = lambda request: first.pop() if first else plain(request)
    result = run(root)
    assert "Expected Python code" in result.agent_trajectory[0]["output"]


def test_the_root_lm_sees_no_more_of_an_output_than_it_was_given_leave_to() -> None:
    result, root = toy.compiled(["print('a' * 5000 + 'z' * 5000)", SUBMIT], rlm_max_output_chars=300)
    seen = root.seen[1].text
    assert "a" * 100 in seen
    assert "z" * 100 in seen
    assert "a" * 301 not in seen
    assert len(result.agent_trajectory[0]["output"]) >= 10_000
