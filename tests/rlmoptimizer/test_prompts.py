"""A prompt map as a value, and the checker that makes one for a program."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import dspy
import pytest
import toy
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer import PromptUpdateError
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.task.program import PromptChecker, fingerprint, read_prompts

TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(lambda text: text.strip())


@given(st.dictionaries(st.text(), st.text(st.characters())))
def test_equal_maps_are_equal_values_with_equal_digests(texts: dict[str, str]) -> None:
    prompts = Prompts(texts)
    assert prompts == texts
    assert (list(prompts), len(prompts)) == (list(texts), len(texts))
    assert prompts.digest == Prompts(dict(texts)).digest
    assert Prompts.of(prompts) is prompts
    if len(texts) > 1:
        assert Prompts(dict(reversed(texts.items()))).digest != prompts.digest


def test_a_value_changes_neither_by_itself_nor_with_the_dict_it_was_made_of() -> None:
    texts = {"topic": "one"}
    prompts = Prompts(texts)
    texts["topic"] = "two"
    assert prompts == {"topic": "one"}
    with pytest.raises(FrozenInstanceError):
        prompts.digest = "another"  # type: ignore[misc]


@given(TEXTS, TEXTS)
def test_a_checked_map_is_the_base_with_the_changes_and_the_program_stays_as_it_was(first: str, second: str) -> None:
    program = toy.Triage()
    before, mark = read_prompts(program), fingerprint(program)
    checker = PromptChecker(program)
    one = checker.checked(checker.original, {"topic": first})
    other = checker.checked(one, {"reply": second})
    assert other == {"topic": one["topic"], "reply": other["reply"]}
    assert (one["topic"], other["reply"]) == (first.lstrip(), second.lstrip())  # as `inspect.cleandoc` leaves one line
    assert checker.checked(checker.original, other) == other
    assert (read_prompts(program), fingerprint(program)) == (before, mark)


@pytest.mark.parametrize("changes", [{"topic": ""}, {"topic": 3}, {"nobody": "x"}, {"topic": "fine", "reply": " "}])
def test_a_refused_map_leaves_nothing_behind(changes: dict[Any, Any]) -> None:
    checker = PromptChecker(toy.Triage())
    with pytest.raises(PromptUpdateError):
        checker.checked(checker.original, changes)
    assert checker.checked(checker.original, {"topic": "new"}) == {**checker.original, "topic": "new"}


def test_a_prompt_that_would_change_more_than_the_instructions_is_refused() -> None:
    class Greedy(dspy.Predict):
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, value)
            if name == "signature" and "greedy" in value.instructions:
                super().__setattr__("demos", [dspy.Example(question="q", answer="a")])

    checker = PromptChecker(Greedy("question -> answer"))
    with pytest.raises(PromptUpdateError, match="more than the instructions would have changed"):
        checker.checked(checker.original, {"self": "be greedy"})
    assert checker.checked(checker.original, {"self": "be modest"}) == {"self": "be modest"}
