"""The examples of train as a table: one flat dict each, old and new prompts side by side. Imports no DSPy.

Where the run store is temporary the rows are kept packed with the result, up to 32 MB of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, cast

from rlmoptimizer.outcome.split_scores import CandidateScores, SplitScores
from rlmoptimizer.prompts import Prompts
from rlmoptimizer.records import combined
from rlmoptimizer.store.json_text import decode, encode
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["pack_rows", "table_rows", "unpack_rows"]

_MOST_BYTES: Final = 32 * 2**20  # packed; prose takes about a third of its size
_SIDES: Final = ("baseline", "result")


def table_rows(store: StoreReader, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """A row for each example of train with a result, in its order; all of them have the same first columns.

    Columns: "example_id", "source_example_id", then of "baseline" and of "result" "<side>.score" (0 to 100, the mean of
    all verdicts; None: there is none), ".passed", ".error", ".feedback", then "inputs.<field>", "expected.<field>" and
    "<side>.predicted.<field>". Passed, error, feedback and predicted are of the newest run.
    """
    runs = store.runs()
    found = SplitScores(store, "train").by_candidate(runs)
    sides = {side: found.get(Prompts.of(prompts).digest) for side, prompts in zip(_SIDES, (before, after), strict=True)}
    whole = next((run.run_id for run in runs if run.baseline and run.split == "train"), None)
    for example_id in () if whole is None else store.planned_ids(whole):
        if any(own is not None and example_id in own.newest for own in sides.values()):
            yield _row(store, example_id, sides)


def _row(store: StoreReader, example_id: str, sides: Mapping[str, CandidateScores | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"example_id": example_id, "source_example_id": None}
    row |= {f"{side}.{name}": None for side in _SIDES for name in ("score", "passed", "error", "feedback")}
    fields: dict[str, Any] = {}
    predicted: dict[str, Any] = {}
    for side, own in sides.items():
        if own is None or example_id not in own.newest:
            continue
        shown = combined(store.examples(own.newest[example_id], [example_id], steps=False))
        score = own.scores.get(example_id)
        row["source_example_id"] = shown.source_example_id
        row[f"{side}.score"] = None if score is None else 100 * score
        row |= {f"{side}.{name}": getattr(shown, name) for name in ("passed", "error", "feedback")}
        fields = {f"inputs.{name}": value for name, value in shown.inputs.items()}
        fields |= {f"expected.{name}": value for name, value in shown.expected.items()}
        if isinstance(shown.predicted, dict):
            outputs = cast("dict[str, Any]", shown.predicted)
            predicted |= {f"{side}.predicted.{name}": value for name, value in outputs.items()}
        elif shown.predicted is not None:
            predicted[f"{side}.predicted"] = shown.predicted
    return {**row, **fields, **predicted}


def pack_rows(rows: Iterable[dict[str, Any]]) -> bytes | None:
    """The rows in few bytes; None: they would take more than 32 MB."""
    packer = zlib.compressobj()
    packed = bytearray()
    for row in rows:
        packed += packer.compress(encode(row).encode("utf-8", "surrogatepass") + b"\n")
        if len(packed) > _MOST_BYTES:
            return None
    return bytes(packed + packer.flush())


def unpack_rows(packed: bytes) -> list[dict[str, Any]]:
    lines = zlib.decompress(packed).decode("utf-8", "surrogatepass")
    return [decode(line) for line in lines.split("\n") if line]
