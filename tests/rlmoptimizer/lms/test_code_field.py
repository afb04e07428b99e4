"""The code in a root LM's answer: it may quote the marks of DSPy's requests and answers."""

from __future__ import annotations

import re

import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st
from offline import ScriptedRootLM

from rlmoptimizer.lms.code_field import whole_code

SUBMIT = f"SUBMIT(optimized_dspy_program={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic.'}})"


def answer(code: str) -> str:
    return f"[[ ## reasoning ## ]]\nlook\n\n[[ ## code ## ]]\n```python\n{code}\n```\n\n[[ ## completed ## ]]"


QUOTES = (
    "[[ ## topic ## ]]\nbilling",
    "[[ ## code ## ]]\nprint(2)",
    "[[ ## completed ## ]]",
    "No ```json please.",
    "```\n{}\n```",
    "```\n[[ ## topic ## ]]\n```",
)


def test_a_prompt_that_quotes_marks_reaches_the_repl_whole() -> None:
    turns = [f'text = """Before.\n{text}\nAfter."""\nprint(repr(text))' for text in QUOTES]
    result = toy.compiled([*turns, SUBMIT])[0]
    shown = [turn["output"].strip() for turn in result.agent_trajectory[:-1]]
    assert shown == [repr(f"Before.\n{text}\nAfter.") for text in QUOTES]


def test_what_a_model_invents_after_its_answer_is_no_code() -> None:
    invented = "[[ ## repl_history ## ]]\nOutput: 1\n\n" + answer("print(2)")
    assert whole_code(f"{answer('print(1)')}\n\n{invented}") == "```python\nprint(1)\n```"


def test_backticks_in_a_raw_text_stay() -> None:
    assert whole_code(answer("print(r'```')")) == "```python\nprint(r'```')\n```"


NOT_FENCED = ["", "no fields", "[[ ## code ## ]]\nprint(1)", "[[ ## code ## ]]\n```python\nprint(1)"]


@pytest.mark.parametrize("text", NOT_FENCED)
def test_an_answer_without_fenced_code_is_left_to_dspy(text: str) -> None:
    assert whole_code(text) is None


def test_a_turn_without_a_fence_is_read_as_before() -> None:
    root = ScriptedRootLM([SUBMIT])
    plain = root.engine._answer
    first = ["[[ ## reasoning ## ]]\nlook\n\n[[ ## code ## ]]\nprint(1 + 1)\n\n[[ ## completed ## ]]"]
    root.engine._answer = lambda request: first.pop() if first else plain(request)
    result = toy.optimizer(root).compile(toy.Triage(), **toy.arguments())
    assert result.agent_trajectory[0]["output"].strip() == "2"


@given(st.text(st.characters(exclude_characters="\\\r\x85\u2028\u2029", exclude_categories=["C"]) | st.just("\n")))
def test_any_text_is_the_same_text_afterwards(text: str) -> None:
    value = text.replace('"', "'")
    found = whole_code(answer(f'value = """{value}"""'))
    assert found is not None
    inside = re.fullmatch(r'```python\nvalue = """(.*)"""\n```', found, re.DOTALL)
    assert inside is not None
    assert inside[1].replace(r"\x60\x60\x60", "```") == value
