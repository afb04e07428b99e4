"""Whole compiles whose examples run in other processes, with a real kernel: the same result, dollars and units."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy
from deadly import Deadly
from executor_runs import Provider, process_pool, provider
from offline import ScriptedRootLM

from rlmoptimizer import InvalidSetup, WorkersLost

TURNS = [
    f"""
update_prompt("topic", {toy.FIX!r})
train = evaluate_program("train")
val = evaluate_program("val")
print("scores", train["score"], val["score"], "asked", train["examples"][0]["steps"][0]["step_name"])
print(try_program({{"message": "message 9 plainly about bug"}})["steps"][0]["outputs"])
""",
    "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])",
]


@pytest.fixture(scope="module")
def served() -> Iterator[Provider]:
    with provider() as at:
        yield at


def compiled(served: Provider, turns: list[Any], metric: Any = toy.metric, **options: Any) -> Any:
    resume = {"resume": True} if options.pop("resume", False) else {}
    optimizer = toy.optimizer(ScriptedRootLM(turns), eval_lm=served.lm(), **options)
    arguments = toy.arguments(metric=metric)
    return optimizer.compile(toy.Triage(), **arguments, **resume)


def test_a_compile_on_a_process_pool_is_the_compile_in_threads(served: Provider) -> None:
    def told(result: Any) -> Any:
        logs = [(log["split"], log["score"], log["evaluated_count"]) for log in result.trial_logs]
        return logs, result.optimized_dspy_program, result.usage["eval"], result.best_score

    here = told(compiled(served, TURNS))
    there = compiled(served, TURNS, executor=process_pool)
    assert told(there) == here
    assert there.usage["eval"]["calls"] == 2 * (6 + 4) * 2 + 2  # baseline and new prompts, two steps, and one trial
    assert there.usage["eval"]["cost_usd"] > 0
    assert "asked topic" in str(there.agent_trajectory)


def test_what_a_broken_executor_has_done_is_kept_and_another_goes_on(served: Provider, tmp_path: Path) -> None:
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    metric = Deadly(deaths, "message 4 ")
    where = tmp_path / "runs"
    with process_pool(1) as executor, pytest.raises(WorkersLost, match="resume=True"):
        compiled(served, TURNS, metric, executor=executor, run_storage_dir=where)
    asked = served.asked
    result = compiled(served, TURNS, metric, executor=None, run_storage_dir=where, resume=True)
    assert [log["evaluated_count"] for log in result.trial_logs] == [6, 4, 6, 4]
    assert served.asked - asked < 42  # what was stored did not run again


def test_what_cannot_go_to_a_worker_is_refused_before_anything_is_asked(served: Provider) -> None:
    asked, root = served.asked, ScriptedRootLM(TURNS)
    student = toy.Triage()
    student.reply.lock = threading.Lock()
    optimizer = toy.optimizer(root, eval_lm=served.lm(), executor=process_pool)
    with pytest.raises(InvalidSetup, match=r"^'lock' of 'self\.reply' of the student, a lock, cannot be sent"):
        optimizer.compile(student, **toy.arguments())
    assert root.seen == []
    assert served.asked == asked
    report = optimizer.check(student, **toy.arguments())
    assert any("'lock' of 'self.reply'" in problem for problem in report.problems)
