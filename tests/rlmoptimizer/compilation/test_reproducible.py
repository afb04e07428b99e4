"""The same seed, data, agent and answers give the same runs, ids and result, however many threads there are."""

from __future__ import annotations

import random
import threading
import time
from ast import literal_eval
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from offline import Asked, ScriptedRootLM
from priced import by_call, by_token, priced, priced_fields, priced_text

from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.seeds import drawn_seed, fresh_seed

# What agents do: look, sample, ask, compare candidates, take what failed, set, check, submit.
TURNS = [
    """
seen = [evaluate_program(limit=5, sample="random") for _ in range(3)]
print([[row["example_id"] for row in run["examples"]] for run in seen])
print([run["config"]["sample_seed"] for run in seen], [run["score"] for run in seen])
""",
    f"""
notes = llm_query_batched([str(row["predicted"]) for row in seen[0]["examples"]])
print(notes, llm_query("which one?"))
trials = [evaluate_program(prompts={{"topic": text}}) for text in ({toy.FIX!r}, "In one word.", "explode")]
print([(trial["run_id"], trial["score"], trial["passed_count"]) for trial in trials])
""",
    """
again = evaluate_program(failed_from_run=trials[2]["run_id"], limit=4, sample="random")
print(again["summary_line"], [row["error"] for row in again["examples"]])
try:
    llm_query_batched(["too many"] * 150)
except Exception as e:
    print(type(e).__name__, e)
print([row["example_id"] for row in evaluate_program(limit=2, sample="random")["examples"]])
""",
    f"""
update_prompt("topic", {toy.FIX!r})
print(evaluate_program("val")["summary_line"])
s = optimization_status()
print({{name: s[name] for name in sorted(s) if name != "num_threads"}})
""",
    "SUBMIT(optimized_dspy_program=optimization_status()['best_prompts'])",
]


def fraction(gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None) -> float:
    """Scores whose sum depends on the order in which they are added, if they are added carelessly."""
    share = (sum(map(ord, gold.message)) % 97) / 97
    return 0.1 + 0.9 * share if prediction.answer == gold.answer else 0.3 * share


class Jitter:
    """Lets answers come back in another order each time, by a few milliseconds."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            seconds = self._random.random() * 0.004
        time.sleep(seconds)


def everything(path: Path, *, num_threads: int, jitter: int, **options: Any) -> dict[str, Any]:
    """All that a compile leaves behind, but for times."""
    waits = Jitter(jitter)

    def respond(question: Asked) -> dict[str, object]:
        waits.wait()
        return toy.respond(question)

    def hear(prompt: str) -> str:
        waits.wait()
        return f"heard {prompt}"

    root = ScriptedRootLM(TURNS)
    optimizer = toy.optimizer(
        root,
        root_lm=priced(root.engine, "root", price=by_call(0.017)),
        sub_lm=priced_text(hear, "sub", price=by_token),
        eval_lm=priced_fields(respond, "eval", price=by_token),
        num_threads=num_threads,
        max_iterations=8,
        run_storage_dir=path,
        **options,
    )
    trainset, valset = toy.trainset(24), toy.valset(12)
    result: Any = optimizer.compile(toy.Triage(), trainset=trainset, metric=fraction, valset=valset)
    with RunStore.open_in(path) as store:
        runs = store.runs()
        rows = {run.run_id: store.examples(run.run_id) for run in runs}
        left: dict[str, Any] = {
            "runs": [(run.run_id, run.split, run.state, run.score, run.prompts, run.config) for run in runs],
            "rows": {run_id: [(row.as_row(), row.error_kind) for row in results] for run_id, results in rows.items()},
            "stored_usage": store.lm_usage(),
            "spent": sum(charge.amount for charge in store.charges()),
            "turns": [(turn.reasoning, turn.code, turn.output) for turn in store.iterations()],
            "submitted": [event.data for event in store.events("AgentSubmitted")],
        }
    names = ("optimized_dspy_program", "best_run_id", "best_score", "trial_logs", "agent_trajectory", "usage")
    return left | {name: getattr(result, name) for name in names}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return everything(tmp_path_factory.mktemp("first"), num_threads=1, jitter=1)


@pytest.mark.parametrize(("num_threads", "jitter"), [(1, 2), (8, 3), (8, 4)])
def test_the_same_seed_gives_the_same_of_everything_with_one_thread_or_many(
    first: dict[str, Any], tmp_path: Path, num_threads: int, jitter: int
) -> None:
    again = everything(tmp_path, num_threads=num_threads, jitter=jitter)
    for name, left in first.items():
        assert again[name] == left, name


def test_it_was_worth_comparing(first: dict[str, Any]) -> None:
    assert len(first["runs"]) == 2 + 3 + 3 + 1 + 1 + 1
    samples = first["agent_trajectory"][0]["output"].splitlines()[0]
    assert len(set(map(str, literal_eval(samples)))) == 3  # each one another sample
    assert len({score for _, _, _, score, _, _ in first["runs"]}) > 6
    assert "BudgetExceededError" in first["turns"][2][2]
    assert [turn for turn in first["turns"] if "[Error]" in turn[2]] == []
    assert first["usage"]["eval"]["cost_usd"] > 0


def test_another_seed_draws_other_samples(first: dict[str, Any], tmp_path: Path) -> None:
    other = everything(tmp_path, num_threads=8, jitter=1, seed=1)
    assert other["agent_trajectory"][0]["output"] != first["agent_trajectory"][0]["output"]
    assert other["rows"]["r1"] == first["rows"]["r1"]  # the baseline draws nothing


def test_no_seed_is_another_one_each_time(tmp_path: Path) -> None:
    outputs = {
        everything(tmp_path / str(number), num_threads=8, jitter=1, seed=None)["agent_trajectory"][0]["output"]
        for number in range(2)
    }
    assert len(outputs) == 2
    assert fresh_seed() != fresh_seed()


def test_what_is_drawn_depends_on_the_seed_and_on_what_for_alone() -> None:
    # The very numbers: a stored seed must mean the same on every platform and Python.
    assert [drawn_seed(0, "sample", number) for number in range(3)] == [804222561, 2082471723, 1584839089]
    assert len({drawn_seed(seed, "sample", number) for seed in range(30) for number in range(30)}) == 900
    assert all(0 <= drawn_seed(seed) < 2**31 for seed in (-1, 0, 2**70))
