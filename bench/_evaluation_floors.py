"""What an evaluation costs at least: the parts of it, each alone, beside the whole. For `bench/_profile.py`."""

from __future__ import annotations

import gc
import logging
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import dspy
from _programs import Engine, TwoSteps, metric, rows_of
from evaluation import LM_SECONDS, ROUNDS_OF_ALL_THREADS, Scoring

from rlmoptimizer.evaluation.kept_texts import with_kept_texts
from rlmoptimizer.task.dataset import Row

__all__ = ["costs", "waits"]

ROUNDS = 9


def _by_dspy(program: dspy.Module, lm: dspy.LM, **settings: Any) -> Callable[[Row], None]:
    """Runs the program on a row and asks the metric, with nothing around them."""

    def run(row: Row) -> None:
        with dspy.context(lm=lm, **settings):
            metric(row.example, program(**row.example.inputs()))

    return run


def _each(run: Callable[[Row], None], rows: Sequence[Row]) -> Callable[[], None]:
    return lambda: [run(row) for row in rows].clear()


def _in_threads(run: Callable[[Row], None], rows: Sequence[Row], count: int) -> Callable[[], None]:
    """On so many threads, each of which takes one row after the other."""

    def all_of_them() -> None:
        waiting, lock = iter(rows), threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    row = next(waiting, None)
                if row is None:
                    return
                run(row)

        threads = [threading.Thread(target=work) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return all_of_them


def costs() -> None:
    """CPU time of an example, two steps and an LM that costs nothing."""
    logging.getLogger("dspy.evaluate.evaluate").setLevel(logging.WARNING)
    lm, rows, program = dspy.LM("offline/bench", engine=Engine(), cache=False), rows_of(300), TwoSteps()
    kept = with_kept_texts(None)
    with Scoring(lm, 8) as scoring, dspy.context(lm=lm):
        evaluate = dspy.Evaluate(devset=[row.example for row in rows], metric=metric, num_threads=8)
        parts: dict[str, Callable[[], Any]] = {
            "dspy.Evaluate": lambda: evaluate(program),
            "program and metric alone": _each(_by_dspy(program, lm), rows),
            "and adapters keep their texts": _each(_by_dspy(program, lm, adapter=kept), rows),
            "and DSPy writes no history": _each(_by_dspy(program, lm, adapter=kept, disable_history=True), rows),
            "ours": lambda: scoring.score(program, rows, stored=False),
            "ours, stored": lambda: scoring.score(program, rows, stored=True),
        }
        found: dict[str, list[float]] = {name: [] for name in parts}
        for _ in range(ROUNDS + 1):
            for name, work in parts.items():
                gc.collect()
                started = time.process_time()
                work()
                found[name].append((time.process_time() - started) / len(rows))
    for name, times in found.items():
        ratio = statistics.median(a / b for a, b in zip(times[1:], found["dspy.Evaluate"][1:], strict=True))
        print(f"{name:32}{statistics.median(times[1:]) * 1e6:8.0f} us{ratio:8.2f}")


def waits() -> None:
    """Seconds of an evaluation whose LM takes 50 ms, of the ideal, and the CPU time of an example."""
    lm, program = dspy.LM("offline/bench", engine=Engine(LM_SECONDS), cache=False), TwoSteps()
    alone = _by_dspy(program, lm, adapter=with_kept_texts(None))
    for threads in (8, 32):
        rows = rows_of(ROUNDS_OF_ALL_THREADS * threads)
        with Scoring(lm, threads) as scoring:
            scoring.score(program, rows[:threads], stored=True)
            parts: dict[str, Callable[[], Any]] = {
                "two sleeps": _in_threads(lambda _: [time.sleep(LM_SECONDS) for _ in "ab"].clear(), rows, threads),
                "program and metric alone": _in_threads(alone, rows, threads),
                "ours": lambda: scoring.score(program, rows, stored=False),  # noqa: B023 - called in this round
                "ours, stored": lambda: scoring.score(program, rows, stored=True),  # noqa: B023
            }
            found: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
            for _ in range(3):
                for name, work in parts.items():
                    before = time.perf_counter(), time.process_time()
                    work()
                    found[name].append((time.perf_counter() - before[0], time.process_time() - before[1]))
        ideal = 2 * LM_SECONDS * ROUNDS_OF_ALL_THREADS
        for name, times in found.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"{threads:3} threads, {name:28}{wall / ideal:7.3f}{cpu / len(rows) * 1e6:8.0f} us of CPU")
