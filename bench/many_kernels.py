"""Many kernels in one process: 10 and 50 at once, each with cells and tool calls, and a storm of 300 starts and ends.

Ours is confined, in the strongest tier of the machine. DSPy's LocalInterpreter does the same beside it, but for the
storm. In the storm a third of the kernels is shut down, a third is killed, and a third kills itself; nothing may be
left of any.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import dspy
import psutil

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not
    sys.path.insert(1, str(Path(__file__).resolve().parent))

from _rows import seconds

from kernel_bridge import KernelInterpreter, Limits, probe

_COUNTS = (10, 50)
_CELLS = 20  # of each interpreter
_STORM, _AT_ONCE = 300, 10
_SETTLE_SECONDS = 30.0  # for the threads and processes of what has ended
_CODE = "total = 0\nfor i in range(5):\n    total += echo(value=i)\ntotal"
_LOCAL = "dspy LocalInterpreter"


def echo(value: int) -> int:
    """The cheapest tool there is."""
    return value


def _ours() -> Any:
    return KernelInterpreter({"echo": echo}, limits=Limits(start_seconds=300), restarts=0)


def _local() -> Any:
    return dspy.LocalInterpreter({"echo": echo})


class _Usage:
    """What this process has at one moment, and what is below it."""

    def __init__(self, runtime: Path | None = None) -> None:
        gc.collect()
        me = psutil.Process()
        self.threads = threading.active_count()
        self.descriptors = me.num_fds() if hasattr(me, "num_fds") else 0
        self.memory = me.memory_info().rss
        below = me.children(recursive=True)
        self.processes = len(below)
        self.directories = sum(1 for _ in runtime.iterdir()) if runtime is not None and runtime.exists() else 0
        self.pss = 0
        for process in below:
            with suppress(psutil.Error):
                found = process.memory_full_info()
                self.pss += getattr(found, "pss", found.rss)


def _all(work: Callable[[Any], object], interpreters: Sequence[Any]) -> None:
    with ThreadPoolExecutor(len(interpreters)) as pool:
        list(pool.map(work, interpreters))


def _at_once(make: Callable[[], Any], count: int) -> dict[str, float]:
    """So many interpreters start at once, run cells at once and end at once."""
    before = _Usage()
    interpreters = [make() for _ in range(count)]
    found: dict[str, float] = {}
    try:
        found["start"] = seconds(lambda: _all(lambda one: one.execute("1 + 1"), interpreters))
        work = seconds(lambda: _all(lambda one: [one.execute(_CODE) for _ in range(_CELLS)], interpreters))
        found["cells"] = count * _CELLS / work
        now = _Usage()
        me = psutil.Process()
        cpu = sum(me.cpu_times()[:2])
        time.sleep(2.0)
        found["rest"] = (sum(me.cpu_times()[:2]) - cpu) / 2.0 * 100
        found["threads"] = (now.threads - before.threads) / count
        found["descriptors"] = (now.descriptors - before.descriptors) / count
        found["host memory"] = (now.memory - before.memory) / count / 1e6
        found["memory"] = (now.pss - before.pss) / count / 1e6
    finally:
        found["end"] = seconds(lambda: _all(lambda one: one.shutdown(), interpreters))
    return found


def _live_and_end(number: int) -> None:
    """One kernel of the storm, which ends in one of three ways."""
    interpreter = _ours()
    try:
        interpreter.execute(_CODE)
        if number % 3 == 1:
            _kill_below(interpreter)
        elif number % 3 == 2:
            with suppress(Exception):  # its kernel is gone, which is the end of it
                interpreter.execute("import os; os._exit(3)")
    finally:
        interpreter.shutdown()


def _kill_below(interpreter: Any) -> None:
    """Kill the process that the host started for this kernel, known by the session's directory."""
    directory = str(interpreter.connection_file.parent)
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(argument.startswith(directory) for argument in process.cmdline()):
                process.kill()


def _storm() -> tuple[_Usage, _Usage, float]:
    """What there was before and after a storm, and how long it took."""
    for number in range(6):  # what the first ones load stays
        _live_and_end(number)
    runtime = _runtime_directory()
    before = _Usage(runtime)
    numbers = list(range(_STORM))
    random.Random(0).shuffle(numbers)
    started = time.perf_counter()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        list(pool.map(_live_and_end, numbers))
    took = time.perf_counter() - started
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        after = _Usage(runtime)
        if (after.threads <= before.threads and after.processes <= before.processes) or time.monotonic() > deadline:
            return before, after, took
        time.sleep(0.1)


def _runtime_directory() -> Path | None:
    with _ours() as interpreter:
        interpreter.execute("1")
        file = interpreter.connection_file
        return None if file is None else file.parent.parent


def _row(name: str, ours: float, unit: str, theirs: float | None = None, **more: Any) -> dict[str, Any]:
    ratio = None if not theirs else ours / theirs
    whose = "" if theirs is None else _LOCAL
    return {"name": name, "ours": ours, "theirs": theirs, "unit": unit, "whose": whose, "ratio": ratio,
            "target": None, **more}  # fmt: skip


def run(*, counts: Sequence[int] = _COUNTS) -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    probe()
    _at_once(_ours, 2)  # pays for imports and caches
    rows: list[dict[str, Any]] = []
    for count in counts:
        ours, theirs = _at_once(_ours, count), _at_once(_local, count)
        kernels = f"{count} kernels"
        rows += [
            _row(f"{kernels} started at once, with a first result", ours["start"], "s", theirs["start"], key=True),
            _row(f"{kernels} at work, cells with 5 tool calls", ours["cells"], "cells/s", theirs["cells"], key=True),
            _row(f"{kernels}: memory of each (PSS)", ours["memory"], "MB", theirs["memory"], key=True),
            _row(f"{kernels}: host memory for each", ours["host memory"], "MB", theirs["host memory"]),
            _row(f"{kernels}: host threads for each", ours["threads"], "", theirs["threads"], limit=1.0, key=True),
            _row(f"{kernels}: host descriptors for each", ours["descriptors"], "", theirs["descriptors"]),
            _row(f"{kernels}: CPU of the host at rest", ours["rest"], "%", theirs["rest"]),
            _row(f"{kernels} ended at once", ours["end"], "s", theirs["end"]),
        ]
    before, after, took = _storm()
    rows.append(_row(f"storm of {_STORM} kernels, {_AT_ONCE} at once", took / _STORM * 1000, "ms a kernel"))
    for what in ("threads", "descriptors", "processes", "directories"):
        left = getattr(after, what) - getattr(before, what)
        rows.append(_row(f"storm: {what} left behind", max(0, left), "", limit=0.0, key=what == "processes"))
    rows.append(_row("storm: host memory grown by", (after.memory - before.memory) / 1e6, "MB", limit=20.0))
    rows[0]["note"] = f"confined in tier {probe().tier}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="*", default=_COUNTS, help="how many kernels at once")
    for row in run(counts=parser.parse_args().counts):
        theirs = "-" if row["theirs"] is None else f"{row['theirs']:.2f}"
        print(f"{row['name']:<56}{row['ours']:>10.2f} {row['unit']:12} {theirs:>10}")


if __name__ == "__main__":
    main()
