"""DSPy's callbacks of evaluations, fired for each run as `dspy.Evaluate` fires them.

A callback is a part of the user's program on the host. It gets the rows of train. Of val and test it gets scores only:
what keeps rows in a file, as MLflow does, would keep them where an agent whose kernel is not confined can read.
"""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownParameterType=false, reportMissingParameterType=false

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable
from statistics import fmean
from typing import Any

import dspy
from dspy.evaluate.evaluate import EvaluationResult
from dspy.utils.callback import BaseCallback, with_callbacks

from rlmoptimizer.evaluation.run_under_way import RunUnderWay
from rlmoptimizer.mlflow_runs import ActiveMLflowRun
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.task.copying import copy_of
from rlmoptimizer.task.program import clone, write_prompts

__all__ = ["EvaluateCallbacks", "RunCut"]


class RunCut(Exception):
    """What `on_evaluate_end` gets as the exception of a run that was cut."""


class EvaluateCallbacks:
    """Fires `on_evaluate_start` and `on_evaluate_end` around the runs of one compile. Thread-safe.

    Made on the thread that compiles. `context` is where the callbacks are looked up and called: that of the compile,
    since a run may be carried out by a thread of a tool call.
    """

    def __init__(
        self,
        program: dspy.Module,
        metric: Callable[..., Any],
        num_threads: int,
        *,
        store: StoreReader,
        context: contextvars.Context | None,
    ) -> None:
        self._program = program
        self._metric = metric
        self._num_threads = num_threads
        self._store = store
        self._context = context  # None: that of whoever carries out a run
        self._mlflow_run = ActiveMLflowRun()

    def around(self, run: RunUnderWay, carry_out: Callable[[], str]) -> str:
        """What `carry_out` gives or raises: the state in which the run has ended."""
        context = contextvars.copy_context() if self._context is None else self._context.copy()
        if not context.run(_is_listened_to):
            return carry_out()
        return context.run(self._fired, run, carry_out)

    def _fired(self, run: RunUnderWay, carry_out: Callable[[], str]) -> str:
        state = "cancelled"

        def evaluate() -> EvaluationResult:
            nonlocal state
            state = carry_out()
            if state != "finished":
                raise RunCut(f"run {run.run_id} was cut")
            return self._result(run)

        program = clone(self._program)
        write_prompts(program, run.request.prompts)
        rows = run.request.rows if run.request.split == "train" else ()
        evaluation = _RunEvaluation(
            evaluate,
            devset=[copy_of(row.example) for row in rows],
            metric=self._metric,
            num_threads=self._num_threads,
        )
        with self._mlflow_run.active(), contextlib.suppress(RunCut):
            evaluation(program, callback_metadata=_metadata(run))
        return state

    def _result(self, run: RunUnderWay) -> EvaluationResult:
        scores = self._store.scores(run.run_id)
        mean = fmean(fmean(of) for of in scores.values()) if scores else 0.0
        results: list[Any] = []
        if run.request.split == "train":
            examples = {row.example_id: row.example for row in run.request.rows}
            results = [
                (copy_of(examples[found.example_id]), _prediction(found), found.score if found.has_verdict else None)
                for found in self._store.examples(run.run_id)
            ]
        return EvaluationResult(score=round(100 * mean, 2), results=results)


class _RunEvaluation(dspy.Evaluate):
    """A run in the shape in which DSPy's callbacks know an evaluation."""

    def __init__(self, evaluate: Callable[[], EvaluationResult], **options: Any) -> None:
        super().__init__(**options)
        self._evaluate = evaluate

    @with_callbacks
    def __call__(
        self,
        program,
        metric=None,
        devset=None,
        num_threads=None,
        display_progress=None,
        display_table=None,
        callback_metadata=None,
        save_as_csv=None,
        save_as_json=None,
    ) -> EvaluationResult:
        return self._evaluate()


def _is_listened_to() -> bool:
    return any(
        getattr(type(callback), name, None) is not getattr(BaseCallback, name)
        for callback in dspy.settings.get("callbacks") or ()
        for name in ("on_evaluate_start", "on_evaluate_end")
    )


def _metadata(run: RunUnderWay) -> dict[str, Any]:
    request = run.request
    part = "" if len(request.rows) == len(request.source) else "_part"
    key = f"eval_{request.split}{part}"  # what MLflow and others name a series of scores by
    return {"metric_key": key, "run_id": run.run_id, "split": request.split, "baseline": run.baseline}


def _prediction(found: ExampleResult) -> Any:
    predicted: Any = {} if found.predicted is None else found.predicted  # nothing, where the program failed
    if not isinstance(predicted, dict):
        return predicted
    prediction = dspy.Prediction()
    for name, value in predicted.items():  # not as keywords: a field may be called "self"
        prediction[name] = value
    return prediction
