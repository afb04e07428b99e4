"""What a check finds in the data sets: repeated examples, examples in two of them, and what the budget pays for."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

from rlmoptimizer.check.report import BudgetFound, SplitFound
from rlmoptimizer.task.dataset import Dataset, Row
from rlmoptimizer.task.digests import value_digest

__all__ = ["budget_found", "budget_warnings", "data_warnings", "splits_found"]


def splits_found(data: Dataset, test: Sequence[Row] | None) -> tuple[SplitFound, ...]:
    """What each split holds, in the order train, val, test."""
    named = {"train": data.train, "val": data.val, "test": test}
    splits = {name: rows for name, rows in named.items() if rows is not None}
    whole = {name: [_digest(row) for row in rows] for name, rows in splits.items()}
    inputs = {name: [_input_digest(row) for row in rows] for name, rows in splits.items()}
    found: list[SplitFound] = []
    for place, (name, rows) in enumerate(splits.items()):
        before = list(splits)[:place]
        found.append(
            SplitFound(
                name,
                len(rows),
                repeated=len(rows) - len(set(whole[name])),
                repeated_inputs=len(rows) - len(set(inputs[name])),
                shared={other: _shared(whole[name], whole[other]) for other in before},
                shared_inputs={other: _shared(inputs[name], inputs[other]) for other in before},
            )
        )
    return tuple(found)


def data_warnings(splits: Sequence[SplitFound]) -> Iterator[str]:
    """One sentence for each thing that makes results say less than they seem to."""
    for split in splits:
        if split.repeated_inputs:
            labels = split.repeated_inputs - split.repeated
            differ = f", {labels} of them with other labels" if labels else ""
            yield (
                f"{split.repeated_inputs} of the {split.examples} examples of {split.name} have inputs that stand in "
                f"it before{differ}: they are paid each time and tell nothing new; leave them out"
            )
        for other, count in split.shared_inputs.items():
            if count:
                yield (
                    f"{count} of the {split.examples} examples of {split.name} have inputs that are in {other} too: a "
                    f"score on {split.name} proves less than it seems to; keep each example in one split"
                )


def budget_found(data: Dataset, iterations: int) -> BudgetFound:
    """What the units of a compile pay for."""
    val = len(data.val or ())
    units = iterations * len(data.train) + val
    return BudgetFound(units, None if data.val is None else units // val, (units - val) // len(data.train))


def budget_warnings(data: Dataset, budget: BudgetFound) -> Iterator[str]:
    """What the agent will lack units for."""
    if budget.val_runs is not None and budget.val_runs < 2:
        yield (
            f"val has {len(data.val or ())} examples, and the budget of {budget.units} units pays for one run of it "
            "only: the agent cannot compare two prompts there. Raise max_iterations, or pass a smaller valset"
        )


def _digest(row: Row) -> str:
    return value_digest([row.example, sorted(cast("Any", row.example.inputs()).keys())])


def _input_digest(row: Row) -> str:
    given = cast("Any", row.example.inputs())
    return value_digest([[name, given[name]] for name in sorted(given.keys())])


def _shared(digests: Sequence[str], others: Sequence[str]) -> int:
    known = set(others)
    return sum(digest in known for digest in digests)
