"""The results on disk: one JSON file for each task, arm and seed, and what they have in common. Knows no arm."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = [
    "Result",
    "check_setup",
    "read_results",
    "read_setup",
    "result_path",
    "run_name",
    "write_json",
    "write_result",
]

_SETUP: Final = "setup.json"
_RESULT: Final = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What came of one arm on one task with one seed."""

    task: str
    arm: str
    seed: int
    budget: int  # metric calls
    proposer: str | None  # its name; None: this arm asks none
    answered_by: str | None  # who answered in a directory; None: nobody was asked, or it was not said
    prompts: dict[str, str]  # of the program that was scored, by step
    test_scores: list[float]  # 0..1, of the test rows in order
    test_errors: int
    metric_calls: int
    feedback_calls: int
    usage: dict[str, dict[str, Any]]  # by role; see RoleUsage
    seconds: float  # of the arm, in the process that ended it, without the test rows
    processes: int  # that worked at it
    notes: dict[str, Any] = field(default_factory=dict)  # of the arm


def run_name(task: str, arm: str, seed: int) -> str:
    return f"{task}-{arm}-{seed}"


def result_path(out: Path, run: str) -> Path:
    return out / run / _RESULT


def write_result(out: Path, result: Result) -> None:
    write_json(result_path(out, run_name(result.task, result.arm, result.seed)), asdict(result))


def read_results(out: Path) -> list[Result]:
    """All that are there, by task, seed and arm."""
    found = [Result(**json.loads(path.read_text("utf-8"))) for path in out.glob(f"*/{_RESULT}")]
    return sorted(found, key=lambda result: (result.task, result.seed, result.arm))


def read_setup(out: Path) -> dict[str, Any]:
    """What the results of a directory have in common; {}: nothing was run there."""
    path = out / _SETUP
    return json.loads(path.read_text("utf-8")) if path.exists() else {}


def check_setup(out: Path, setup: Mapping[str, Any]) -> None:
    """Write down what the results of a directory have in common. Raises: `ValueError` when it was something else."""
    was = read_setup(out)
    if not was:
        write_json(out / _SETUP, setup)
        return
    changed = {name: value for name, value in setup.items() if was.get(name) != value}
    if found := [f"{name} was {was.get(name)!r}, is {value!r}" for name, value in changed.items()]:
        raise ValueError(f"the results in {out} cannot be compared with these: {'; '.join(found)}. Use another --out")


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all, also when the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    part.replace(path)
