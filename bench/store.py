"""What the run store costs: writing results durably, and reading a part of a large run against reading all of it.

One run of 10,000 examples, each with a trace of three steps and about 20 KB, beside a small one. "theirs" of a row that
reads is reading the whole run; of the row that writes, the same bytes put into a plain SQLite table, synced as often.
Bytes are those that the process asked the system for, on a fresh connection.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not

from rlmoptimizer.records import Charge, ExampleResult, StepTrace
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

EXAMPLES = 10_000
TRACE_BYTES = 20_000
_BATCH = 500
_IO = Path("/proc/self/io")


def traced(example_id: str, size: int = TRACE_BYTES, *, steps: int = 3) -> ExampleResult:
    """A result whose stored text has about `size` bytes, most of it in the trace."""
    text = f"{example_id} " * (size // (steps * 2 * (len(example_id) + 1)))
    return ExampleResult(
        example_id=example_id,
        source_example_id=None,
        inputs={"question": example_id},
        expected={"answer": "a"},
        predicted={"answer": "b"},
        score=0.5,
        passed=False,
        error=None,
        error_kind=None,
        feedback=None,
        steps=tuple(StepTrace(index, f"step{index}", "QA", {"text": text}, {"text": text}) for index in range(steps)),
        seconds=0.1,
    )


def filled(path: Path, examples: int, size: int = TRACE_BYTES, *, ends: bool = True) -> str:
    """Make a store with one run of so many examples; gives its id. `ends=False`: as a killed process leaves it."""
    ids = [str(number) for number in range(1, examples + 1)]
    with RunStore.create(path) as store:
        run_id = store.begin_run("train", {"limit": None}, {"a": "p"}, planned_ids=ids, request={"limit": None})
        for start in range(0, examples, _BATCH):
            some = ids[start : start + _BATCH]
            store.append(run_id, *(traced(one, size) for one in some), charge=Charge(len(some), "evaluate"))
        if ends:
            store.finish_run(run_id, budget_left=0)
    return run_id


def bytes_read() -> int | None:
    """What this process has asked the system for so far; None where the system does not tell."""
    try:
        return int(_IO.read_text().split("rchar: ")[1].split()[0])
    except (OSError, IndexError):
        return None


def cost_of(path: Path, read: Callable[[RunStore], object]) -> tuple[float, int | None]:
    """Seconds and bytes of one reading on a fresh connection."""
    with StoreReader.open(path) as store:
        before, started = bytes_read(), time.perf_counter()
        read(store)
        seconds, after = time.perf_counter() - started, bytes_read()
    return seconds, None if before is None or after is None else after - before


def _reading(name: str, path: Path, part: Callable[[RunStore], object], target: float) -> dict[str, Any]:
    whole = cost_of(path, lambda store: store.examples("r1"))
    parts = [cost_of(path, part) for _ in range(5)]
    seconds, (_, of_part), (_, of_all) = statistics.median(one[0] for one in parts), parts[0], whole
    told = "" if of_part is None or of_all is None else f"; {of_part / 1e6:.2f} of {of_all / 1e6:.0f} MB read"
    return {
        "name": name,
        "ours": seconds * 1e3,
        "theirs": whole[0] * 1e3,
        "ratio": seconds / whole[0],
        "target": target,
        "note": f"of {EXAMPLES} examples of {TRACE_BYTES // 1000} KB, theirs is reading all{told}",
    }


def _writing(directory: Path, *, batch: int, batches: int = 60) -> dict[str, Any]:
    """Results with their charge, a few at a time, against a bare table."""
    rows = [traced(str(number), 4000) for number in range(batch * batches)]
    blobs = [os.urandom(4000) for _ in rows]
    ours: list[float] = []
    theirs: list[float] = []
    plain_path, store_path = directory / f"plain-{batch}.sqlite", directory / f"ours-{batch}.sqlite"
    with closing(sqlite3.connect(plain_path, isolation_level=None)) as plain, RunStore.create(store_path) as store:
        plain.execute("PRAGMA journal_mode = WAL")
        plain.execute("PRAGMA synchronous = FULL")
        plain.execute("CREATE TABLE rows (data BLOB)")
        run_id = store.begin_run("train", {}, {}, planned_ids=[row.example_id for row in rows])
        for start in range(0, len(rows), batch):
            began = time.perf_counter()
            plain.execute("BEGIN")
            plain.executemany("INSERT INTO rows VALUES (?)", [(blob,) for blob in blobs[start : start + batch]])
            plain.execute("COMMIT")
            middle = time.perf_counter()
            store.append(run_id, *rows[start : start + batch], charge=Charge(batch, "evaluate"))
            theirs.append(middle - began)
            ours.append(time.perf_counter() - middle)
    return {
        "name": f"write {batch} result{'s' if batch > 1 else ''} and the charge",
        "ours": statistics.median(ours) * 1e3,
        "theirs": statistics.median(theirs) * 1e3,
        "ratio": statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)),
        "target": 2.0,
        "note": "durably, 4 KB each; theirs is one bare table with the same bytes, synced as often",
    }


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        ended, cut = directory / "ended.sqlite", directory / "cut.sqlite"
        filled(ended, EXAMPLES)
        filled(cut, EXAMPLES, ends=False)
        middle = [str(number) for number in range(EXAMPLES // 2, EXAMPLES // 2 + 25)]
        return [
            _reading("the aggregate of a run that ended", ended, lambda store: store.run("r1"), 0.01),
            _reading("the aggregate of a run under way", cut, lambda store: store.run("r1"), 0.05),
            _reading("25 in the middle", ended, lambda store: store.examples("r1", offset=5000, limit=25), 0.02),
            _reading("25 by id", ended, lambda store: store.examples("r1", ids=middle), 0.02),
            _reading("which examples failed", ended, lambda store: store.failed_ids("r1"), 0.05),
            _writing(directory, batch=1),
            _writing(directory, batch=8),
        ]


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['name']:36} ours {row['ours']:9.3f}  theirs {row['theirs']:9.3f} ms  ratio {row['ratio']:.4f}  "
            f"({row['note']})"
        )
