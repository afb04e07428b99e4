"""What an evaluation costs: `Evaluator` against `dspy.Evaluate`, in one process, round by round.

Both run the same two-step program on the same rows with the same LM and number of threads. Ours also records every
step and turns it all into plain values, which `dspy.Evaluate` does not; the rows that say so write each result to the
run store as well. Times are medians over rounds that take turns; a ratio is the median of the ratios of the rounds.
"""

from __future__ import annotations

import gc
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.task.dataset import Row, build_dataset

LM_SECONDS = 0.05


class _Engine:
    """Answers every request with the same text, after `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        fields = {"keywords": "one, two", "answer": "two", "completed": ""}
        self._text = "\n\n".join(f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items())

    def complete(self, request: lm15.Request) -> lm15.Response:
        if self._seconds:
            time.sleep(self._seconds)
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant(self._text),
            finish_reason="stop",
            usage=lm15.Usage(input_tokens=0, output_tokens=0, total_tokens=0),
        )


class _TwoSteps(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extract = dspy.Predict("question -> keywords")
        self.answer = dspy.Predict("question, keywords -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        return self.answer(question=question, keywords=self.extract(question=question).keywords)


class _NoLM(dspy.Module):
    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=question)


def _metric(example: dspy.Example, prediction: dspy.Prediction, trace: object = None) -> bool:
    return example.answer == prediction.answer


def _rows(count: int) -> tuple[Row, ...]:
    examples = [dspy.Example(question=f"which of {n} and two?", answer="two") for n in range(count)]
    examples = [example.with_inputs("question") for example in examples]
    return build_dataset(examples).train


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
    lm = dspy.LM("offline/bench", engine=_Engine(lm_seconds), cache=False)
    rows = _rows(examples)
    devset = [row.example for row in rows]
    theirs: list[float] = []
    ours: list[float] = []
    with (
        tempfile.TemporaryDirectory() as directory,
        RunStore.create_in(directory) as store,
        Evaluator(_metric, lm, threads) as evaluator,
        dspy.context(lm=lm),
    ):
        evaluate = dspy.Evaluate(devset=devset, metric=_metric, num_threads=threads)

        def score() -> None:
            evaluator.score(program, rows)

        def score_and_store() -> None:
            run_id = store.begin_run("train", {}, {}, planned_ids=[row.example_id for row in rows])
            evaluator.score(program, rows, on_results=lambda results: store.append(run_id, *results))
            store.finish_run(run_id)

        for round_number in range(rounds + 1):
            pair = (_seconds(lambda: evaluate(program)), _seconds(score_and_store if stored else score))
            if round_number:  # the first one warms up
                theirs.append(pair[0])
                ours.append(pair[1])
    return {
        "name": name,
        "unit": "us/example",
        "ours": statistics.median(ours) / examples * 1e6,
        "theirs": statistics.median(theirs) / examples * 1e6,
        "ratio": statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)),
        "target": target,
        "note": f"{examples} examples, theirs is dspy.Evaluate" + (", ours with the run store" if stored else ""),
    }


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    logging.getLogger("dspy.evaluate.evaluate").setLevel(logging.WARNING)
    free = "two steps, LM that costs nothing"
    slow = f"two steps, LM of {LM_SECONDS * 1000:.0f} ms"
    return [
        _compare(f"{free}, 8 threads", _TwoSteps(), examples=400, threads=8),
        _compare(f"{free}, 8 threads, stored", _TwoSteps(), examples=400, threads=8, stored=True),
        _compare(f"{free}, 1 thread", _TwoSteps(), examples=400, threads=1),
        _compare(f"{slow}, 8 threads", _TwoSteps(), examples=160, threads=8, lm_seconds=LM_SECONDS, rounds=3),
        _compare(f"{slow}, 32 threads", _TwoSteps(), examples=640, threads=32, lm_seconds=LM_SECONDS, rounds=3),
        _compare("no LM at all, 500 examples", _NoLM(), examples=500, threads=8),
        _compare("no LM at all, 8000 examples", _NoLM(), examples=8000, threads=8, rounds=2),
    ]


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['name']:45} ours {row['ours']:8.0f}  dspy.Evaluate {row['theirs']:8.0f} {row['unit']}  "
            f"ratio {row['ratio']:.2f}  ({row['note']})"
        )
