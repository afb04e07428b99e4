"""Checks every task with the real data of its package, without a model: exit code 1 when one is missing or wrong.

The project's tests do without these packages; run this where they are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import dspy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from quality.task import Task
from quality.tasks import load, names
from quality.tasks.parts import MissingPackageError


def faults(name: str, seed: int) -> list[str]:
    """What is wrong with a task of this seed."""
    task, again, other = load(name, seed), load(name, seed), load(name, seed + 1)
    found: list[str] = []
    if (task.train, task.val, task.test) != (again.train, again.val, again.test):
        found.append("the same seed gives other rows")
    if task.test == other.test:
        found.append("another seed gives the same rows")
    if set(task.hand_written or ()) != {step for step, _ in task.program.named_predictors()}:
        found.append("a step has no hand-written prompt")
    low = [row for row in task.train + task.val + task.test if _score(task, row, right_answer(row)) != 1]
    found += [f"the right answer has not full marks: {dict(row)}" for row in low[:3]]
    high = [row for row in task.test if _score(task, row, _nothing(row)) != 0]
    found += [f"no answer at all has marks: {dict(row)}" for row in high[:3]]
    return found


def right_answer(row: dspy.Example) -> dspy.Prediction:
    """What a perfect program would give."""
    if "accepted" in row:
        [(name, accepted)] = row.accepted.items()
        arguments = {key: _first(values) for key, values in accepted.items() if values[0] != ""}
        return dspy.Prediction(call=f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})")
    return dspy.Prediction(**dict(_nothing(row).items()) | dict(row.labels().items()))


def _first(values: list[Any]) -> Any:
    """The first of the accepted values; in a dict each value is again a list of accepted ones."""
    value = values[0]
    return {key: _first(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _nothing(row: dspy.Example) -> dspy.Prediction:
    return dspy.Prediction(
        **dict.fromkeys([*row.labels().keys(), "receipt", "state", "person", "time", "call", "animals", "legs"])
    )


def _score(task: Task, row: dspy.Example, prediction: dspy.Prediction) -> float:
    result = (task.exact_metric or task.metric)(row, prediction)
    return float(getattr(result, "score", result))


def main() -> None:
    failed = False
    for name in names():
        try:
            found = faults(name, 0)
        except MissingPackageError as missing:
            found = [str(missing)]
        failed = failed or bool(found)
        print(f"{name}: {'; '.join(found) or 'ok'}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
