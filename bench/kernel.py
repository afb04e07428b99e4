"""The kernel against DSPy's own interpreters: what a start, a cell, a tool call and a large value cost.

Rounds are interleaved, so that a machine whose speed drifts treats all alike; each figure is the median of its
rounds, and a ratio is the median over rounds of ours to theirs. PythonInterpreter takes part where Deno is installed.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import zmq

from kernel_bridge import KernelInterpreter, probe

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


_TOOLS: dict[str, Callable[..., Any]] = {"echo": echo, "large": large}

_SEQUENTIAL = "for i in range({n}):\n    echo(value=i)"
_THREADED = (
    "from concurrent.futures import ThreadPoolExecutor\n"
    "with ThreadPoolExecutor(8) as pool:\n"
    "    list(pool.map(lambda i: echo(value=i), range({n})))"
)


def _make_ours() -> Any:
    return KernelInterpreter(_TOOLS, confinement="off")


def _make_confined() -> Any:
    return KernelInterpreter(_TOOLS, confinement="auto")


def _make_local() -> Any:
    return dspy.LocalInterpreter(_TOOLS)


def _make_deno() -> Any:
    return dspy.PythonInterpreter(tools=_TOOLS)


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _measure(make: Callable[[], Any], quick: bool) -> dict[str, float]:
    """One round of one interpreter: name of the figure -> seconds."""
    cells, calls = (20, 100) if quick else (100, 400)
    found: dict[str, float] = {}
    interpreter = make()
    try:
        found["start to first result"] = _seconds(lambda: interpreter.execute("1 + 1"))
        interpreter.execute("x = 1")
        found["warm cell"] = _seconds(lambda: [interpreter.execute("x + 1") for _ in range(cells)]) / cells
        interpreter.execute("echo(value=1)")
        code = _SEQUENTIAL.format(n=calls)
        found["tool call, sequential"] = _seconds(lambda: interpreter.execute(code)) / calls
        code = _THREADED.format(n=calls)
        interpreter.execute(code)
        found["tool call, 8 threads"] = _seconds(lambda: interpreter.execute(code)) / calls
        for megabytes in (1, 10):
            text = "v" * (megabytes * 10**6)
            first = _seconds(lambda text=text: interpreter.execute("len(text)", {"text": text}))
            again = _seconds(lambda text=text: interpreter.execute("len(text)", {"text": text}))
            found[f"{megabytes} MB variable"] = first
            found[f"{megabytes} MB variable, unchanged"] = again
        for megabytes in (5,) if quick else (5, 50):
            code = f"len(large(megabytes={megabytes}))"
            found[f"{megabytes} MB tool result"] = _seconds(lambda code=code: interpreter.execute(code))
    finally:
        found["shutdown"] = _seconds(interpreter.shutdown)
    return found


@contextmanager
def _ping_pong() -> Iterator[Callable[[int], float]]:
    """A raw DEALER/ROUTER echo over ipc between two threads: what a round trip costs with nothing around it."""
    context: zmq.Context[Any] = zmq.Context()
    with tempfile.TemporaryDirectory() as folder:
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        router.bind(f"ipc://{Path(folder) / 's'}")
        dealer.connect(f"ipc://{Path(folder) / 's'}")

        def serve() -> None:
            while True:
                frames = router.recv_multipart()
                if frames[-1] == b"stop":
                    return
                router.send_multipart(frames)

        thread = threading.Thread(target=serve)
        thread.start()

        def trips(count: int) -> float:
            def go() -> None:
                for _ in range(count):
                    dealer.send_multipart([b"head", b"body"])
                    dealer.recv_multipart()

            return _seconds(go) / count

        try:
            yield trips
        finally:
            dealer.send(b"stop")
            thread.join()
            router.close(0)
            dealer.close(0)
            context.term()


_TARGETS = {
    "start to first result": 8.0,
    "warm cell": 7.0,
    "5 MB tool result": 0.4,
    "10 MB variable": 0.2,
}


def run(*, rounds: int = 5, quick: bool = False) -> list[dict[str, Any]]:
    """Measure. Rows: name, ours and theirs in milliseconds, whose theirs is, ratio, target (None: no target)."""
    probe()
    makers: dict[str, Callable[[], Any]] = {
        "ours": _make_ours,
        "confined": _make_confined,
        "LocalInterpreter": _make_local,
    }
    if shutil.which("deno"):
        makers["PythonInterpreter"] = _make_deno
    found: dict[str, list[dict[str, float]]] = {name: [] for name in makers}
    raw: list[float] = []
    with _ping_pong() as trips:
        trips(200)
        for number in range(rounds + 1):
            for name, make in makers.items():
                measured = _measure(make, quick)
                if number:  # the first round pays for imports and caches
                    found[name].append(measured)
            if number:
                raw.append(trips(200 if quick else 1000))
    return _rows(found, raw)


def _rows(found: dict[str, list[dict[str, float]]], raw: list[float]) -> list[dict[str, Any]]:
    ours, confined = found.pop("ours"), found.pop("confined")
    rows = [
        _row(name, [r[name] for r in ours], peer, [r[name] for r in theirs], _TARGETS.get(name))
        for peer, theirs in found.items()
        for name in ours[0]
    ]
    for name, target in (("tool call, sequential", 6.0), ("tool call, 8 threads", 4.0)):
        rows.append(_row(name, [r[name] for r in ours], "raw zmq ping-pong", raw, target))
    for name, target in (("start to first result", 1.25), ("warm cell", 1.10)):
        mine = [r[name] for r in confined]
        rows.append(
            _row(f"{name}, confined (tier {probe().tier})", mine, "unconfined", [r[name] for r in ours], target)
        )
    return rows


def _row(name: str, ours: list[float], peer: str, theirs: list[float], target: float | None) -> dict[str, Any]:
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    if peer == "PythonInterpreter":
        target = None
    return {
        "name": name,
        "ours": statistics.median(ours) * 1000,
        "theirs": statistics.median(theirs) * 1000,
        "peer": peer,
        "unit": "ms",
        "ratio": ratio,
        "target": target,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, no 50 MB result")
    asked = parser.parse_args()
    for row in run(rounds=asked.rounds, quick=asked.quick):
        target = "" if row["target"] is None else f"  target <= {row['target']:g}"
        print(
            f"{row['name']:<44}{row['ours']:>10.3f} ms  {row['peer']:<20}{row['theirs']:>10.3f} ms"
            f"  ratio {row['ratio']:>7.3f}{target}"
        )


if __name__ == "__main__":
    main()
