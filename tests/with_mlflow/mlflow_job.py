"""A whole compile that MLflow records, in a process of its own: MLflow is turned on for a process, and never off again.

    python mlflow_job.py ORDER PAGE

runs the block for MLflow of the page docs/events.md in the working directory, whose tracking store it names. ORDER says
whether `rlmoptimizer` is imported "before" or "after" it calls `mlflow.dspy.autolog()`. What MLflow has then, and what
the compile gave, is written to `told.json`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import mlflow
import mlflow.dspy
import pandas
from readme_blocks import blocks

TURNS = [
    "evaluate_program(limit=2)\nevaluate_program()\nevaluate_program(split='val')",
    "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])",
]


class Names(dict[str, Any]):
    """What the block uses and does not make; made when it is first asked for, since that imports the optimizer."""

    def __missing__(self, name: str) -> Any:
        if name not in ("optimizer", "student", "trainset", "valset"):
            raise KeyError(name)
        import dspy
        import toy
        from offline import ScriptedRootLM

        root = ScriptedRootLM([f"update_prompt('topic', {toy.FIX!r})\n{TURNS[0]}", *TURNS[1:]])
        optimizer = toy.optimizer(root, metric=toy.metric, kernel=dspy.LocalInterpreter)
        self.update(optimizer=optimizer, student=toy.Triage(), trainset=toy.trainset(), valset=toy.valset())
        return self[name]


def recorded() -> list[dict[str, Any]]:
    """The runs that MLflow has, newest first."""
    client = mlflow.MlflowClient()

    def artifact(run_id: str, path: str) -> Any:
        return json.loads(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}"))

    return [
        {
            "id": run.info.run_id,
            "name": run.info.run_name,
            "status": run.info.status,
            "parent": run.data.tags.get("mlflow.parentRunId"),
            "verdict": run.data.tags.get("verdict"),
            "metrics": run.data.metrics,
            "params": run.data.params,
            "artifacts": {
                found.path: artifact(run.info.run_id, found.path) for found in client.list_artifacts(run.info.run_id)
            },
        }
        for run in client.search_runs([found.experiment_id for found in client.search_experiments()])
    ]


def main() -> None:
    order, page = sys.argv[1:]
    (block,) = [block for block in blocks(Path(page).read_text(encoding="utf-8")) if block.marker == "mlflow"]
    names = Names()
    if order == "before":
        _ = names["optimizer"]
    assert ("rlmoptimizer.optimizer" in sys.modules) is (order == "before")
    exec(compile(block.text, page, "exec"), {"__name__": "page"}, names)
    assert mlflow.active_run() is None
    program = names["recorded"]
    told = {
        "runs": recorded(),
        "traces": len(mlflow.search_traces(return_type="list")),
        "prompts": program.optimized_dspy_program,
        "verdict": program.optimization_result.verdict_text,
        "trials": pandas.DataFrame(program.trial_logs).to_dict(orient="list"),
        "examples": pandas.DataFrame(program.optimization_result.examples()).to_dict(orient="list"),
    }
    Path("told.json").write_text(json.dumps(told, default=float), encoding="utf-8")


if __name__ == "__main__":
    main()
