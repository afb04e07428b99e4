"""A job: what an arm is given to work with, the same for all arms; and an outcome: what it gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy

from quality.task import Task

__all__ = ["Job", "Outcome"]


@dataclass(frozen=True, slots=True)
class Job:
    """A task for an arm, but for its test rows and its best prompts."""

    task: Task
    metric: Callable[..., Any]  # of the task, counted
    budget: int  # metric calls
    seed: int
    threads: int  # examples at once
    lm: Callable[[str], dspy.LM]  # by role: "eval"; "root" and "sub"; "reflection"; "proposer"
    directory: Path  # of this job alone, kept between processes
    ours: Mapping[str, Any]  # more parameters of RLMDocstringOptimizer


@dataclass(frozen=True, slots=True)
class Outcome:
    program: dspy.Module
    notes: dict[str, Any] = field(default_factory=dict)  # plain values; what a reader wants to know of this arm
