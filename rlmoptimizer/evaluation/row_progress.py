"""One row while it is run: what is known of it so far, and whether its time is up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from rlmoptimizer.evaluation.fan_out import Halt
from rlmoptimizer.evaluation.metric import Verdict
from rlmoptimizer.evaluation.step_recorder import Steps
from rlmoptimizer.records import EXAMPLE_TIMEOUT, PASSED_AT, ExampleResult, StepTrace
from rlmoptimizer.task.dataset import Row

__all__ = ["RowProgress"]


@dataclass(slots=True)
class RowProgress:
    """Written by the thread that runs the row, and read by the one that gives it up. It is a `Halt` for the row."""

    row: Row
    halt: Halt  # of all rows
    inputs: dict[str, Any] = field(default_factory=dict[str, Any])  # plain, as they were at first
    expected: dict[str, Any] = field(default_factory=dict[str, Any])
    predicted: Any = None
    at: str = "program"  # then "metric"
    verdict: Verdict | None = None
    steps: Steps | None = None
    taken: tuple[StepTrace, ...] = ()  # the steps that ended, once the program has
    started: float = field(default_factory=time.perf_counter)
    expired: bool = False

    def is_set(self) -> bool:
        """Whether the row is to be given up at its next step."""
        return self.expired or self.halt.is_set()

    def result(self, error: str | None = None, kind: str | None = None) -> ExampleResult:
        """What became of the row. Without a verdict it has a score of 0."""
        verdict = self.verdict or Verdict(0.0, None)
        return ExampleResult(
            example_id=self.row.example_id,
            source_example_id=self.row.source_example_id,
            inputs=self.inputs,
            expected=self.expected,
            predicted=self.predicted,
            score=verdict.score,
            passed=error is None and verdict.score >= PASSED_AT,
            error=error,
            error_kind=kind,
            feedback=verdict.feedback,
            objectives=verdict.objectives,
            steps=self.taken,
            seconds=time.perf_counter() - self.started,
            rollout=self.row.rollout,
        )

    def timed_out(self, seconds: float) -> ExampleResult:
        """The result of a row whose time is up; what is still running records nothing more, and ends at its next step.

        A score that was given stands: then only what the metric says about single steps is missing.
        """
        self.expired = True
        if self.steps is not None:
            self.taken = self.steps.close()
        if self.verdict is not None:
            return self.result()
        return self.result(
            f"ExampleTimeout: the {self.at} had not returned after {seconds:g} s (example_timeout)", EXAMPLE_TIMEOUT
        )
