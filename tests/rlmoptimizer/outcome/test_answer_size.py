"""Fitting: what has to be cut is cut, and nothing else."""

from __future__ import annotations

from typing import Any

import toy
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.outcome.answer_size import cut_to_size

SUBMIT = 'SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])'

plain = st.recursive(
    st.none() | st.integers() | st.text(max_size=400) | st.binary(max_size=400),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def texts(value: Any) -> list[str | bytes]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [text for item in value for text in texts(item)]
    return [value] if isinstance(value, str | bytes) else []


@given(st.lists(st.dictionaries(st.text(max_size=5), plain, max_size=4), max_size=4), st.integers(0, 3000))
def test_what_fits_stays_and_what_does_not_is_cut_to_one_length(rows: list[dict[str, Any]], most: int) -> None:
    fitted, longest = cut_to_size(rows, most)
    if sum(map(len, texts(rows))) <= most:
        assert fitted is rows
        assert longest is None
        return
    assert longest is not None
    before, after = texts(rows), texts(fitted)
    assert len(before) == len(after)
    for old, new in zip(before, after, strict=True):
        assert new == old if len(old) <= longest else b" left out" in (new.encode() if isinstance(new, str) else new)
    assert sum(min(len(text), longest) for text in before) <= max(most, 100 * len(before))


def test_head_and_tail_are_kept() -> None:
    ((row,), longest) = cut_to_size([{"short": "s", "long": "a" * 600 + "z" * 600}], 401)
    assert longest == 400
    assert row == {"short": "s", "long": "a" * 200 + "\n... [800 characters left out] ...\n" + "z" * 200}


def test_an_agent_can_read_a_run_that_is_too_long_to_be_sent() -> None:
    trainset = toy.trainset(30)
    trainset = [example.copy(message=f"{'x' * 600_000} {example.message}") for example in trainset]
    result, _ = toy.compiled(
        [
            "run = run_data(baseline_runs['train']['run_id'])\n"
            "print(len(run['examples']), run['score'], run['summary_line'])\n"
            "print(run['examples'][0]['inputs']['message'][-26:])",
            SUBMIT,
        ],
        trainset=trainset,
        valset=None,
    )
    output = result.agent_trajectory[0]["output"]
    assert output.startswith("30 50.0 run r1 on train: score 50.00")
    assert "has lost its middle" in output
    assert output.endswith("0 plainly about billing")
