"""`max_prompt_tokens`: how long a prompt of the agent's may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy
from desk import Desk, desk

from rlmoptimizer import PromptUpdateError, SubmissionError

pytestmark = pytest.mark.usefixtures("plain_repl")

SUBMIT = f"SUBMIT(optimized_dspy_program={ {'topic': toy.FIX, 'reply': 'Answer by the topic.'} })"
WAYS: dict[str, Callable[[Desk, dict[str, str]], Any]] = {
    "update_prompt": lambda at, prompts: [at.bench.tools.update_prompt(*one) for one in prompts.items()],
    "evaluate_program": lambda at, prompts: at.evaluate(prompts=prompts),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_text_longer_than_max_prompt_tokens_is_refused_with_its_count(tmp_path: Path, way: str) -> None:
    with desk(tmp_path, max_prompt_tokens=10) as at:
        WAYS[way](at, {"topic": "x" * 40})
        spent = at.ledger.spent
        for text, tokens in (("x" * 41, 11), ("\u00e9" * 21, 11), ("x\t" * 19 + "x", 39)):
            with pytest.raises(PromptUpdateError, match=rf"has {tokens} tokens .* at most 10 .*max_prompt_tokens"):
                WAYS[way](at, {"topic": text})
        assert at.ledger.spent == spent


def test_a_submission_is_held_to_it_and_the_programs_own_texts_are_not(tmp_path: Path) -> None:
    with desk(tmp_path, max_prompt_tokens=3) as at:
        own = dict(at.bench.prompts.original)
        assert len(own["topic"]) > 12
        assert at.bench.submission.prompts_in({"optimized_dspy_program": own}) == own
        with pytest.raises(SubmissionError, match="'reply' cannot be used: the text has 7 tokens"):
            at.bench.submission.prompts_in({"optimized_dspy_program": {**own, "reply": "Answer by their topic alone."}})
        at.bench.tools.update_prompt("reply", "Answer.")
        at.bench.tools.update_prompt("reply", own["reply"])


def test_in_a_compile_the_agent_is_told_and_reads_why(tmp_path: Path) -> None:
    turns = ["print(task_facts['max_prompt_tokens'])", "update_prompt('topic', 'x' * 2000)", SUBMIT]
    _, root = toy.compiled(turns, max_prompt_tokens=100)
    assert "100" in root.seen[1].inputs["repl_history"]
    assert "the text has 500 tokens" in root.seen[2].inputs["repl_history"]
