"""Where the time goes: `python bench/_profile.py PART`; the parts are the functions below. For docs/performance.md.

`start` times small programs that do a part of a start and nothing else. `cell` and `call` look every half millisecond
at what the kernel's main thread does, from a thread beside it. `values` does with one value what must be done with it,
and nothing else. `evaluation` is cProfile, by package; `costs` and `waits` time its parts alone. `compile` is a
timeline, see `_timeline.py`.
"""

from __future__ import annotations

import ast
import cProfile
import gc
import marshal
import pickle
import pstats
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import dspy
import msgspec

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not
sys.path.insert(1, str(Path(__file__).resolve().parent))

from _evaluation_floors import costs, waits
from _programs import Engine, TwoSteps, metric, rows_of
from _references import received
from _rows import seconds
from kernel import large

from kernel_bridge import KernelInterpreter, probe
from kernel_bridge.threads.loop_thread import LoopThread
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.row_runner import RowRunner
from rlmoptimizer.evaluation.time_limit import TimeLimit

ROUNDS = 9
_CALLS = 5000
_FLOOR = """
import zmq, msgspec
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config
settings = Config()
settings.HistoryManager.enabled = False
InteractiveShell.instance(config=settings).run_cell("1 + 1")
"""
_SAMPLER = """
def sample(seconds):
    import collections, sys, threading, time
    main, found = threading.main_thread().ident, collections.Counter()
    def look():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.0005)
            frame, seen = sys._current_frames().get(main), set()
            while frame is not None:
                place = frame.f_code.co_filename.rpartition("/")[2] + ":" + frame.f_code.co_name
                if place not in seen:
                    seen.add(place)
                    found[place] += 1
                frame = frame.f_back
            found["all"] += 1
    sys.sampled = threading.Thread(target=look)  # no variable of the code, which a checkpoint would want to keep
    sys.sampled.found = found
    sys.sampled.start()
"""


def _process(*arguments: str) -> Callable[[], float]:
    return lambda: seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True))


def _first_result(make: Callable[[], Any]) -> Callable[[], float]:
    def measure() -> float:
        interpreter = make()
        try:
            return seconds(lambda: interpreter.execute("1 + 1"))
        finally:
            interpreter.shutdown()

    return measure


def start() -> None:
    """Parts of a start, each as the whole life of a program, and starts to their first result."""
    probe()
    parts = {
        "python that does nothing": _process("-I", "-S", "-c", "pass"),
        "and imports zmq and msgspec": _process("-c", "import zmq, msgspec"),
        "and runs one cell in IPython": _process("-c", _FLOOR),
        "a kernel, unconfined": _first_result(lambda: KernelInterpreter(confinement="off")),
        f"a kernel, confined in tier {probe().tier}": _first_result(KernelInterpreter),
        "dspy LocalInterpreter": _first_result(dspy.LocalInterpreter),
    }
    found: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(ROUNDS + 1):
        for name, measure in parts.items():
            found[name].append(measure())
    for name, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(times[1:], found["dspy LocalInterpreter"][1:], strict=True))
        print(f"{name:40}{statistics.median(times[1:]) * 1e3:8.1f} ms{ratio:8.2f}")


def _sampled(code: str, tools: dict[str, Callable[..., Any]]) -> None:
    with KernelInterpreter(tools, confinement="off") as interpreter:
        interpreter.execute(f"ROUNDS = {ROUNDS}\n{_SAMPLER}")
        for _ in range(50):
            interpreter.execute(code)
        interpreter.execute("sample(4.0)")
        running = True
        while running:
            for _ in range(100):
                interpreter.execute(code)
            running = "True" in interpreter.execute("import sys; print(sys.sampled.is_alive())")
        found = interpreter.execute("print(sys.sampled.found.most_common(45))")
    counts: Counter[str] = Counter(dict(ast.literal_eval(found)))
    for place, count in counts.most_common(45):
        print(f"{count / counts['all']:7.1%}  {place}")


def cell() -> None:
    """Shares of the kernel's time while small cells follow one another; a function's share holds what it calls."""
    _sampled("ROUNDS + 1", {})


def call() -> None:
    """The same while a cell calls a tool a hundred times, and what a call takes of both processes."""
    tools = {"echo": lambda value: value}
    _sampled("for i in range(100):\n    echo(value=i)", tools)
    code = f"""
import time
wall, cpu = time.perf_counter(), time.process_time()
for i in range({_CALLS}): echo(value=i)
print(time.perf_counter() - wall, time.process_time() - cpu)
"""
    with KernelInterpreter(tools, confinement="off") as interpreter:
        for _ in range(2):  # the first warms it up
            began = time.process_time()
            wall, kernel = map(float, interpreter.execute(code).split())
            host = time.process_time() - began
    for name, spent in (("a call", wall), ("CPU of the kernel", kernel), ("CPU of the host", host)):
        print(f"{name:20}{spent / _CALLS * 1e6:8.1f} us")


def values() -> None:
    """What a large value costs at least, in CPU time: the codec, looking at each part, and pickles of it."""
    for megabytes in (5, 50):
        value = received(large(megabytes))
        data = msgspec.msgpack.encode(value)
        gc.disable()  # as where a kernel decodes
        parts: dict[str, Callable[[], object]] = {
            "msgspec encodes it": lambda value=value: msgspec.msgpack.encode(value),
            "msgspec decodes it": lambda data=data: msgspec.msgpack.decode(data),
            "looking at each part, a loop": lambda value=value: _looked_at(value),
            "looking at each part, in C by levels": lambda value=value: _looked_at_in_c(value),
            "pickle": lambda value=value: pickle.dumps(value, 5),
            "marshal": lambda value=value: marshal.dumps(value),
        }
        for name, action in parts.items():
            print(f"{megabytes:3} MB  {name:40}{min(_cpu_seconds(action) for _ in range(ROUNDS)) * 1e3:8.1f} ms")
        gc.enable()


def _cpu_seconds(action: Callable[[], object]) -> float:
    started = time.process_time()
    action()
    return time.process_time() - started


_LEAVES = frozenset({type(None), bool, int, float, str, bytes})


def _looked_at(value: list[Any]) -> bool:
    """Whether there are only plain parts in it, with texts for keys."""
    level: list[Any] = [value]
    while level:
        below: list[Any] = []
        for container in level:
            pairs = type(container) is dict
            for key in container if pairs else ():
                if type(key) is not str:
                    return False
            for item in container.values() if pairs else container:
                kind = type(item)
                if kind is dict or kind is list:
                    below.append(item)
                elif kind not in _LEAVES:
                    return False
        level = below
    return True


def _looked_at_in_c(value: list[Any]) -> bool:
    """The same, with as little Python for each part as can be."""
    dicts: list[Any] = []
    lists: list[Any] = [value]
    while dicts or lists:
        if not set(map(type, chain.from_iterable(dicts))) <= {str}:
            return False
        items = list(chain(chain.from_iterable(map(dict.values, dicts)), chain.from_iterable(lists)))
        kinds = set(map(type, items))
        if not kinds <= _LEAVES | {dict, list}:
            return False
        dicts = [item for item in items if type(item) is dict] if dict in kinds else []
        lists = [item for item in items if type(item) is list] if list in kinds else []
    return True


def evaluation() -> None:
    """Shares of an evaluation of two steps with an LM that costs nothing, in one thread and not stored, by package."""
    rows, profile = rows_of(600), cProfile.Profile()
    lm = dspy.LM("offline/bench", engine=Engine(), cache=False)
    limit = TimeLimit(None, LoopThread())
    runner = RowRunner(TwoSteps(), bind_metric(metric), lm, limit=limit, context=None)
    for row in rows[:100]:
        runner.run(row)
    profile.runcall(lambda: [runner.run(row) for row in rows[100:]])
    stats: Any = pstats.Stats(profile)
    shares: Counter[str] = Counter()
    for (file, _, _), (_, _, own, _, _) in stats.stats.items():
        shares[_package(file)] += own
    total = sum(shares.values())
    for package, own in shares.most_common(14):
        print(f"{own / total:7.1%}  {package}")


def compile_() -> None:
    """The timeline of `example.py --quiet` in a process of its own, from its start to its end."""
    began = time.monotonic()
    subprocess.run([sys.executable, str(Path(__file__).with_name("_timeline.py"))], check=True)
    print(f"{time.monotonic() - began:7.3f}  the process has ended")


def _package(file: str) -> str:
    parts = Path(file).parts
    if "site-packages" in parts:
        return parts[parts.index("site-packages") + 1]
    if "rlmoptimizer" in parts and "bench" not in parts:
        return f"rlmoptimizer/{parts[-2]}"
    return "built in" if file.startswith(("~", "<")) else "standard library"


if __name__ == "__main__":
    {
        "start": start, "cell": cell, "call": call, "values": values, "evaluation": evaluation, "costs": costs,
        "waits": waits, "compile": compile_,
    }[sys.argv[1]]()  # fmt: skip
