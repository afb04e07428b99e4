"""The results on train as rows for other programs, CSV or JSON lines. Never a row of val or test."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

from rlmoptimizer.command_line.output import json_text
from rlmoptimizer.command_line.selection import results_of
from rlmoptimizer.errors import SelectionError
from rlmoptimizer.records import ExampleResult, RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["csv_text", "exported_runs", "json_lines"]

_FACTS: Final = (
    "run_id", "turn", "baseline", "candidate", "example_id", "source_example_id", "rollout", "score", "passed",
    "reused", "error_kind", "error", "feedback", "seconds",
)  # fmt: skip
_VALUES: Final = ("inputs", "expected", "predicted")
# Spreadsheets take a text that begins so for a formula. The wide forms count in some of them.
_FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def exported_runs(store: StoreReader, run_ids: Sequence[str]) -> list[RunRecord]:
    """The runs on train that are named, in that order; of (): all, oldest first.

    Raises `UnknownRunError`, and `SelectionError` for a run on another split.
    """
    records = [store.run(run_id) for run_id in run_ids] if run_ids else store.runs()
    for record in records if run_ids else ():
        if record.split != "train":
            raise SelectionError(
                f"run {record.run_id} is on {record.split}, whose examples are never exported; name runs on train"
            )
    return [record for record in records if record.split == "train"]


def json_lines(store: StoreReader, runs: Iterable[RunRecord], *, steps: bool) -> Iterator[str]:
    """One JSON object for each rollout of an example, a line each."""
    for record, result in _results(store, runs):
        row = {name: getattr(result, name) for name in _VALUES}
        objectives = {} if result.objectives is None else {"objectives": dict(result.objectives)}
        traced = {"steps": [step.as_row() for step in result.steps]} if steps else {}
        yield json_text({**_facts(record, result), **objectives, **row, **traced}) + "\n"


def csv_text(
    store: StoreReader, runs: Sequence[RunRecord], *, steps: bool, shown: Callable[[str], str] | None = None
) -> Iterator[str]:
    """The same as CSV (RFC 4180), piece by piece: the first line has the names of the columns.

    Each field of inputs, expected and predicted has a column of its own, such as `inputs.question`. Texts are as they
    are, with their newlines; other values are JSON. A text that a spreadsheet would take for a formula gets an
    apostrophe before it.

    Args:
        shown: what is made of each text in the end; None: it stays.
    """
    columns = _columns(store, runs)
    line = io.StringIO(newline="")
    writer = csv.writer(line)
    fields = [of if name is None else f"{of}.{name}" for of, name in columns]

    def written(cells: Iterable[Any]) -> str:
        line.seek(0)
        line.truncate()
        texts = map(_cell, cells)
        writer.writerow(texts if shown is None else map(shown, texts))
        return line.getvalue()

    yield written([*_FACTS, *fields, *(["steps"] if steps else [])])
    for record, result in _results(store, runs):
        facts = _facts(record, result).values()
        values = [_field(getattr(result, of), name) for of, name in columns]
        yield written([*facts, *values, *([[step.as_row() for step in result.steps]] if steps else [])])


def _results(store: StoreReader, runs: Iterable[RunRecord]) -> Iterator[tuple[RunRecord, ExampleResult]]:
    return ((record, result) for record in runs for result in results_of(store, record.run_id, None))


def _facts(record: RunRecord, result: ExampleResult) -> dict[str, Any]:
    """The cells of `_FACTS`."""
    return {name: getattr(record if hasattr(record, name) else result, name) for name in _FACTS} | {
        "score": result.score if result.has_verdict else None
    }


def _columns(store: StoreReader, runs: Iterable[RunRecord]) -> list[tuple[str, str | None]]:
    """The fields that occur, in the order in which they first do; None: a value that has no fields."""
    found: dict[str, dict[str | None, None]] = {of: {} for of in _VALUES}
    for _, result in _results(store, runs):
        for of, names in found.items():
            value = getattr(result, of)
            names.update(dict.fromkeys(cast("Mapping[str, Any]", value)) if isinstance(value, Mapping) else {})
            if not isinstance(value, Mapping) and value is not None:
                names[None] = None
    return [(of, name) for of, names in found.items() for name in names]


def _field(value: Any, name: str | None) -> Any:
    if isinstance(value, Mapping):
        return None if name is None else cast("Mapping[str, Any]", value).get(name)
    return value if name is None else None


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return json_text(value)
