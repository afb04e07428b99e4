"""Runs the benchmarks beside this file and shows what they measured. It knows nothing of what they measure.

    python bench/run.py                         every benchmark: tables, and the table of the README at the end
    python bench/run.py kernel --json out.json  one of them; the rows and the machine as JSON too
    python bench/run.py --readme                every benchmark, and its table is put into README.md
    python bench/run.py --check                 exit code 1 when an aim is missed that README.md claims to be met

A benchmark is a module here with `run() -> list[dict]`. A row holds
    name    what was measured; no two rows have the same
    unit    of `ours` and `theirs`: "ms", "us", "examples/s", ... (optional, default "ms")
    ours    what it costs here
    theirs  what it costs there, None when there is nothing to compare with here
    whose   what "there" is, in a few words (optional)
    ratio   ours to theirs, as the target counts it; None when there is nothing to compare with
    target  what `ratio` may at most be, None when nothing was promised
    limit   what `ours` may at most be, in its unit (optional, default None: nothing was promised)
    key     whether the row belongs to the table of the README (optional, default False)
    note    anything a reader must know (optional)
A row without figures (ours None) says in its note why something could not be measured.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
README = HERE.parent / "README.md"
_REQUIRED = frozenset({"name", "ours", "theirs", "ratio", "target"})
_OPTIONAL = {"unit": "ms", "whose": "", "limit": None, "key": False, "note": ""}
_PACKAGES = ("dspy", "ipykernel", "jupyter_client", "pyzmq", "msgspec", "rich")
_BEGIN, _END = "<!-- speed: bench/run.py --readme writes this table -->", "<!-- end of speed -->"
_MET, _MISSED = "met", "missed"


def benchmark_names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if path.stem != "run" and not path.stem.startswith("_"))


def rows_of(name: str) -> list[dict[str, Any]]:
    """What the benchmark `name` measured.

    Raises:
        ValueError: a row lacks one of the keys above, or has another one.
    """
    rows = importlib.import_module(name).run()
    for row in rows:
        if missing := _REQUIRED - row.keys():
            raise ValueError(f"bench/{name}.py: the row {row.get('name')!r} lacks {sorted(missing)}")
        if unknown := row.keys() - _REQUIRED - _OPTIONAL.keys():
            raise ValueError(f"bench/{name}.py: the row {row['name']!r} has {sorted(unknown)}, which no row has")
    return [{**_OPTIONAL, **row, "met": is_met({**_OPTIONAL, **row})} for row in rows]


def is_met(row: Mapping[str, Any]) -> bool | None:
    """Whether the row keeps its promises; None when there is none, or nothing to compare with."""
    kept = [
        row[figure] <= row[bound]
        for figure, bound in (("ratio", "target"), ("ours", "limit"))
        if row[bound] is not None and row[figure] is not None
    ]
    return all(kept) if kept else None


def machine() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {package.name: package.version for package in map(metadata.distribution, _PACKAGES)},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def table_of(title: str, rows: Iterable[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("measured", no_wrap=True)
    for heading in ("ours", "theirs", "unit", "ratio", "target"):
        table.add_column(heading, justify="right" if heading != "unit" else "left")
    table.add_column("")
    for row in rows:
        verdict = {True: f"[green]{_MET}[/]", False: f"[bold red]{_MISSED}[/]", None: ""}[row["met"]]
        ours, theirs, ratio = (number(row[key]) for key in ("ours", "theirs", "ratio"))
        table.add_row(row["name"], ours, theirs, row["unit"], ratio, aim(row), verdict)
    return table


def aim(row: Mapping[str, Any]) -> str:
    """What was promised, in words; "" for nothing."""
    parts = [] if row["target"] is None else [f"<= {row['target']:g}"]
    if row["limit"] is not None:
        parts.append(f"<= {row['limit']:g} {row['unit']}")
    return ", ".join(parts)


def number(value: float | None) -> str:
    """Three significant digits, never an exponent: 1234, 12.3, 0.0123."""
    if value is None:
        return "-"
    magnitude = abs(value)
    decimals = 0 if magnitude >= 100 or magnitude == 0 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 4
    return f"{value:,.{decimals}f}"


def readme_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """The key rows that have figures, as the table of the README."""
    lines = ["| measured | here | beside it | ratio | aim | |", "|---|---|---|---|---|---|"]
    for row in rows:
        if not row["key"] or row["ours"] is None:
            continue
        theirs = "" if row["theirs"] is None else f"{number(row['theirs'])} {row['unit']} ({row['whose']})"
        ratio = "" if row["ratio"] is None else number(row["ratio"])
        verdict = {True: _MET, False: _MISSED, None: ""}[row["met"]]
        ours = f"{number(row['ours'])} {row['unit']}"
        words = (row["name"], ours, theirs, ratio, aim(row).replace("<=", "≤"), verdict)
        lines.append(f"| {' | '.join(words)} |")
    return "\n".join(lines)


def claimed(readme: str) -> list[str]:
    """The names of the rows whose aims the README says are met."""
    cells = [[cell.strip() for cell in line.split("|")] for line in _block(readme).splitlines()]
    return [parts[1] for parts in cells if len(parts) > 2 and parts[-2] == _MET]


def _block(readme: str) -> str:
    found = re.search(f"{re.escape(_BEGIN)}\n(.*?){re.escape(_END)}", readme, re.DOTALL)
    if found is None:
        raise SystemExit(f"README.md has no lines {_BEGIN!r} and {_END!r} with a table between them")
    return found[1]


def broken_claims(readme: str, rows: Iterable[Mapping[str, Any]], *, whole: bool) -> list[str]:
    """What the README claims and these rows do not show. `whole`: a claim must have its row among them."""
    found = {row["name"]: row for row in rows}
    broken = [name for name in claimed(readme) if name in found and found[name]["met"] is not True]
    return broken + [f"{name} (not measured)" for name in claimed(readme) if whole and name not in found]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run the benchmarks and show what they measured.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones (default all: {benchmark_names()})")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the rows and the machine there too")
    parser.add_argument("--readme", action="store_true", help="put the table into README.md; takes every benchmark")
    parser.add_argument("--check", action="store_true", help="exit code 1 when an aim is missed that README.md claims")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(benchmark_names()):
        parser.error(f"no such benchmark: {sorted(unknown)}; there are {benchmark_names()}")
    if options.readme and options.names:
        parser.error("--readme takes every benchmark: the table is that of one run; leave the names out")

    console = Console()
    if not console.is_terminal:
        console.width = max(console.width, 120)  # a log has no edge to keep to
    readme = README.read_text(encoding="utf-8")
    if options.readme or options.check:
        _block(readme)  # before all the measuring
    report: dict[str, Any] = {"machine": machine(), "benchmarks": {}}
    for name in options.names or benchmark_names():
        print(f"measuring: {name}", file=sys.stderr, flush=True)
        started = time.perf_counter()
        rows = rows_of(name)
        report["benchmarks"][name] = rows
        console.print(table_of(f"{name} ({time.perf_counter() - started:.0f} s)", rows))
        for row in rows:
            if row["note"]:
                console.print(f"{row['name']}: {row['note']}", markup=False, highlight=False)
    every = [row for rows in report["benchmarks"].values() for row in rows]
    console.print(readme_table(every), markup=False, highlight=False, soft_wrap=True)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"written: {options.json}")
    if missed := [row["name"] for row in every if row["met"] is False]:
        console.print(f"missed: {', '.join(missed)}", markup=False, highlight=False)
    if options.readme:
        README.write_text(readme.replace(_block(readme), f"{readme_table(every)}\n"), encoding="utf-8")
        return 0
    broken = broken_claims(readme, every, whole=not options.names) if options.check else []
    if broken:
        console.print(f"claimed by README.md and not so: {', '.join(broken)}", markup=False, highlight=False)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.path.insert(1, str(HERE.parent))  # the packages of this checkout, installed or not
    raise SystemExit(main())
