"""Runs the benchmarks beside this file and shows what they measured. It knows nothing of what they measure.

    python bench/run.py                         every benchmark: a table
    python bench/run.py kernel --json out.json  one of them; the rows and the machine as JSON too
    python bench/run.py --check                 exit code 1 when a target is missed

A benchmark is a module here with `run() -> list[dict]`. A row holds
    name    what was measured
    unit    of `ours` and `theirs`: "ms", "us", "examples/s", ... (optional, default "ms")
    ours    what it costs here
    theirs  what it costs there, None when there is nothing to compare with here
    ratio   ours to theirs, as the target counts it; None when there is nothing to compare with
    target  what `ratio` may at most be, None when nothing was promised
    note    anything a reader must know (optional)
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
_REQUIRED = frozenset({"name", "ours", "theirs", "ratio", "target"})
_PACKAGES = ("dspy", "ipykernel", "jupyter_client", "pyzmq", "msgspec", "rich")


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run" and not path.stem.startswith("_"))


def rows_of(name: str) -> list[dict[str, Any]]:
    """What the benchmark `name` measured.

    Raises:
        ValueError: a row lacks one of the keys above.
    """
    rows = importlib.import_module(name).run()
    for row in rows:
        if missing := _REQUIRED - row.keys():
            raise ValueError(f"bench/{name}.py: the row {row.get('name')!r} lacks {sorted(missing)}")
    return [{"unit": "ms", "note": "", **row, "met": is_met(row)} for row in rows]


def is_met(row: dict[str, Any]) -> bool | None:
    """Whether the row keeps its promise; None when there is none, or nothing to compare with."""
    if row["target"] is None or row["ratio"] is None:
        return None
    return row["ratio"] <= row["target"]


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {package.name: package.version for package in map(metadata.distribution, _PACKAGES)},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def table_of(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("measured", no_wrap=True)
    for heading in ("ours", "theirs", "unit", "ratio", "target"):
        table.add_column(heading, justify="right" if heading != "unit" else "left")
    table.add_column("")
    for row in rows:
        verdict = {True: "[green]met[/]", False: "[bold red]missed[/]", None: ""}[row["met"]]
        target = "" if row["target"] is None else f"<= {row['target']:g}"
        ours, theirs, ratio = (number(row[key]) for key in ("ours", "theirs", "ratio"))
        table.add_row(row["name"], ours, theirs, row["unit"], ratio, target, verdict)
    return table


def number(value: float | None) -> str:
    """Three significant digits, never an exponent: 1234, 12.3, 0.0123."""
    if value is None:
        return "-"
    magnitude = abs(value)
    decimals = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 4
    return f"{value:,.{decimals}f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks and show what they measured.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default all: {benchmark_names()})")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows and the machine there too")
    parser.add_argument("--check", action="store_true", help="exit code 1 when a target is missed")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(benchmark_names()):
        parser.error(f"no such benchmark: {sorted(unknown)}; there are {benchmark_names()}")

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log has no edge to keep to
    report: dict[str, Any] = {"machine": machine(), "benchmarks": {}}
    for name in options.names or benchmark_names():
        started = time.perf_counter()
        rows = rows_of(name)
        report["benchmarks"][name] = rows
        console.print(table_of(f"{name} ({time.perf_counter() - started:.0f} s)", rows))
        for row in rows:
            if row["note"]:
                console.print(f"{row['name']}: {row['note']}", markup=False, highlight=False)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"written: {options.json}")
    missed = [row["name"] for rows in report["benchmarks"].values() for row in rows if row["met"] is False]
    if missed:
        console.print(f"missed: {', '.join(missed)}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.path.insert(1, str(HERE.parent))  # the packages of this checkout, installed or not
    raise SystemExit(main())
