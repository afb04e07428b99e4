"""Results to put into a run store, and what a killed process leaves of one."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from rlmoptimizer.records import ExampleResult, StepTrace
from rlmoptimizer.store.run_store import RunStore


def result(example_id: str = "1", score: float = 1.0, **changes: Any) -> ExampleResult:
    fields: dict[str, Any] = {
        "example_id": example_id,
        "source_example_id": None,
        "inputs": {"question": f"q{example_id}"},
        "expected": {"answer": "a"},
        "predicted": {"answer": "b"},
        "score": score,
        "passed": score >= 1.0,
        "error": None,
        "error_kind": None,
        "feedback": None,
        "steps": (StepTrace(0, "answer", "QA", {"question": "q"}, {"answer": "b"}),),
        "seconds": 0.25,
    }
    return ExampleResult(**{**fields, **changes})


def copy_as_killed(store: RunStore, directory: Path) -> Path:
    """What a process killed now would leave: the database and its log. Nobody may be writing."""
    directory.mkdir()
    for path in store.path.parent.glob(f"{store.path.name}*"):
        if not path.name.endswith((".lock", "-shm")):
            shutil.copy(path, directory / path.name)
    return directory / store.path.name
