"""What worker processes bring: a run on a `ProcessPoolExecutor` of 2 against the same run in threads of one process.

The LM costs nothing, so all of it is Python: DSPy's part of each call, or a program that computes. That is where one
process ends. The workers have begun and have the program before anything is measured. Times are of the wall clock,
because the work is in other processes; rounds take turns, and a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import contextvars
import gc
import logging
import multiprocessing
import os
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dspy

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not

from _programs import Engine, TwoSteps, metric, rows_of
from _rows import compared, seconds

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.evaluation.metric import bind_metric
from rlmoptimizer.evaluation.workers.pickled_evaluation import pickled_base, pickled_row
from rlmoptimizer.evaluation.workers.tasks import Part, RowTask

WORKERS = 2
ROUNDS = 5


class Computes(dspy.Module):
    """Asks nothing, and computes for about 10 ms."""

    def __init__(self, ballast: bytes = b"") -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.ballast = ballast

    def forward(self, question: str) -> dspy.Prediction:
        total = 0
        for number in range(150_000):
            total += number
        return dspy.Prediction(answer="two")


def _compare(name: str, program: dspy.Module, pool: ProcessPoolExecutor, examples: int) -> dict[str, Any]:
    lm = dspy.LM("offline/bench", engine=Engine(), cache=False)
    rows = rows_of(examples)
    ours: list[float] = []
    theirs: list[float] = []
    with Evaluator(metric, lm, 8) as threads, Evaluator(metric, lm, 8, executor=pool) as workers:
        workers.prepare(program, rows)
        for round_number in range(ROUNDS + 1):
            gc.collect()
            pair = seconds(lambda: workers.score(program, rows)), seconds(lambda: threads.score(program, rows))
            if round_number:  # the first one warms up
                ours.append(pair[0] / examples)
                theirs.append(pair[1] / examples)
    whose = "8 threads of one process"
    return compared(name, ours, theirs, whose=whose, unit="us", note=f"an example, of {examples}; {WORKERS} processes")


def _sent() -> dict[str, Any]:
    """A program of 5 MB: what goes to each worker once, against what would go there with each example."""
    lm = dspy.LM("offline/bench", engine=Engine(), cache=False)
    program = Computes(os.urandom(5_000_000))
    base = pickled_base(program, bind_metric(metric), lm, contextvars.copy_context())
    (row,) = rows_of(1)
    task = RowTask(Part(base.digest, None), Part(base.digest, None), pickled_row(row))
    each, once = len(pickle.dumps(task)), len(base.pickled or b"")
    whose = "the program itself, which goes to each worker once"
    return compared("a 5 MB program: sent with each example", [each], [once], whose=whose, unit="MB")


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    logging.getLogger("dspy").setLevel(logging.ERROR)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(WORKERS, context) as pool:
        return [
            _compare("two steps, LM that costs nothing", TwoSteps(), pool, 400),
            _compare("a program that computes for 10 ms", Computes(), pool, 200),
            _sent(),
        ]


if __name__ == "__main__":
    for row in run():
        print(f"{row['name']:40} {row['ours']:9.4g} {row['theirs']:9.4g} {row['unit']}  ratio {row['ratio']:.3g}")
