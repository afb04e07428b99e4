"""What a large result costs: a run of 5,000 examples with 21 KB each, asked for and read in a confined kernel.

"theirs" is reading the same rows from SQLite and decoding their JSON, in this process and with nothing else.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not

from _rows import compared, not_measured
from store import filled

from kernel_bridge import KernelInterpreter, PagedList
from rlmoptimizer.outcome.example_rows import PAGES_OF_RUNS, ExampleRows
from rlmoptimizer.outcome.run_totals import run_totals
from rlmoptimizer.store.store_reader import StoreReader

EXAMPLES = 5_000
EXAMPLE_BYTES = 21_000
_READ_ALL = "read = sum(len(step['inputs']['text']) for row in found['examples'] for step in row['steps'])"
_PEAK = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"


def _plainly(path: Path) -> float:
    """Seconds of the floor."""
    started = time.perf_counter()
    with closing(sqlite3.connect(path)) as database:
        documents = "SELECT inputs, expected, predicted, steps FROM results JOIN details ON id = detail"
        for row in database.execute(documents):
            for document in row:
                json.loads(document)
    return time.perf_counter() - started


def _peak() -> int | None:
    """The most memory that this process had since `_forget_peak`, in bytes; None where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _round(path: Path, figures: dict[str, list[float]]) -> None:
    with StoreReader.open(path) as store:
        rows = ExampleRows(store)

        def run_data(run_id: str) -> dict[str, Any]:
            run = store.run(run_id)
            examples = rows.paged(run)
            assert isinstance(examples, PagedList)
            return {**run_totals(run, ()), "examples": examples}

        def measured(kernel: KernelInterpreter, name: str, code: str) -> None:
            started = time.perf_counter()
            kernel.execute(code)
            figures.setdefault(name, []).append(time.perf_counter() - started)

        with KernelInterpreter(tools={"run_data": run_data}, page_sources={PAGES_OF_RUNS: rows.read_page}) as kernel:
            kernel.execute("pass")
            figures.setdefault("plainly", []).append(_plainly(path))
            _forget_peak()
            before = _peak()
            measured(kernel, "returns", "found = run_data('r1')")
            measured(kernel, "one", "found['examples'][2500]")
            measured(kernel, "all", _READ_ALL)
            after = _peak()
            measured(kernel, "next", "pass")
            measured(kernel, "kept", "pass")  # the checkpoint after the cell before is in it
            if before is not None and after is not None:
                figures.setdefault("host", []).append(after - before)
                figures.setdefault("kernel", []).append(1024 * int(kernel.execute(_PEAK)))


def run(rounds: int = 3) -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    figures: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "runs.sqlite"
        filled(path, EXAMPLES, EXAMPLE_BYTES)
        for _ in range(rounds):
            _round(path, figures)
    what, whose = f"run_data of {EXAMPLES:,} x {EXAMPLE_BYTES // 1000} KB", "reading all from SQLite"
    plainly, returns = figures["plainly"], figures["returns"]
    beside = "with a checkpoint before it"
    rows = [
        compared(f"{what}: until it returns", returns, plainly, whose=whose, target=0.25, limit=100, key=True),
        compared(f"{what}: one of its rows", figures["one"], plainly, whose=whose, target=0.1),
        compared(f"{what}: reading all rows", figures["all"], plainly, whose=whose),
        compared("the next cell, while all rows are kept", figures["kept"], limit=300, note=beside),
    ]
    if "host" not in figures:
        return [*rows, not_measured(f"{what}: memory", "this system does not tell the peak")]
    return [
        *rows,
        compared(f"{what}: memory of the host while all is read", figures["host"], unit="MB", limit=30),
        compared(f"{what}: memory of the kernel after that", figures["kernel"], unit="MB"),
    ]


if __name__ == "__main__":
    for row in run():
        theirs = "" if row["theirs"] is None else f"  {row['whose']} {row['theirs']:.1f}  ratio {row['ratio']:.3f}"
        print(f"{row['name']:70} {row['ours'] or 0:9.1f} {row.get('unit', '')}{theirs}  {row['note']}")
