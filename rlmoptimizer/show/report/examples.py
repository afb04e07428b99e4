"""The examples of train as the page shows them: a row for each, and both sides of one with all that was traced.

The sides are two candidates: the unchanged program, and the one that is given back or is the best so far.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final, TypedDict

from kernel_bridge.text import shorten
from rlmoptimizer.outcome.run_totals import percent
from rlmoptimizer.outcome.split_scores import CandidateScores, is_counted
from rlmoptimizer.records import RunRecord, combined
from rlmoptimizer.show.report.json_values import as_json
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.text import media_named

__all__ = ["CHUNK_SIZE", "ExampleEntry", "ExamplesEntry", "Heads", "SideEntry", "Sides"]

CHUNK_SIZE: Final = 50  # examples that are read at once

_HEAD_CHARS: Final = 120
_READ_CHARS: Final = 600  # of the inputs' JSON, of which the head is made
_NAME = re.compile(r'^\{"(?:[^"\\]|\\.)*": |(?<=["}\]0-9el]), "(?:[^"\\]|\\.)*": ')  # of a field
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)


class SideEntry(TypedDict):
    """What a candidate did with an example: of several rollouts the one with the lowest score."""

    run_id: str  # the newest with a verdict on it
    predicted: Any  # by output; None: the program raised
    score: float | None  # 0 to 100, the mean of the rollouts; None: an LM failed, so there is no verdict
    scores: list[float]  # of the rollouts, where there are several
    passed: bool
    error: str | None
    error_kind: str | None
    feedback: str | None
    objectives: dict[str, Any] | None  # on the metric's own scale
    seconds: float  # of all rollouts
    steps: list[dict[str, Any]]  # as `run_data` shows them


class ExampleEntry(TypedDict):
    id: str
    source_id: str | None
    inputs: dict[str, Any]
    expected: dict[str, Any]
    before: SideEntry | None
    after: SideEntry | None


class ExamplesEntry(TypedDict):
    count: int
    chunk_size: int
    compared_with: int | None  # the candidate of the side "after"; None: nothing is better than the unchanged program
    rows: list[list[Any]]  # id, source id, score before, score after, kind of an error, head of the inputs


class Heads:
    """Source id and the beginning of the inputs of each example of train; read once."""

    def __init__(self, store: StoreReader) -> None:
        self._store = store
        self._heads: dict[str, tuple[str | None, str]] = {}
        self._read: set[str] = set()  # runs

    def update(self, runs: Sequence[RunRecord], count: int) -> None:
        """Read them from the runs, until all of so many examples are known."""
        for run in runs:
            if len(self._heads) >= count:
                return
            if run.split == "train" and is_counted(run) and run.run_id not in self._read:
                self._read.add(run.run_id)
                for example_id, source, text in self._store.example_heads(run.run_id, _READ_CHARS):
                    self._heads.setdefault(example_id, (source, _head(text)))

    def of(self, example_id: str) -> tuple[str | None, str]:
        return self._heads.get(example_id, (None, ""))


class Sides:
    """Both sides of the examples, as far as they were run."""

    def __init__(
        self, ids: Sequence[str], before: CandidateScores | None, after: CandidateScores | None, place: int | None
    ) -> None:
        """`place`: the index of the candidate `after`."""
        self._ids = ids
        self._both = before, after
        self._place = place

    def entry(self, heads: Heads) -> ExamplesEntry:
        rows = [self._row(example_id, heads) for example_id in self._ids]
        return {"count": len(rows), "chunk_size": CHUNK_SIZE, "compared_with": self._place, "rows": rows}

    def chunk_count(self) -> int:
        return -(-len(self._ids) // CHUNK_SIZE)

    def chunk(self, store: StoreReader, number: int) -> Iterator[ExampleEntry]:
        """The examples of a chunk, one at a time: they may be large. Raises IndexError when there is no such chunk."""
        if not 0 <= number < self.chunk_count():
            raise IndexError(f"there is no chunk {number} of examples; there are {self.chunk_count()}")
        return (self._example(store, one) for one in self._ids[number * CHUNK_SIZE : (number + 1) * CHUNK_SIZE])

    def _row(self, example_id: str, heads: Heads) -> list[Any]:
        scores = [None if own is None else _short(own.scores.get(example_id)) for own in self._both]
        ran = [own for own in self._both if own is not None and example_id in own.newest]
        kind = ran[-1].error_kinds.get(example_id) if ran else None
        source, head = heads.of(example_id)
        return [example_id, source, *scores, kind, head]

    def _example(self, store: StoreReader, example_id: str) -> ExampleEntry:
        entry: ExampleEntry = {
            "id": example_id, "source_id": None, "inputs": {}, "expected": {}, "before": None, "after": None
        }  # fmt: skip
        for side, own in zip(("before", "after"), self._both, strict=True):
            if own is None or example_id not in own.newest:
                continue
            run_id = own.newest[example_id]
            found = combined(store.examples(run_id, [example_id]))
            entry["source_id"], entry["inputs"], entry["expected"] = (
                found.source_example_id,
                as_json(found.inputs),
                as_json(found.expected),
            )
            entry[side] = {
                "run_id": run_id,
                "predicted": as_json(found.predicted),
                "score": percent(found.score) if found.has_verdict else None,
                "scores": [percent(score) or 0.0 for score in found.scores] if len(found.scores) > 1 else [],
                "passed": found.passed,
                "error": found.error,
                "error_kind": found.error_kind,
                "feedback": found.feedback,
                "objectives": as_json(found.objectives),
                "seconds": found.seconds,
                "steps": [as_json(step.as_row()) for step in found.steps],
            }
        return entry


def _short(score: float | None) -> float | None:
    """In percent; a whole number where it is one, which takes fewer characters."""
    value = percent(score)
    return int(value) if value is not None and value.is_integer() else value


def _head(text: str) -> str:
    """The beginning of inputs to read, of the first characters of their JSON: their values without their names."""
    try:
        values = list(json.loads(text).values())
        text = ", ".join(one if isinstance(one, str) else json.dumps(one, ensure_ascii=False) for one in values)
    except (ValueError, AttributeError):  # it is cut
        text = _ESCAPE.sub(_unescaped, _NAME.sub(" ", text)).strip(' "')
    return shorten(" ".join(media_named(text).split()), _HEAD_CHARS)


def _unescaped(match: re.Match[str]) -> str:
    code, character = match.groups()
    if code is not None:
        return chr(int(code, 16))
    return " " if character in "nrtbf" else character
