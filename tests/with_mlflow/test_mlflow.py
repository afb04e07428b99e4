"""What MLflow records of a compile, with the real one, and what pandas makes of the result.

These tests need the extra `mlflow`. Where it is not installed this folder is left out (see `tests/conftest.py`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import toy

ORDERS = ("before", "after")  # when rlmoptimizer is imported: before or after autolog() is called


@dataclass(frozen=True)
class Recorded:
    told: dict[str, Any]
    said: str  # on stdout and stderr

    @property
    def parent(self) -> dict[str, Any]:
        (parent,) = [run for run in self.told["runs"] if run["parent"] is None]
        return parent

    @property
    def children(self) -> list[dict[str, Any]]:
        """Oldest first."""
        return [run for run in reversed(self.told["runs"]) if run["parent"] == self.parent["id"]]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, project_root: Path) -> dict[str, Recorded]:
    """Both orders, side by side: most of what they take is MLflow's making of its database."""
    page, job = project_root / "docs" / "events.md", Path(__file__).with_name("mlflow_job.py")
    path = os.pathsep.join(map(str, (project_root, project_root / "tests" / "rigs")))

    def run(order: str) -> Recorded:
        place = tmp_path_factory.mktemp(order)
        environment = {
            **os.environ,
            "PYTHONPATH": path,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "GIT_PYTHON_REFRESH": "quiet",
        }
        command = [sys.executable, str(job), order, str(page)]
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        return Recorded(json.loads((place / "told.json").read_text("utf-8")), done.stdout + done.stderr)

    with ThreadPoolExecutor() as pool:
        return dict(zip(ORDERS, pool.map(run, ORDERS), strict=True))


@pytest.fixture(params=ORDERS)
def recorded(request: pytest.FixtureRequest, jobs: dict[str, Recorded]) -> Recorded:
    return jobs[request.param]


def test_a_compile_is_one_run_and_each_evaluation_a_child_of_it_with_its_score(recorded: Recorded) -> None:
    assert len(recorded.told["runs"]) == 1 + len(recorded.children)
    assert {run["status"] for run in recorded.told["runs"]} == {"FINISHED"}
    scores = [(run["name"], run["metrics"]["eval"]) for run in recorded.children]
    assert scores == [
        ("eval_train_0", 50.0),
        ("eval_val_0", 50.0),
        ("eval_train_part_0", 100.0),
        ("eval_train_1", 100.0),
        ("eval_val_1", 100.0),
    ]
    assert [score for _, score in scores] == recorded.told["trials"]["score"]


def test_a_child_has_the_prompts_of_its_evaluation(recorded: Recorded) -> None:
    prompts = [run["params"]["Triage.topic.signature.instructions"] for run in recorded.children]
    assert prompts == [trial["topic"] for trial in recorded.told["trials"]["prompts"]]
    assert prompts[-1] == toy.FIX
    assert recorded.children[-1]["artifacts"]["model.json"]["topic"]["signature"]["instructions"] == toy.FIX


def test_the_compiles_run_has_the_prompts_of_the_result_its_verdict_and_its_scores(recorded: Recorded) -> None:
    parent = recorded.parent
    assert parent["artifacts"]["prompts.json"] == recorded.told["prompts"]
    assert parent["artifacts"]["best_model.json"]["topic"]["signature"]["instructions"] == toy.FIX
    assert parent["artifacts"]["optimization_result.json"]["verdict_text"] == recorded.told["verdict"]
    assert parent["verdict"] == recorded.told["verdict"]
    figures = {
        name: parent["metrics"][name] for name in ("baseline_train", "result_train", "baseline_val", "result_val")
    }
    assert figures == {"baseline_train": 50.0, "result_train": 100.0, "baseline_val": 50.0, "result_val": 100.0}
    assert parent["metrics"]["eval_val"] == 100.0  # of the last checkpoint


def test_rows_of_train_are_a_table_and_those_of_val_are_only_in_the_data_set_that_mlflow_keeps_at_the_end(
    recorded: Recorded,
) -> None:
    table = recorded.children[0]["artifacts"]["result_table.json"]
    assert len(table["data"]) == 6
    assert {"score", "example_message", "pred_answer"} <= set(table["columns"])
    kept = {path for run in recorded.told["runs"] for path, text in run["artifacts"].items() if toy.SECRET in str(text)}
    assert kept == {"valset.json"}
    assert recorded.told["traces"] == 0


def test_nothing_is_warned_of(recorded: Recorded) -> None:
    assert "MLflow could not" not in recorded.said
    assert "Error when" not in recorded.said
    assert "Traceback" not in recorded.said


def test_trials_and_examples_are_tables_of_pandas(recorded: Recorded) -> None:
    trials = recorded.told["trials"]
    assert trials["run_id"] == ["r1", "r2", "r3", "r4", "r5"]
    assert trials["split"] == ["train", "val", "train", "train", "val"]
    examples = recorded.told["examples"]
    assert examples["example_id"] == ["1", "2", "3", "4", "5", "6"]
    assert examples["baseline.score"] == [100.0, 0.0] * 3
    assert examples["result.score"] == [100.0] * 6
