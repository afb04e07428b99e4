"""What an evaluation costs: `Evaluator` against `dspy.Evaluate`, in one process, round by round.

Both run the same two-step program on the same rows with the same LM and number of threads. Ours also records every
step and turns it all into plain values, which `dspy.Evaluate` does not; the rows that say so write each result to the
run store as well. Times are medians over rounds that take turns; a ratio is the median of the ratios of the rounds.
The ideal of an LM that takes long is its seconds times its calls, divided by the threads: as if all else took no time.
"""

from __future__ import annotations

import gc
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dspy

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not
    sys.path.insert(1, str(Path(__file__).resolve().parent))

from _programs import Engine, TwoSteps, metric, rows_of
from _rows import compared

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Row

LM_SECONDS = 0.05
ROUNDS_OF_ALL_THREADS = 20  # examples a thread, against an ideal


class _NoLM(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def _seconds(work: Callable[[], Any]) -> float:
    gc.collect()
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _compare(
    name: str,
    program: dspy.Module,
    *,
    examples: int,
    threads: int,
    lm_seconds: float = 0.0,
    rounds: int = 5,
    target: float | None = 1.1,  # as fast, within what a busy machine lets one measure
    stored: bool = False,
) -> dict[str, Any]:
    lm = _lm(lm_seconds)
    rows = rows_of(examples)
    theirs: list[float] = []
    ours: list[float] = []
    with Scoring(lm, threads) as scoring, dspy.context(lm=lm):
        evaluate = dspy.Evaluate(devset=[row.example for row in rows], metric=metric, num_threads=threads)
        for round_number in range(rounds + 1):
            pair = (_seconds(lambda: evaluate(program)), _seconds(lambda: scoring.score(program, rows, stored=stored)))
            if round_number:  # the first one warms up
                theirs.append(pair[0] / examples)
                ours.append(pair[1] / examples)
    note = f"{examples} examples" + (", ours with the run store" if stored else "")
    return compared(name, ours, theirs, whose="dspy.Evaluate", unit="us", target=target, note=note)


def _against_ideal(name: str, *, threads: int, stored: bool, target: float | None, rounds: int = 3) -> dict[str, Any]:
    """Two steps with an LM that takes long; each round is `ROUNDS_OF_ALL_THREADS` examples a thread."""
    lm, examples = _lm(LM_SECONDS), ROUNDS_OF_ALL_THREADS * threads
    rows = rows_of(examples)
    with Scoring(lm, threads) as scoring, dspy.context(lm=lm):
        scoring.score(TwoSteps(), rows[:threads], stored=stored)
        scoring.commits = 0
        ours = [_seconds(lambda: scoring.score(TwoSteps(), rows, stored=stored)) / examples for _ in range(rounds)]
    ideal = [2 * LM_SECONDS / threads] * rounds
    note = f"{examples} examples" + (f", {scoring.commits / rounds:.0f} commits of results" if stored else "")
    return compared(name, ours, ideal, whose="the ideal", unit="us", target=target, key=stored, note=note)


def _growth(name: str, few: int, many: int) -> dict[str, Any]:
    lm = _lm(0.0)
    with Scoring(lm, 8) as scoring, dspy.context(lm=lm):
        scoring.score(TwoSteps(), rows_of(few), stored=True)
        small, large = rows_of(few), rows_of(many)
        before = _seconds(lambda: scoring.score(TwoSteps(), small, stored=True)) / few
        ours = [_seconds(lambda: scoring.score(TwoSteps(), large, stored=True)) / many]
        after = _seconds(lambda: scoring.score(TwoSteps(), small, stored=True)) / few
    note = f"{many} examples against {few}, an example; with the run store"
    return compared(name, ours, [(before + after) / 2], whose=f"with {few}", unit="us", target=1.15, note=note)


def _lm(seconds: float) -> dspy.LM:
    return dspy.LM("offline/bench", engine=Engine(seconds), cache=False)


class Scoring:
    """An evaluator and a run store in a directory of their own. `commits`: how often results were stored."""

    def __init__(self, lm: dspy.LM, threads: int) -> None:
        self._stack = ExitStack()
        self._lm = lm
        self._threads = threads
        self.commits = 0

    def __enter__(self) -> Scoring:
        directory = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._store = self._stack.enter_context(RunStore.create_in(directory))
        self._evaluator = self._stack.enter_context(Evaluator(metric, self._lm, self._threads))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def score(self, program: dspy.Module, rows: tuple[Row, ...], *, stored: bool) -> None:
        if not stored:
            self._evaluator.score(program, rows)
            return
        run_id = self._store.begin_run("train", {}, {}, planned_ids=[row.example_id for row in rows])

        def keep(results: Sequence[ExampleResult]) -> None:
            self._store.append(run_id, *results)
            self.commits += 1

        self._evaluator.score(program, rows, on_results=keep)
        self._store.finish_run(run_id)


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    logging.getLogger("dspy.evaluate.evaluate").setLevel(logging.WARNING)
    free = "two steps, LM that costs nothing"
    slow = f"two steps, LM of {LM_SECONDS * 1000:.0f} ms"
    return [
        _compare(f"{free}, 8 threads", TwoSteps(), examples=400, threads=8),
        {
            **_compare(f"{free}, 8 threads, stored", TwoSteps(), examples=400, threads=8, stored=True, target=0.75),
            "key": True,
        },
        _compare(f"{free}, 1 thread", TwoSteps(), examples=400, threads=1),
        _compare(f"{slow}, 8 threads", TwoSteps(), examples=160, threads=8, lm_seconds=LM_SECONDS, rounds=3),
        _compare(f"{slow}, 32 threads", TwoSteps(), examples=640, threads=32, lm_seconds=LM_SECONDS, rounds=3),
        _against_ideal(f"{slow}, 8 threads, ideal", threads=8, stored=False, target=None),
        _against_ideal(f"{slow}, 8 threads, stored, ideal", threads=8, stored=True, target=1.03),
        _against_ideal(f"{slow}, 32 threads, ideal", threads=32, stored=False, target=None),
        _against_ideal(f"{slow}, 32 threads, stored, ideal", threads=32, stored=True, target=1.08),
        _growth(f"{free}, 8 threads, stored, growth", few=500, many=8000),
        _compare("no LM at all, 500 examples", _NoLM(), examples=500, threads=8),
        _compare("no LM at all, 8000 examples", _NoLM(), examples=8000, threads=8, rounds=2),
    ]


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['name']:55} ours {row['ours']:8.0f}  {row['whose']} {row['theirs']:8.0f} {row['unit']}  "
            f"ratio {row['ratio']:.2f}  ({row['note']})"
        )
