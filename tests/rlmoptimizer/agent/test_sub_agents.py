"""Sub-agents in a compile: off unless they are asked for; and on, nothing of the host is seen or run by them."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy.clients.base_lm import GLOBAL_HISTORY
from offline import Asked, ScriptedRootLM, field_lm

from rlmoptimizer import InvalidSetup
from rlmoptimizer.agent.agent_signature import agent_instructions

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
SPENT = "print(optimization_status()['spent_budget'])"
TRY = """
def attempt(call):
    try:
        print(f"returned {call()!r}")
    except BaseException as error:
        print(f"{type(error).__name__}: {error}")
"""
CANARY = "quetzal"

# DSPy's own facade calls LMs in a way that DSPy has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")


def outputs(result: Any) -> list[str]:
    return [turn["output"].strip() for turn in result.agent_trajectory]


# off


IMPORTS = [
    "import dspy",
    "import dspy.predict",
    "from dspy import Predict",
    "__import__('dspy')",
    "import importlib; importlib.import_module('dspy.predict.predict')",
]


def test_without_sub_agents_there_is_no_road_to_them() -> None:
    tries = "\n".join(f"attempt(lambda: exec({line!r}))" for line in IMPORTS)
    look = "print([name for name in globals() if 'dspy' in name.lower()])\nattempt(lambda: __dspy_construct__())"
    result, root = toy.compiled([TRY + tries, look, "import os; os._exit(1)", TRY + tries, look, SUBMIT])
    said = outputs(result)
    for shown in (said[0], said[3]):
        assert len(shown.splitlines()) == len(IMPORTS)
        for line in shown.splitlines():
            assert line.startswith("ModuleNotFoundError: there is no dspy here: sub-agents are off")
            assert "llm_query(prompt)" in line
    for shown in (said[1], said[4]):
        assert shown == "[]\nNameError: name '__dspy_construct__' is not defined"
    for question in root.seen[:2]:
        for word in ("sub-agent", "import dspy", "dspy.Predict", "dspy.RLM"):
            assert word not in question.instructions, word


def test_with_sub_agents_the_prompt_tells_of_them() -> None:
    assert "sub-agent" not in agent_instructions()
    _, root = toy.compiled([SUBMIT], sub_agents=True)
    for told in ("import dspy", "costs 1 unit", "At most 4"):
        assert told in root.seen[0].instructions


def test_it_is_compared_when_an_optimization_is_resumed(tmp_path: Path) -> None:
    root = ScriptedRootLM([RuntimeError("the key was revoked")])
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "metric": toy.metric}
    with pytest.raises(dspy.LMError):
        toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **arguments)
    again = toy.optimizer(root, run_storage_dir=tmp_path, sub_agents=True)
    with pytest.raises(InvalidSetup, match="sub_agents was False, is True"):
        again.compile(toy.Triage(), resume=True, **arguments)


def test_a_store_of_before_goes_on_without_sub_agents(tmp_path: Path) -> None:
    def fine(question: Asked) -> dict[str, Any]:
        return dict.fromkeys(question.outputs, "fine")

    root = ScriptedRootLM(
        ["import dspy\nkept = dspy.Predict('q -> a')\nprint(kept(q='x').a)", RuntimeError("the key was revoked")]
    )
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "metric": toy.metric}
    options: dict[str, Any] = {"run_storage_dir": tmp_path, "sub_lm": field_lm(fine)}
    with pytest.raises(dspy.LMError):
        toy.optimizer(root, sub_agents=True, **options).compile(toy.Triage(), **arguments)
    (path,) = tmp_path.glob("*.sqlite")
    with sqlite3.connect(path) as store:
        setup = json.loads(store.execute("SELECT setup FROM compile").fetchone()[0])
        del setup["settings"]["sub_agents"]
        store.execute("UPDATE compile SET setup = ?", (json.dumps(setup),))
    store.close()
    look = "attempt(lambda: dspy.Predict('q -> a'))\nattempt(lambda: exec('import dspy'))"
    root = ScriptedRootLM([TRY + look, SUBMIT])
    result = toy.optimizer(root, **options).compile(toy.Triage(), resume=True, **arguments)
    assert outputs(result)[0] == "fine"
    before, after = outputs(result)[1].splitlines()
    assert before == "NameError: name 'dspy' is not defined"
    assert "sub-agents are off" in after


# on


def test_with_sub_agents_nothing_of_the_host_is_seen_or_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    victim = f"import builtins\nbuiltins.{CANARY} = 1\nraise SystemExit('{CANARY}')\n"
    (tmp_path / "victim_module.py").write_text(victim)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", f"{CANARY} environment")
    monkeypatch.setattr(sys.modules["__main__"], "valset", toy.valset(), raising=False)
    sub = field_lm(lambda question: dict.fromkeys(question.outputs, "victim_module.ran"), "sub")
    sub.kwargs["api_key"] = f"{CANARY} key"
    texts = [
        "os.environ.zzz", "os.environ", "__main__.valset.zzz", "dspy.clients.base_lm.GLOBAL_HISTORY.zzz",
        "dspy.settings.lm.kwargs.zzz", "dspy.settings.adapter.zzz", "victim_module", "pydantic.ImportString",
        "rlmoptimizer.compilation.compilation.zzz", "sys.modules.zzz", "gc.zzz",
    ]  # fmt: skip
    calls = [f"dspy.Predict('q: {text} -> a')(q='x')" for text in texts]
    calls += [f"dspy.Predict('q -> a: {text}')(q='x')" for text in texts]
    calls += [f"dspy.ChainOfThought(dspy.Signature('q: list[{text}] -> a', 'i'))(q='x')" for text in texts]
    calls += [f"dspy.Predict('q -> a')(q='x', signature='q: {text} -> a')" for text in texts]
    calls += ["dspy.ReActV2('q -> a', tools=[llm_query])(q='x')", "dspy.Predict('q -> a', lm='openai/x')(q='x')"]
    attempts = "import dspy\n" + "\n".join(f"attempt(lambda: {call})" for call in calls)
    val = "evaluate_program('val')"  # its prompts are in DSPy's history now
    result, root = toy.compiled([f"{TRY}\n{val}\n{attempts}", SPENT, SUBMIT], sub_agents=True, sub_lm=sub)
    assert any(toy.SECRET in str(entry) for entry in GLOBAL_HISTORY)
    lines = outputs(result)[0].splitlines()
    assert [line for line in lines if not line.startswith("SubAgentError")] == []
    assert len(lines) == len(calls)
    told = "\n".join(question.text for question in root.seen)
    assert CANARY not in told
    assert toy.SECRET not in told
    assert not hasattr(__import__("builtins"), CANARY)
    assert outputs(result)[1] == "4"  # the validation set; refused sub-agents cost nothing


def test_without_units_no_kernel_is_started_for_a_sub_agent() -> None:
    made: list[Any] = []

    def kernel() -> Any:
        made.append(toy.KERNEL())
        return made[-1]

    sub = field_lm(lambda question: {"reasoning": "r", "code": "```python\nSUBMIT('x')\n```"})
    spend = "evaluate_program(limit=6)\n"
    nested = "import dspy\nattempt(lambda: dspy.RLM('q -> a')(q='x').a)"
    result, _ = toy.compiled([TRY + spend + nested, SUBMIT], sub_agents=True, sub_lm=sub, kernel=kernel, val=0,
                             max_iterations=1)  # fmt: skip
    assert outputs(result)[0].startswith("BudgetExceededError: asked for 1 unit, 0 left")
    assert len(made) == 1


def test_an_agents_tools_can_be_given_to_its_sub_agents() -> None:
    def act(question: Asked) -> dict[str, Any]:
        if "next_tool_name" not in question.outputs:
            return {"reasoning": "r", "a": "done"}
        name = "finish" if "observation_0" in question.text else "evaluate_program"
        return {"next_thought": "t", "next_tool_name": name, "next_tool_args": '{"limit": 2}'}

    code = "import dspy\nprint(dspy.ReAct('q -> a', tools=[evaluate_program])(q='x').a)"
    result, _ = toy.compiled([code, SPENT, SUBMIT], sub_agents=True, sub_lm=field_lm(act))
    assert outputs(result)[:2] == ["done", "5"]  # two examples, three prompts
