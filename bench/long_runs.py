"""Long optimizations: what they add to the memory of the host, and whether a late turn takes longer than an early one.

A scripted agent prints 9,000 characters in each turn. `theirs` of the second row is a turn among the first, so a ratio
of 1 means that turns do not get slower.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dspy
import psutil
from dspy import lm15

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not
    sys.path.insert(1, str(Path(__file__).resolve().parent))

from _programs import answered, metric, text_of
from _rows import compared

from rlmoptimizer import RLMDocstringOptimizer
from rlmoptimizer.events import Event, TurnFinished

CHARS = 9_000  # that are printed in a turn
_PRINT = f"print('word ' * {CHARS // 5})"
_EVALUATE = "for text in ('a', 'b'):\n    evaluate_program(limit=2, prompts={'answer': f'{text} {turn}'})"


class _Root:
    """The agent: the same code in every turn, then a submission."""

    def __init__(self, turns: int, code: str) -> None:
        self._turns = turns
        self._code = code
        self._asked = 0

    def complete(self, request: lm15.Request) -> lm15.Response:
        self._asked += 1
        code = f"turn = {self._asked}\n{self._code}"
        if self._asked == self._turns:
            code = "SUBMIT(optimized_dspy_program={'answer': 'the last'})"
        fields = {"reasoning": "on and on", "code": f"```python\n{code}\n```", "completed": ""}
        return answered(request, text_of(fields))


class _Answers:
    """The program's LM."""

    def complete(self, request: lm15.Request) -> lm15.Response:
        return answered(request, text_of({"answer": "yes", "completed": ""}))


class _Program(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question)


def _measure(turns: int, *, evaluates: bool) -> dict[str, list[float]]:
    """One optimization in this process: the seconds of each turn, and the memory (bytes) after each tenth of them."""
    logging.disable(logging.WARNING)
    seconds: list[float] = []
    memory: list[float] = []
    process, last = psutil.Process(), time.perf_counter()

    def heard(event: Event) -> None:
        nonlocal last
        if isinstance(event, TurnFinished):
            now = time.perf_counter()
            seconds.append(now - last)
            if event.number % max(1, turns // 10) == 0 or event.number == 10:
                gc.collect()
                memory.append(float(process.memory_info().rss))
            last = time.perf_counter()

    code = f"{_PRINT}\n{_EVALUATE}" if evaluates else _PRINT
    train = [dspy.Example(question=f"is {n} a number?", answer="yes").with_inputs("question") for n in range(8)]
    with tempfile.TemporaryDirectory() as directory:
        RLMDocstringOptimizer(
            root_lm=dspy.LM("offline/root", engine=_Root(turns, code), cache=False),
            eval_lm=dspy.LM("offline/eval", engine=_Answers(), cache=False),
            rlm_max_iterations=turns,
            max_iterations=turns,
            run_storage_dir=directory,
            callbacks=[heard],
        ).compile(_Program(), trainset=train, metric=metric)
    return {"seconds": seconds, "memory": memory}


def measured(turns: int, *, evaluates: bool) -> dict[str, list[float]]:
    """The same in a process of its own, whose memory holds nothing else."""
    command = [sys.executable, __file__, "--turns", str(turns), *(["--evaluates"] if evaluates else []), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    short, long = measured(200, evaluates=False), measured(1000, evaluates=True)
    grown = short["memory"][-1] - short["memory"][0]
    early, late = long["seconds"][20:120], long["seconds"][-100:]
    half, end = long["memory"][len(long["memory"]) // 2], long["memory"][-1]
    return [
        compared("host memory that turns 11 to 200 add", [grown], unit="MB", limit=20, key=True,
                 note=f"{CHARS:,} characters printed a turn"),
        compared("a turn after 900 turns and 1,800 runs", [statistics.median(late)], [statistics.median(early)],
                 whose="a turn among the first 100", target=1.2, key=True),
        compared("host memory that turns 501 to 1,000 add", [end - half], unit="MB", limit=20, key=True,
                 note="two runs a turn"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--evaluates", action="store_true", help="two runs in each turn")
    parser.add_argument("--json", action="store_true", help="figures as JSON")
    asked = parser.parse_args()
    figures = _measure(asked.turns, evaluates=asked.evaluates)
    if asked.json:
        print(json.dumps(figures))
        return
    step = max(1, asked.turns // 10)
    for place, size in enumerate(figures["memory"]):
        some = figures["seconds"][place * step : (place + 1) * step]
        print(f"{statistics.median(some) * 1e3 if some else 0:8.1f} ms a turn  {size / 1e6:8.1f} MB")


if __name__ == "__main__":
    main()
