"""The data sets: rows with stable ids, and what a selection of them means. Knows no runs, no budget, no program."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy

__all__ = ["Dataset", "Row", "Selection", "build_dataset", "parse_selection", "select"]


@dataclass(frozen=True, slots=True)
class Row:
    """One example of one split."""

    example_id: str  # 1-based position in its split: "1", "2", ...
    source_example_id: str | None  # the example's own non-empty `example_id` or `id` field as text; None: it has neither
    example: dspy.Example


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits, in the order given by the caller."""

    train: tuple[Row, ...]  # never empty
    val: tuple[Row, ...] | None  # None: no validation set was given


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows an evaluation wants, checked for sense but not yet against a data set."""

    limit: int | None = None  # at most so many rows, >= 1; None: no limit
    ids: tuple[tuple[int, int], ...] | None = None  # inclusive ranges of 1-based positions; None: every row
    sample: str = "first"  # "first" or "random": which rows a limit keeps
    sample_seed: int | None = None  # None: the random generator handed to `select` decides
    failed_from_run: str | None = None  # only rows that did not pass in this run; None: no such filter

    def as_config(self) -> dict[str, Any]:
        """The arguments of `parse_selection` that give this selection again; plain values (`ids` is a text or None)."""
        raise NotImplementedError


def build_dataset(trainset: Any, valset: Any = None) -> Dataset:
    """Number the examples of both splits.

    Takes any iterable of `dspy.Example`. Raises `InvalidSetup` for an empty split, an item that is no `dspy.Example`,
    or an example whose inputs were not marked with `.with_inputs(...)`; the message names the example and the fix.
    """
    raise NotImplementedError


def parse_selection(
    limit: Any = None, ids: Any = None, sample: Any = "first", sample_seed: Any = None, failed_from_run: Any = None
) -> Selection:
    """Read the selectors of `evaluate_program` as the agent wrote them.

    `ids` may be "3,7,12", "10-20" (inclusive), a mixture, a list or range of such, or one int; numbers may come as
    text or as floats with a whole value. Raises `SelectionError` saying what is valid.
    """
    raise NotImplementedError


def select(
    rows: Sequence[Row], selection: Selection, failed_ids: Collection[str] | None = None, rng: random.Random | None = None
) -> tuple[Row, ...]:
    """The rows that `selection` names, each once, in the order of `rows`.

    `failed_ids` are the example ids that did not pass in `selection.failed_from_run` (needed when that is set). When
    it is empty the result is (), and that is the only way to get ().
    `ids` and `failed_from_run` intersect; `limit` and `sample` apply to what is left. `rng` is used for
    `sample="random"` when the selection has no seed of its own.
    Raises `SelectionError` for an id that does not exist or a selection of nothing, saying what is valid.
    """
    raise NotImplementedError


def _iterate(value: Iterable[Any]) -> list[Any]:
    return list(value)
