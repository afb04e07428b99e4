"""A whole optimization written directly into a run store: no LM, no kernel, no program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stored_runs import result

from rlmoptimizer.outcome.ending import AgentOutcome, Choice, Outcome
from rlmoptimizer.records import Charge, ExampleResult
from rlmoptimizer.store.run_store import RunStore

BEFORE = {"topic": "Say what the message is about.", "reply": "Answer by the topic."}
AFTER = {**BEFORE, "topic": "Say in one word what the message is about: billing, bug or praise."}


def setup_of(train: int, val: int, test: int = 0, steps: Mapping[str, str] = BEFORE, **changes: Any) -> dict[str, Any]:
    """A setup as `compile` records it, for so many examples; 0: there is no such split."""
    sizes = {"trainset": train, "valset": val, "testset": test}
    described = {name: {"digests": [f"{name}{i}" for i in range(count)]} for name, count in sizes.items()}
    digests = {name: found if found["digests"] else None for name, found in described.items()}
    settings = {
        "max_iterations": 5,
        "rlm_max_iterations": 200,
        "rlm_max_llm_calls": 200,
        "max_cost_usd": None,
        "seed": 0,
        "perfect_score": 1.0,
        "root_adapter": "ChatAdapter",
        "root_lm": "openai/root",
        "sub_lm": "openai/sub",
        "eval_lm": "openai/eval",
    }  # fmt: skip
    student = {"modules": {}, "steps": dict(steps)}
    return {"student": student, **digests, "metric": "task.metric", "settings": settings, "drawn_seed": 0, **changes}


def add_run(
    store: RunStore, split: str, results: Sequence[ExampleResult | float], prompts: Mapping[str, str], **options: Any
) -> str:
    """Write one evaluation, and give its id: `results` are those of its examples, or only their scores.

    Options: `baseline`, `turn`; `planned`, the examples that were to be run; `ends=False` leaves it running.
    """
    rows = [one if isinstance(one, ExampleResult) else result(str(i), one) for i, one in enumerate(results)]
    baseline, ends = options.get("baseline", False), options.get("ends", True)
    ids = list(dict.fromkeys(row.example_id for row in rows))
    ids += [str(i) for i in range(len(ids), options.get("planned", 0))]
    repeats = 1 + max((row.rollout for row in rows), default=0)
    config = {"split": split, "limit": None, "ids": None, "sample": None}
    run_id = store.begin_run(
        split, config, prompts, baseline=baseline, planned_ids=ids, repeats=repeats, turn=options.get("turn", 0)
    )
    charge = None if baseline or not rows else Charge(len(rows), "validate" if split == "val" else "evaluate")
    store.append(run_id, *rows, charge=charge)
    if ends:
        store.finish_run(run_id, budget_left=100 - store.spent())
    return run_id


def finish(store: RunStore, prompts: Mapping[str, str] = AFTER) -> None:
    """Record that the agent submitted these prompts and that they are given back."""
    AgentOutcome(dict(prompts), None, "It is better.", "submitted").record(store)
    Choice(dict(prompts), None, "the agent submitted it").record(store)
    Outcome(None, {}, None, {"python": "3.11"}).record(store)


def write_small(directory: Path, *, ends: bool = True) -> RunStore:
    """Six examples of train and four of val, before and after one new prompt. Gives the store, open.

    r1 and r2 are the baseline on train and val, r3 and r4 the new prompt on them. It fixes examples 1 and 3 of train
    and breaks 4. The words "quokka" stand in every field of val and nowhere else.
    """
    store = RunStore.create_in(directory)
    store.record_setup(setup_of(6, 4))
    secret = {name: {name: "quokka"} for name in ("inputs", "expected", "predicted")}
    val = [result(f"{i}", i % 2, source_example_id="quokka", feedback="quokka", **secret) for i in range(4)]
    add_run(store, "train", [1, 0, 1, 0, 1, 0], BEFORE, baseline=True)
    add_run(store, "val", val, BEFORE, baseline=True)
    store.set_prompts(AFTER)
    add_run(store, "train", [1, 1, 1, 1, 0, 0], AFTER, turn=1)
    store.record_iteration("Shorter answers.", "update_prompt('topic', text)", "set", seconds=1.5)
    add_run(store, "val", [result(f"{i}", 1.0, source_example_id="quokka", **secret) for i in range(4)], AFTER, turn=2)
    if ends:
        finish(store)
    return store
