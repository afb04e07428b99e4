"""A task: a program, its metric, its rows, and what the harness needs to know of them. Knows no arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import dspy

__all__ = ["Task", "check_task"]

_SPLITS: Final = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Task:
    """One program to improve, with all that says how good it is.

    `metric` takes `(example, prediction, trace=None, pred_name=None, pred_trace=None)` and gives a score from 0 to 1,
    or an object with `score` and `feedback`. Threads call it at the same time.
    """

    name: str
    description: str  # one sentence for the reader of a report; no arm sees it
    program: dspy.Module
    metric: Callable[..., Any]
    train: list[dspy.Example]
    val: list[dspy.Example]
    test: list[dspy.Example]  # no arm sees them
    hand_written: Mapping[str, str] | None  # the best known prompts by step; None: the arm `hand` has none
    exact_metric: Callable[..., Any] | None = None  # of a noisy metric, without its noise; scores the test rows


def check_task(task: Task) -> None:
    """Raise `ValueError` for a task that would give a wrong table."""
    steps = {name for name, _ in task.program.named_predictors()}
    if task.hand_written is not None and (unknown := sorted(set(task.hand_written) - steps)):
        raise ValueError(f"task {task.name!r}: hand_written names {unknown}; the steps are {sorted(steps)}")
    rows: dict[str, str] = {}
    for split in _SPLITS:
        examples: list[dspy.Example] = getattr(task, split)
        if not examples:
            raise ValueError(f"task {task.name!r}: {split} has no rows")
        for number, example in enumerate(examples):
            shown = repr(sorted(example.inputs().items(), key=lambda item: str(item[0])))
            if (other := rows.setdefault(shown, split)) != split:
                raise ValueError(f"task {task.name!r}: row {number} of {split} has the inputs of a row of {other}")
