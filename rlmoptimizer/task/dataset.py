"""The data sets: rows with stable ids, and selections of them."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import dspy

from rlmoptimizer.errors import InvalidSetup, InvalidSetupType, SelectionError
from rlmoptimizer.events import Split
from rlmoptimizer.text import brief, whole_number

__all__ = [
    "Dataset",
    "Row",
    "Selection",
    "build_dataset",
    "build_test_rows",
    "ids_text",
    "parse_selection",
    "select",
]

_IDS_HELP: Final = 'ids look like "3,7,12", "10-20" (inclusive) or [3, 7, 12]'
_RANGE: Final = re.compile(r"(\d{1,18})\s*(?:-|\.\.|:|–|—)\s*(\d{1,18})", re.ASCII)  # noqa: RUF001 - models write dashes of any length
_SAMPLES: Final = ("first", "random")
_LONGEST_WORD: Final = 100  # characters of a number, a name or a run id
_LONGEST_ID: Final = 50  # characters of an id or a range in a list of them, with what parts it from the next
_DEEPEST_LIST: Final = 3
_SHOWN: Final = 30  # ids in a message


@dataclass(frozen=True, slots=True)
class Row:
    """One example of one split."""

    example_id: str  # 1-based position in its split: "1", "2", ...
    source_example_id: str | None  # the example's own non-empty `example_id` or `id` field as text; None: neither
    example: dspy.Example
    where: str  # for people: "example 3 of trainset"
    rollout: int = 0  # which of several evaluations of it in one run


@dataclass(frozen=True, slots=True)
class Dataset:
    """Both splits, in the order given by the caller."""

    train: tuple[Row, ...]  # never empty
    val: tuple[Row, ...] | None  # None: no validation set was given

    @property
    def scored(self) -> tuple[Split, tuple[Row, ...]]:
        """The split whose whole decides which prompts are best, and its rows: val, or train without one."""
        return ("train", self.train) if self.val is None else ("val", self.val)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows an evaluation wants, checked for sense but not yet against a data set."""

    limit: int | None = None  # at most so many rows, >= 1; None: no limit
    ids: tuple[tuple[int, int], ...] | None = None  # inclusive ranges of positions, never empty; None: every row
    sample: str = "first"  # "first" or "random": which rows a limit keeps
    sample_seed: int | None = None  # None: not given; a random sample needs one
    failed_from_run: str | None = None  # only rows that did not pass in this run; None: no such filter

    def as_config(self) -> dict[str, Any]:
        """The arguments of `parse_selection` that give this selection again; plain values (`ids` is a text or None)."""
        ids = None if self.ids is None else ",".join(_spell(first, last) for first, last in self.ids)
        return {
            "limit": self.limit,
            "ids": ids,
            "sample": self.sample,
            "sample_seed": self.sample_seed,
            "failed_from_run": self.failed_from_run,
        }


def build_dataset(trainset: Any, valset: Any = None) -> Dataset:
    """Number the examples of both splits.

    Takes any iterable of `dspy.Example`. Raises `InvalidSetup` for an empty split, an item that is no `dspy.Example`,
    an example whose inputs were not marked with `.with_inputs(...)`, or one of val whose input fields are not those of
    any example of train; the message names the example and the fix.
    """
    train = _build_split("trainset", trainset)
    val = None if valset is None else _build_split("valset", valset)
    _check_inputs(val or (), train)
    return Dataset(train, val)


def build_test_rows(testset: Any, data: Dataset) -> tuple[Row, ...]:
    """Number the examples of a test set for programs that take what `data` holds. The rows are no part of `data`.

    Raises `InvalidSetup` as `build_dataset` does for val.
    """
    rows = _build_split("testset", testset)
    _check_inputs(rows, data.train)
    return rows


def _check_inputs(rows: Iterable[Row], train: Iterable[Row]) -> None:
    """Raises `InvalidSetup` for a row with other input fields than any of train: the program would fail on it."""
    known = {_input_names(row) for row in train}
    for row in rows:
        if (names := _input_names(row)) not in known:
            usual = " or ".join(sorted(_spelled_names(fields) for fields in known))
            raise InvalidSetup(f"{row.where} has the input fields {_spelled_names(names)}; those of train are {usual}")


def _input_names(row: Row) -> frozenset[str]:
    return frozenset(cast("Iterable[str]", row.example.inputs().keys()))


def _spelled_names(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"


def _build_split(name: str, examples: Any) -> tuple[Row, ...]:
    if isinstance(examples, str | bytes | Mapping | dspy.Example) or not isinstance(examples, Iterable):
        raise InvalidSetupType(f"{name} must be a list of dspy.Example, not {_article(examples)}")
    rows = tuple(
        _build_row(name, position, example)
        for position, example in enumerate(cast("Iterable[Any]", examples), start=1)
    )
    if not rows:
        fix = "pass at least one example" if name == "trainset" else f"pass at least one example, or {name}=None"
        raise InvalidSetup(f"{name} is empty; {fix}")
    return rows


def _build_row(name: str, position: int, example: Any) -> Row:
    where = f"example {position} of {name}"
    if not isinstance(example, dspy.Example) or isinstance(example, dspy.Prediction):
        fix = "wrap it: dspy.Example(**fields).with_inputs(...)"
        raise InvalidSetupType(f"{where} is {_article(example)}, not a dspy.Example; {fix}")
    try:
        example.inputs()
    except ValueError as error:
        fields = ", ".join(repr(key) for key in cast("list[str]", example.keys()))
        raise InvalidSetup(
            f"{where} does not say which of its fields are inputs (it has {fields or 'no fields'}); "
            f"build it with dspy.Example(...).with_inputs(...), naming the input fields"
        ) from error
    return Row(example_id=str(position), source_example_id=_source_id(example), example=example, where=where)


def _source_id(example: dspy.Example) -> str | None:
    for field in ("example_id", "id"):
        value = cast("Any", example.get(field))
        if value is not None and (text := str(value)) != "":
            return text
    return None


def parse_selection(
    limit: Any = None,
    ids: Any = None,
    sample: Any = "first",
    sample_seed: Any = None,
    failed_from_run: Any = None,
    *,
    rows: int = 1000,
) -> Selection:
    """Read the selectors of `evaluate_program` as the agent wrote them.

    `ids` may be "3,7,12", "10-20" (inclusive), a mixture, a list or range of such, or one int; numbers may come as
    text or as floats with a whole value. How many of them are read is bounded by how many `rows` there are. Raises
    `SelectionError` saying what is valid.
    """
    return Selection(
        limit=None if limit is None else _parse_limit(limit),
        ids=None if ids is None else _parse_ids(ids, rows),
        sample=_parse_sample(sample),
        sample_seed=None if sample_seed is None else _parse_seed(sample_seed),
        failed_from_run=None if failed_from_run is None else _parse_run(failed_from_run),
    )


def _parse_limit(limit: Any) -> int:
    number = whole_number(limit)
    if number is None or number < 1:
        raise SelectionError(f"limit={brief(limit)} is not valid; pass a whole number, 1 or more, or None for no limit")
    return number


def _parse_seed(seed: Any) -> int:
    number = whole_number(seed)
    if number is None:
        raise SelectionError(f"sample_seed={brief(seed)} is not valid; pass a whole number, or None")
    return number


def _parse_sample(sample: Any) -> str:
    if sample is None:
        return "first"
    if isinstance(sample, str) and len(sample) <= _LONGEST_WORD and sample.strip().lower() in _SAMPLES:
        return sample.strip().lower()
    raise SelectionError(f'sample={brief(sample)} is not valid; pass "first" or "random"')


def _parse_run(run_id: Any) -> str:
    if isinstance(run_id, str) and len(run_id) <= _LONGEST_WORD and run_id.strip():
        return run_id.strip()
    raise SelectionError(f"failed_from_run={brief(run_id)} is not valid; pass the run_id of an evaluation, or None")


def _parse_ids(ids: Any, rows: int) -> tuple[tuple[int, int], ...]:
    most = 2 * rows + 100  # nobody who names each once needs more; some write a few twice
    ranges: list[tuple[int, int]] = []
    for one in _id_ranges(ids, most, _DEEPEST_LIST):
        ranges.append(one)
        if len(ranges) > most:
            raise SelectionError(
                f"ids names more than {most:,} ids, and there are {rows:,} examples; name each once, or pass None for "
                "every example"
            )
    if not ranges:
        raise SelectionError(f"ids={brief(ids)} selects nothing; {_IDS_HELP}, or None for every example")
    return tuple(_merge(ranges))


def _id_ranges(ids: Any, most: int, depth: int) -> Iterable[tuple[int, int]]:
    if isinstance(ids, str):
        if len(ids) > most * _LONGEST_ID:
            raise SelectionError(
                f"ids is a text of {len(ids):,} characters, and at most {most * _LONGEST_ID:,} are read for so many "
                f"examples; {_IDS_HELP}, or None for every example"
            )
        text = _RANGE.sub(r"\1-\2", ids.strip().strip("[](){}"))  # so that no space is left inside a range
        for part in re.split(r"[,;\s]+", text):
            if part := part.strip("'\""):
                yield _id_range(part)
    elif isinstance(ids, Iterable) and not isinstance(ids, bytes | bytearray | Mapping):
        if not depth:
            raise SelectionError(f"ids is a list of lists of lists; {_IDS_HELP}")
        for number, item in enumerate(cast("Iterable[Any]", ids)):
            if number > most:  # also of items that name nothing
                raise SelectionError(f"ids is a list of more than {most:,} items; pass None for every example")
            yield from _id_ranges(item, most, depth - 1)
    elif (number := whole_number(cast("object", ids))) is not None:
        yield _checked_range(number, number, ids)
    else:
        raise SelectionError(f"{brief(cast('object', ids))} is not an example id; {_IDS_HELP}")


def _id_range(part: str) -> tuple[int, int]:
    if match := _RANGE.fullmatch(part):
        return _checked_range(int(match[1]), int(match[2]), part)
    number = whole_number(part)
    if number is None:
        raise SelectionError(f"{brief(part)} is not an example id; {_IDS_HELP}")
    return _checked_range(number, number, part)


def _checked_range(first: int, last: int, shown: Any) -> tuple[int, int]:
    if first > last:
        raise SelectionError(f"the range {brief(shown)} runs backwards; write it as {_spell(last, first)!r}")
    if first < 1:
        raise SelectionError(f"{brief(shown)} is not an example id: ids start at 1; {_IDS_HELP}")
    return first, last


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same ids in ascending ranges that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def select(
    rows: Sequence[Row], selection: Selection, failed_ids: Collection[str] | None = None
) -> tuple[Row, ...]:
    """The rows that `selection` names, each once, in the order of `rows`.

    `failed_ids` are the example ids that did not pass in `selection.failed_from_run` (needed when that is set). When
    it is empty the result is (), and that is the only way to get ().
    A random sample needs `selection.sample_seed`.
    `ids` and `failed_from_run` intersect; `limit` and `sample` apply to what is left.
    Raises `SelectionError` for an id that does not exist or a selection of nothing, saying what is valid.
    """
    chosen = list(rows) if selection.ids is None else _by_position(rows, selection.ids)
    if selection.failed_from_run is not None:
        failed = frozenset(failed_ids or ())
        if not failed:
            return ()
        chosen = [row for row in chosen if row.example_id in failed]
        if not chosen:
            raise SelectionError(
                f"none of these ids failed in run {selection.failed_from_run}; the ids that did: "
                f"{ids_text(rows, failed)}"
            )
    limit = selection.limit
    if limit is None or limit >= len(chosen):
        return tuple(chosen)
    if selection.sample == "first":
        return tuple(chosen[:limit])
    assert selection.sample_seed is not None
    picked = random.Random(selection.sample_seed).sample(range(len(chosen)), limit)
    return tuple(chosen[index] for index in sorted(picked))


def _by_position(rows: Sequence[Row], ranges: tuple[tuple[int, int], ...]) -> list[Row]:
    unknown = [_spell(max(first, len(rows) + 1), last) for first, last in ranges if last > len(rows)]
    if unknown:
        valid = "1" if len(rows) == 1 else f"1-{len(rows)}"
        more = f" and {len(unknown) - _SHOWN:,} more" if len(unknown) > _SHOWN else ""
        raise SelectionError(f"no such example ids: {', '.join(unknown[:_SHOWN])}{more}; the ids are {valid}")
    return [row for first, last in ranges for row in rows[first - 1 : last]]


def ids_text(rows: Sequence[Row], ids: Collection[str], shown: int = _SHOWN) -> str:
    """The first of some example ids, in the order of `rows`, and how many more there are."""
    ordered = [row.example_id for row in rows if row.example_id in ids]
    more = f" and {len(ordered) - shown} more" if len(ordered) > shown else ""
    return ",".join(ordered[:shown]) + more


def _spell(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


def _article(value: Any) -> str:
    name = type(value).__name__
    return "None" if value is None else f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
