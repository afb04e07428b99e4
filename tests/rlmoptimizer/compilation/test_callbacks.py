"""Whole compiles with callbacks, and the events file that they leave."""

from __future__ import annotations

import json
import os
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from dspy.utils.callback import BaseCallback

import rlmoptimizer
from rlmoptimizer import AgentSubmitted, CompileFinished, CompileStarted, ExamplesScored
from rlmoptimizer.events import Event

TURN = f"""
update_prompt("topic", {toy.FIX!r})
evaluate_program()
evaluate_program(split="val")
SUBMIT(optimized_dspy_program=optimization_status()["current_prompts"])
"""

pytestmark = pytest.mark.usefixtures("plain_repl")


def events_in(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_callback_has_every_event_before_compile_returns_and_the_file_beside_the_store_has_them_too(
    tmp_path: Path,
) -> None:
    seen: list[Event] = []
    toy.compiled([TURN], callbacks=[seen.append], run_storage_dir=tmp_path, testset=toy.trainset(3)[:2])
    assert isinstance(seen[0], CompileStarted)
    assert isinstance(seen[-1], CompileFinished)
    assert any(isinstance(event, AgentSubmitted) for event in seen)
    with pytest.raises(FrozenInstanceError):
        seen[-1].spent = 0  # type: ignore[misc]
    path = tmp_path / "runs-0001.events.jsonl"
    kept = [e for e in seen if not isinstance(e, ExamplesScored) or e.split == "train"]
    assert [line["kind"] for line in events_in(path)] == [type(event).__name__ for event in kept]
    assert toy.SECRET not in path.read_text()
    assert toy.SECRET not in repr(seen)
    # A resume takes what is finished, with other callbacks or none, and has nothing to tell.
    before = path.read_bytes()
    toy.compiled([], callbacks=[seen.clear], run_storage_dir=tmp_path, resume=True, testset=toy.trainset(3)[:2])
    assert path.read_bytes() == before
    assert seen


def test_a_callback_may_begin_another_compile_and_dspys_own_callbacks_see_both_compiles(tmp_path: Path) -> None:
    inner: list[str] = []
    told: list[tuple[str, object]] = []

    def begins_another(event: Event) -> None:
        if isinstance(event, CompileStarted):
            program, _ = toy.compiled([TURN], callbacks=[lambda e: inner.append(type(e).__name__)])
            inner.append(program.latest_run_id)

    class Recorder(BaseCallback):
        def on_compile_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
            told.append(("start", instance))

        def on_compile_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
            told.append(("end", outputs))

    with dspy.context(callbacks=[Recorder()]):
        program, _ = toy.compiled([TURN], callbacks=[begins_another])
    assert (inner[0], inner[-2], inner[-1]) == ("CompileStarted", "CompileFinished", "r4")
    assert [kind for kind, _ in told].count("start") == 2
    assert [kind for kind, _ in told].count("end") == 2
    assert any(value is program for _, value in told)
    assert os.listdir(tmp_path) == []


def test_every_event_can_be_had_from_the_package() -> None:
    for kind in Event.__args__:  # type: ignore[attr-defined]
        assert getattr(rlmoptimizer, kind.__name__) is kind
        assert kind.__name__ in rlmoptimizer.__all__
