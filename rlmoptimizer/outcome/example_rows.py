"""The results of a run as the agent gets them: a plain row for each example."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from rlmoptimizer.records import ExampleResult, combined

__all__ = ["example_rows"]


def example_rows(results: Iterable[ExampleResult], repeats: int) -> list[dict[str, Any]]:
    """One row for each example, whatever its rollouts are; `results` in the order in which the store gives them."""
    if repeats == 1:
        return [result.as_row() for result in results]
    examples = itertools.groupby(results, lambda result: result.example_id)
    return [combined(list(rollouts)).as_row() for _, rollouts in examples]
