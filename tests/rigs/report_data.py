"""Pages of made-up optimizations: the document and the examples that the page's scripts read, written by hand.

The numbers are those of no program; a fixed seed makes them the same each time.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlmoptimizer.show.report.page_assets import script, style, template

CHUNK = 50
STEPS = ["classify", "reply"]
BASE = {
    "classify": "Say what the message is about.",
    "reply": "Answer the customer politely. Use the topic.",
}
_WORDS = ["refund", "order", "late", "parcel", "broken", "lamp", "invoice", "twice", "app", "crash", "login", "colour"]
_BEGAN = 1_790_000_000.0


def document(
    *, examples: int = 40, candidates: int = 6, turns: int = 5, finished: bool = True, seed: int = 1
) -> dict[str, Any]:
    """As `read_document` gives it."""
    rng = random.Random(seed)
    made = [_candidate(index, rng) for index in range(candidates)]
    cells = [_cells(index, examples, candidates, rng) for index in range(candidates)]
    runs = _runs(made, cells, examples)
    best = candidates - 1
    for candidate, scores in zip(made, cells, strict=True):
        values = list(scores.values())
        candidate["runs"] = [run["run_id"] for run in runs if run["candidate"] == candidate["index"]]
        candidate["scores"]["train"] = {
            "n": len(values),
            "score": sum(values) / len(values),
            "passed": sum(value == 100 for value in values),
        }
        candidate["is_result"] = candidate["is_submitted"] = finished and candidate["index"] == best
    rows = [_row(number, cells[0].get(number), cells[best].get(number), rng) for number in range(examples)]
    splits = {
        "train": _split([row[2] for row in rows], [row[3] for row in rows]),
        "val": {
            "n": 24, "baseline": 54.17, "result": 83.33, "difference": 29.17, "interval": [8.25, 50.0], "better": 9,
            "worse": 2, "same": 13, "p_value": 0.065, "left_out": 0, "verdict": "no proven gain",
        },
        "test": {
            "n": 120, "baseline": 51.67, "result": 78.33, "difference": 26.67, "interval": [17.5, 35.8], "better": 38,
            "worse": 6, "same": 75, "p_value": 1.2e-6, "left_out": 1, "verdict": "gain",
        },
    }  # fmt: skip
    limit = 5 * examples + 24
    usage = {
        "root": _usage(turns, 48_200 * turns, 1_900 * turns, 0.4321),
        "sub": _usage(3, 1200, 300, None),
        "eval": _usage(examples * candidates, 310_400, 22_000, 0.0821),
    }
    return {
        "format": 1,
        "title": "Optimization of classify and reply",
        "store": {"path": "/home/user/runs/runs-0001.sqlite", "number": 1, "name": "runs-0001.sqlite"},
        "state": "finished" if finished else "running",
        "now": _BEGAN + 900,
        "started_at": _BEGAN,
        "finished_at": _BEGAN + 840 if finished else None,
        "task": {
            "steps": STEPS,
            "metric": "shop.metrics.answer_fits",
            "splits": {"train": examples, "val": 24, "test": 120},
            "settings": {"max_iterations": 5, "root_lm": "openai/gpt-5", "eval_lm": "openai/gpt-4o-mini", "seed": 0},
            "branch": None,
        },
        "budget": {"limit": limit, "spent": min(limit, runs[-1]["spent"]), "left": max(0, limit - runs[-1]["spent"])},
        "usage": usage,
        "cost_usd": None,
        "seconds": {"baseline": 31.2, "agent": 702.9, "final_check": 12.0, "test": 93.4},
        "versions": {"python": "3.12.4", "dspy": "3.4.1", "rlmoptimizer": "0.1.0", "os": "Linux"},
        "result": _result(splits, best) if finished else None,
        "so_far": None if finished else {"splits": {"train": splits["train"], "val": splits["val"]}, "best": best},
        "candidates": made,
        "runs": runs,
        "scored_split": "val",
        "best_so_far": _best(runs),
        "grid": {
            "example_ids": [row[0] for row in rows],
            "cells": [{"places": list(scores), "scores": list(scores.values())} for scores in cells],
        },
        "examples": {"count": examples, "chunk_size": CHUNK, "compared_with": best, "rows": rows},
        "turns": [_turn(number, runs) for number in range(1, turns + 1)],
        "notes": [{"before_turn": 3, "text": "Look at the refunds first.", "at": _BEGAN + 300}],
        "pauses": [{"before_turn": 3, "at": _BEGAN + 280, "seconds": 42.0}],
        "asked": {"pausing": False, "notes": []},
        "deaths": [{"turn": 2, "reason": "killed: it used more than 2 GB of memory", "at": _BEGAN + 200}],
        "confinement": {
            "tier": "bubblewrap",
            "summary": "bubblewrap: no network, a private file system, 2 GB of memory",
            "in_force": {"no_network": "a network namespace", "filesystem_allowlist": "bubblewrap mounts"},
            "missing": {"cpu_capped": "no limit was asked for"},
            "requested": [],
        },
        "repeat": ["optimizer = RLMDocstringOptimizer(", '    root_lm=dspy.LM("openai/gpt-5"),', ")"],
    }  # fmt: skip


def examples_of(doc: dict[str, Any], *, trace_chars: int = 300) -> list[dict[str, Any]]:
    """As `read_examples` gives them, of all chunks together."""
    rng = random.Random(2)
    filler = " ".join(rng.choice(_WORDS) for _ in range(trace_chars // 4))
    return [_details(row, filler[:trace_chars]) for row in doc["examples"]["rows"]]


def page(doc: dict[str, Any], examples: Iterable[dict[str, Any]], path: Path) -> Path:
    """Write the page of these data."""
    listed = list(examples)
    chunks = (_packed(listed[start : start + CHUNK]) for start in range(0, len(listed), CHUNK))
    csp = (
        f"default-src 'none'; script-src '{_digest(script())}'; style-src '{_digest(style())}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = template().generate(
        title=doc["title"], mode="report", csp=csp, style=style(), script=script(), document=_packed(doc), chunks=chunks
    )
    with path.open("w", encoding="utf-8", errors="surrogatepass") as file:
        file.writelines(parts)
    return path


def _packed(value: Any) -> str:
    return base64.b64encode(gzip.compress(json.dumps(value).encode(), 6)).decode()


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _prompt(index: int) -> str:
    """Each later one has one sentence more, and one word changed."""
    rules = [
        "Name the topic in one word: billing, bug or praise.",
        "A message about money is billing, also when it is angry.",
        "A crash or a wrong picture is a bug.",
        "Thanks alone are praise; thanks before a question are not.",
        "Never explain the topic.",
    ]
    kind = ["message", "customer's message", "letter"][index % 3]
    return "\n".join([f"Say what the {kind} is about.", *(rules[place % 5] for place in range(index))])


def _candidate(index: int, rng: random.Random) -> dict[str, Any]:
    parent = None if index == 0 else 0 if index == 1 else rng.choice([index - 1, index - 1, max(0, index - 2)])
    prompts = dict(BASE) if index == 0 else {**BASE, "classify": _prompt(index)}
    val = {"n": 24, "score": min(100.0, 54.17 + 29.16 * index / 5)} if index % 2 == 0 or index == 5 else None
    return {
        "index": index,
        "id": f"{index:02d}c4a1",
        "parent": parent,
        "prompts": prompts,
        "changed": ["classify"] if index else [],
        "at": _BEGAN + 100.0 * index,
        "turn": 0 if index == 0 else 1 + (index - 1) % 5,
        "runs": [],
        "scores": {"train": None, "val": val, "test": {"n": 120, "score": 51.67} if index == 0 else None},
        "is_baseline": index == 0,
        "is_result": False,
        "is_submitted": False,
    }


def _cells(index: int, examples: int, candidates: int, rng: random.Random) -> dict[int, float]:
    right = 0.45 + 0.4 * index / max(1, candidates - 1)
    share = 1.0 if index in (0, candidates - 1) else 0.5
    return {
        place: 100.0 if rng.random() < right else rng.choice([0.0, 0.0, 25.0, 50.0, 62.5])
        for place in range(examples)
        if share == 1.0 or (place * 7 + index) % 10 < 10 * share
    } or {0: 0.0}


def _runs(candidates: list[dict[str, Any]], cells: list[dict[int, float]], examples: int) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = []
    spent = 0
    for candidate, scores in zip(candidates, cells, strict=True):
        index = candidate["index"]
        for split in ("train", "val"):
            of_val = candidate["scores"]["val"]
            if split == "val" and of_val is None:
                continue
            count = len(scores) if split == "train" else 24
            spent += 0 if index == 0 else count
            runs.append(
                {
                    "run_id": f"r{len(runs) + 1}",
                    "split": split,
                    "score": sum(scores.values()) / len(scores) if split == "train" else of_val["score"],
                    "standard_error": 6.1,
                    "evaluated_count": count,
                    "passed_count": sum(value == 100 for value in scores.values()) if split == "train" else 13,
                    "error_count": 1,
                    "baseline": index == 0,
                    "state": "finished",
                    "unanswered_count": 0,
                    "remaining_budget": 5 * examples + 24 - spent,
                    "config": {"split": split},
                    "candidate": index,
                    "turn": candidate["turn"],
                    "started_at": _BEGAN + 100.0 * index,
                    "finished_at": _BEGAN + 100.0 * index + 40,
                    "spent": spent,
                    "planned_count": count,
                }
            )
    return runs


def _best(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = []
    for run in runs:
        if run["split"] == "val" and (not points or run["score"] > points[-1]["score"]):
            points.append({"spent": run["spent"], "score": run["score"], "split": "val", "run_id": run["run_id"]})
    return points


def _split(before: list[float | None], after: list[float | None]) -> dict[str, Any]:
    pairs = [(one, two) for one, two in zip(before, after, strict=True) if one is not None and two is not None]
    mean_before, mean_after = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    return {
        "n": len(pairs),
        "baseline": mean_before,
        "result": mean_after,
        "difference": mean_after - mean_before,
        "interval": [mean_after - mean_before - 9.0, mean_after - mean_before + 9.0],
        "better": sum(two > one for one, two in pairs),
        "worse": sum(two < one for one, two in pairs),
        "same": sum(two == one for one, two in pairs),
        "p_value": 0.003,
        "left_out": 0,
        "verdict": "gain",
    }


def _usage(calls: int, prompt_tokens: int, completion_tokens: int, cost: float | None) -> dict[str, Any]:
    return {
        "calls": calls,
        "cached_calls": 0,
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "cost_usd": cost,
        "known_cost_usd": cost or 0.0,
        "unpriced_calls": calls if cost is None else 0,
    }


def _result(splits: dict[str, Any], best: int) -> dict[str, Any]:
    return {
        "verdict": "gain",
        "verdict_split": "test",
        "verdict_text": "gain on test: 51.7 -> 78.3, +26.7 points on 119 examples (95% interval +17.5 to +35.8)",
        "splits": splits,
        "val_checkpoints": 3,
        "returned_because": "the agent submitted it, and no candidate is better on val by more than chance",
        "stop_reason": "submitted",
        "warnings": ["classify grew from 30 to 281 characters", "1 example of test has no score of both programs"],
        "best_index": best,
    }


def _row(number: int, before: float | None, after: float | None, rng: random.Random) -> list[Any]:
    words = " ".join(rng.choice(_WORDS) for _ in range(12))
    error = "program" if number % 17 == 16 else None
    return [f"e{number}", f"ticket-{1000 + number}", before, after, error, f"message: {words}"]


def _side(row: list[Any], value: float | None, filler: str) -> dict[str, Any] | None:
    if value is None:
        return None
    error = "ValueError: cannot read the topic" if row[4] and value < 100 else None
    answer = "billing" if value == 100 else "I believe that it is a bug"
    return {
        "predicted": None if error else {"topic": answer, "answer": "we refund you"},
        "score": value,
        "passed": value == 100,
        "error": error,
        "error_kind": row[4] if error else None,
        "feedback": "right" if value == 100 else "expected 'billing'",
        "seconds": 1.25,
        "steps": [
            {
                "step_index": place,
                "step_name": step,
                "signature_name": step.title(),
                "inputs": {"message": row[5], "context": filler},
                "outputs": {"topic": answer},
            }
            for place, step in enumerate(STEPS)
        ],
    }


def _details(row: list[Any], filler: str) -> dict[str, Any]:
    return {
        "id": row[0],
        "source_id": row[1],
        "inputs": {"message": row[5].removeprefix("message: "), "customer": {"name": "Ada", "orders": [1, 2]}},
        "expected": {"topic": "billing", "needle": f"needle-{row[0]}-end"},
        "before": _side(row, row[2], filler),
        "after": _side(row, row[3], filler),
    }


def _turn(number: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    code = f'''# Turn {number}: look at what fails, then try a rule.
failed = run_data("r1")["examples"]
for row in failed[:{number + 2}]:
    print(row["id"], row["score"], f"{{row['feedback']!r}}")

def shorter(text: str) -> str:
    """One line of it."""
    return " ".join(text.split())[:80]

update_prompt("classify", shorter("Name the topic in one word."))
evaluate_program(split="train", limit=20)
'''
    return {
        "number": number,
        "reasoning": "Half of the messages that are long fail, since the first step explains the topic instead of "
        "naming it. I will ask for one word, look at what still fails, and only then spend units on val.",
        "code": code,
        "output": "\n".join(f"e{place} 0.0 'expected billing'" for place in range(10 + 8 * number)),
        "seconds": 20.0 + number,
        "at": _BEGAN + 100.0 * number,
        "runs": [run["run_id"] for run in runs if run["turn"] == number],
        "prompts_set": ["classify"],
        "deaths": [{"turn": 2, "reason": "killed: it used more than 2 GB of memory", "at": _BEGAN + 200}]
        if number == 2
        else [],
        "notes": [{"before_turn": 3, "text": "Look at the refunds first.", "at": _BEGAN + 300}] if number == 3 else [],
    }
