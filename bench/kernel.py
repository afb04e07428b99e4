"""The kernel against DSPy's own interpreters: what a start, a cell, a tool call, a large value and its memory cost.

Ours is confined, in the strongest tier of the machine. Rounds are interleaved, so that a machine whose speed drifts
treats all alike. What a tool call and a value may cost is measured against raw sockets and the codec alone. A peer that
does not run here is a row that says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import dspy
import psutil
from dspy.primitives.code_interpreter import CodeExecutionError

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not
    sys.path.insert(1, str(Path(__file__).resolve().parent))

from _peers import NotHere, deno_interpreter, rlms_peer
from _references import RawSockets, codec, pickled, raw_receiver, raw_sockets, received
from _rows import compared, not_measured, seconds

from kernel_bridge import KernelInterpreter, probe

CELLS, CALLS, PRINTS = 100, 400, 1000
_LOCAL, _DENO, _RLMS = "dspy LocalInterpreter", "dspy PythonInterpreter", "rlms IPythonREPL"
_SLOW_SECONDS = 0.05  # of the slow tool

_EXAMPLE = {
    "example_id": "1",
    "inputs": {"question": "word " * 20},
    "predicted": {"answer": "text " * 30},
    "score": 0.5,
    "passed": False,
    "error": None,
    "steps": [
        {"step_index": i, "step_name": f"step_{i}", "inputs": {"text": "y" * 200}, "outputs": {"text": "z" * 200}}
        for i in range(4)
    ],
}
_EXAMPLE_BYTES = 2230  # of one such example as JSON


def _result(megabytes: int) -> list[dict[str, Any]]:
    return [dict(_EXAMPLE, example_id=str(i)) for i in range(megabytes * 10**6 // _EXAMPLE_BYTES)]


_RESULTS = {5: _result(5), 50: _result(50)}


def echo(value: int) -> int:
    """The cheapest tool there is."""
    return value


def large(megabytes: int) -> list[dict[str, Any]]:
    """A result like an evaluation's."""
    return _RESULTS[megabytes]


def slow() -> None:
    """A tool that waits, as for an LM."""
    time.sleep(_SLOW_SECONDS)


_TOOLS: dict[str, Callable[..., Any]] = {"echo": echo, "large": large, "slow": slow}

_SEQUENTIAL = "for i in range({n}):\n    echo(value=i)"
_THREADED = (
    "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(8) as pool:\n"
    "    list(pool.map(lambda i: echo(value=i), range({n})))"
)
# How long the calls took, as the kernel saw it: making its threads is not the bridge's.
_SLOW = (
    "def calls_at_once():\n"
    "    import threading, time\n"
    "    barrier = threading.Barrier(9)\n"
    "    def call():\n"
    "        barrier.wait()\n"
    "        slow()\n"
    "    threads = [threading.Thread(target=call) for _ in range(8)]\n"
    "    for thread in threads: thread.start()\n"
    "    barrier.wait()\n"
    "    began = time.perf_counter()\n"
    "    for thread in threads: thread.join()\n"
    "    return time.perf_counter() - began\n"
    "calls_at_once()"
)
Figures = dict[str, float]  # name of the figure -> seconds, or bytes


def _cells(interpreter: Any, found: Figures) -> None:
    """What every interpreter can do."""
    interpreter.execute("x = 1")
    found["cell"] = seconds(lambda: [interpreter.execute("x + 1") for _ in range(CELLS)]) / CELLS
    found[f"{PRINTS:,} prints"] = seconds(lambda: interpreter.execute(f"for i in range({PRINTS}):\n    print(i)"))


def _tools(interpreter: Any, found: Figures) -> None:
    interpreter.execute("echo(value=1)")
    code = _SEQUENTIAL.format(n=CALLS)
    found["tool call"] = seconds(lambda: interpreter.execute(code)) / CALLS
    code = _THREADED.format(n=CALLS)
    interpreter.execute(code)
    found["tool call, 8 threads at once"] = seconds(lambda: interpreter.execute(code)) / CALLS


def _values(interpreter: Any, found: Figures) -> None:
    text = "v" * 10**7
    found["10 MB variable"] = seconds(lambda: interpreter.execute("None", {"text": text}))
    again = [seconds(lambda: interpreter.execute("None", {"text": text})) for _ in range(5)]
    empty = [seconds(lambda: interpreter.execute("None")) for _ in range(5)]
    found["10 MB variable, unchanged"] = max(0.0, sorted(again)[2] - sorted(empty)[2])
    for megabytes in (5, 50):
        code = f"len(large(megabytes={megabytes}))"
        found[f"{megabytes} MB tool result"] = seconds(lambda code=code: interpreter.execute(code))


def _interpreter_round(make: Callable[[], Any], *, whole: bool) -> Figures:
    """One round of a DSPy interpreter. `whole`: also what only the kernel of ours is asked."""
    found: Figures = {}
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    interpreter = make()
    try:
        found["start to first result"] = seconds(lambda: interpreter.execute("1 + 1"))
        found["memory at rest"] = _pss(before)
        _cells(interpreter, found)
        _tools(interpreter, found)
        _values(interpreter, found)
        if whole:
            interpreter.execute(_SLOW)
            found["8 tools of 50 ms at once"] = float(interpreter.execute(_SLOW))
            interpreter.execute("kept = large(megabytes=50)")
            found["cell after a kept 50 MB result"] = seconds(lambda: interpreter.execute("None"))
    finally:
        found["shutdown"] = seconds(interpreter.shutdown)
    return found


def _pss(before: set[int]) -> float:
    """The memory of the processes that were not there before; what several share is divided among them."""
    found = [one for one in psutil.Process().children(recursive=True) if one.pid not in before]
    return float(sum(getattr(one.memory_full_info(), "pss", one.memory_info().rss) for one in found))


def _reference_round(sockets: RawSockets) -> Figures:
    with raw_receiver() as send:  # a new process, as our kernel is: its first large text is new memory to it
        first = send("v" * 10**7)
    return {
        "tool call": sockets.trip(CALLS),
        "tool call, 8 threads at once": sockets.trips_at_once(8, CALLS),
        "10 MB variable": first,
        "5 MB tool result": codec(_RESULTS[5]),
        "50 MB tool result": codec(_RESULTS[50]),
        "cell after a kept 50 MB result": pickled(received(_RESULTS[50])),
        "8 tools of 50 ms at once": _SLOW_SECONDS,
    }


def _warm_round() -> Figures:
    """An interpreter that takes a warm kernel, and takes another one when that has died."""
    with KernelInterpreter.factory(prewarm=1, tools=_TOOLS) as factory:
        factory.wait_warm()
        with factory() as interpreter:
            found = {"start to first result": seconds(lambda: interpreter.execute("1 + 1"))}
            factory.wait_warm()
            found["cell that kills its kernel"] = seconds(lambda: _crash(interpreter))
    return found


def _crash(interpreter: Any) -> None:
    with suppress(CodeExecutionError):
        interpreter.execute("import os; os._exit(1)")


class _Rounds:
    """The figures of each subject, round by round; a subject that fails leaves and says why."""

    def __init__(self) -> None:
        self.found: dict[str, list[Figures]] = {}
        self.missing: dict[str, str] = {}

    def take(self, name: str, measure: Callable[[], Figures], *, kept: bool) -> None:
        if name in self.missing:
            return
        try:
            figures = measure()
        except NotHere as why:
            self.missing[name] = str(why)
            self.found.pop(name, None)
            return
        if kept:
            self.found.setdefault(name, []).append(figures)

    def of(self, subject: str, figure: str) -> list[float]:
        return [figures[figure] for figures in self.found[subject]]


def run(*, rounds: int = 5) -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    probe()
    got = _Rounds()
    with ExitStack() as stack:
        sockets = stack.enter_context(raw_sockets())
        subjects: dict[str, Callable[[], Figures]] = {
            "ours": lambda: _interpreter_round(lambda: KernelInterpreter(_TOOLS), whole=True),
            _LOCAL: lambda: _interpreter_round(lambda: dspy.LocalInterpreter(_TOOLS), whole=False),
            "warm": _warm_round,
            "alone": lambda: _reference_round(sockets),
            _DENO: _deno_round,
        }
        try:
            subjects[_RLMS] = stack.enter_context(rlms_peer(CELLS, PRINTS)).round
        except NotHere as why:
            got.missing[_RLMS] = str(why)
        for number in range(rounds + 1):  # the first round pays for imports and caches
            for name, measure in subjects.items():
                got.take(name, measure, kept=number > 0)
    return _rows(got)


def _deno_round() -> Figures:
    found: Figures = {}
    started = time.perf_counter()
    interpreter = deno_interpreter(_TOOLS)
    try:
        found["start to first result"] = time.perf_counter() - started
        _cells(interpreter, found)
    finally:
        found["shutdown"] = seconds(interpreter.shutdown)
    return found


# What was promised: the figure, beside whom, and how many times that at most.
_AIMS: Mapping[tuple[str, str], float] = {
    ("start to first result", _LOCAL): 5.0,
    ("cell", _LOCAL): 3.0,
    (f"{PRINTS:,} prints", _LOCAL): 3.0,
    ("tool call", "raw zmq"): 2.0,
    ("tool call, 8 threads at once", "8 raw DEALERs"): 2.0,
    ("8 tools of 50 ms at once", "50 ms"): 1.10,
    ("5 MB tool result", "msgspec alone"): 1.5,
    ("50 MB tool result", "msgspec alone"): 1.5,
    ("10 MB variable", "raw zmq"): 1.1,
    ("cell after a kept 50 MB result", "pickle.dumps alone"): 1.1,
}


def _rows(got: _Rounds) -> list[dict[str, Any]]:
    local = got.of(_LOCAL, "start to first result")
    rows: list[dict[str, Any]] = []
    for (figure, whose), target in _AIMS.items():
        theirs = got.of(_LOCAL if whose == _LOCAL else "alone", figure)
        rows.append(compared(figure, got.of("ours", figure), theirs, whose=whose, target=target, key=True))
        if figure == "start to first result":
            warm = got.of("warm", figure)
            rows.append(compared(f"{figure}, warm kernel", warm, local, whose=whose, target=1.0, key=True))
    unchanged = got.of("ours", "10 MB variable, unchanged")
    rows.append(compared("10 MB variable, unchanged: more than an empty cell", unchanged, limit=1.9, key=True))
    memory = (got.of("ours", "memory at rest"), got.of(_LOCAL, "memory at rest"))
    rows.append(compared("memory at rest (PSS)", *memory, whose=_LOCAL, unit="MB", limit=30, key=True))
    for figure in ("shutdown", "tool call", "tool call, 8 threads at once", "10 MB variable", "50 MB tool result"):
        both = (got.of("ours", figure), got.of(_LOCAL, figure))
        rows.append(compared(f"{figure}, beside {_LOCAL}", *both, whose=_LOCAL))
    deaths = (got.of("warm", "cell that kills its kernel"), got.of("ours", "start to first result"))
    rows.append(compared("cell that kills its kernel, until another one has its variables, warm", *deaths,
                         whose="a cold start"))  # fmt: skip
    for peer in (_DENO, _RLMS):
        for figure in ("start to first result", "cell", f"{PRINTS:,} prints", "shutdown"):
            if peer in got.found:
                both = (got.of("ours", figure), got.of(peer, figure))
                rows.append(compared(f"{figure}, beside {peer}", *both, whose=peer))
    rows += [not_measured(f"beside {peer}", why) for peer, why in got.missing.items()]
    rows[0]["note"] = f"confined in tier {probe().tier}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    for row in run(rounds=parser.parse_args().rounds):
        ours, theirs, ratio = ("-" if row[key] is None else f"{row[key]:.3f}" for key in ("ours", "theirs", "ratio"))
        print(f"{row['name']:<56}{ours:>10} {row.get('unit', ''):3}  {theirs:>10}  ratio {ratio:>8}  {row['note']}")


if __name__ == "__main__":
    main()
