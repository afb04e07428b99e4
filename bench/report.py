"""What the report and the live page cost: the document of a large optimization, and the file that holds all of it.

5,000 examples of train with two traces of about 20 KB each, 200 runs. "theirs" is reading all of these results from the
store; of the row of memory, the size of the store. The text is of random words, which packs worse than prose.
"""

from __future__ import annotations

import itertools
import random
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parent.parent))  # the packages of this checkout, installed or not

from rlmoptimizer.outcome.ending import AgentOutcome, Choice, Outcome
from rlmoptimizer.records import Charge, ExampleResult, StepTrace
from rlmoptimizer.show.report.document import DocumentReader
from rlmoptimizer.show.report.page import write_report
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

EXAMPLES = 5000
RUNS = 200
_STEP_WORDS = 530  # of an output; three of them and the inputs are about 20 KB
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = tuple("".join(random.Random(n).choices(_LETTERS, k=2 + n % 8)) for n in range(5000))
_WEIGHTS = tuple(itertools.accumulate(1 / (place + 3) for place in range(len(_WORDS))))
_OLD = {"answer": "Answer the question."}


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS, cum_weights=_WEIGHTS, k=words))


def _result(rng: random.Random, number: int, right: float, *, traced: bool) -> ExampleResult:
    inputs = {"question": _text(random.Random(number), 250)}
    steps = tuple(StepTrace(step, "answer", "QA", inputs, {"answer": _text(rng, _STEP_WORDS)}) for step in range(3))
    score = float(rng.random() < right)
    return ExampleResult(
        example_id=str(number),
        source_example_id=None,
        inputs=inputs,
        expected={"answer": "a"},
        predicted={"answer": "b"},
        score=score,
        passed=bool(score),
        error=None,
        error_kind=None,
        feedback=None,
        steps=steps if traced else (),
        seconds=0.1,
    )


def _add_run(store: RunStore, rng: random.Random, prompts: dict[str, str], count: int, turn: int) -> None:
    ids = range(1, count + 1)
    whole = count == EXAMPLES
    run_id = store.begin_run(
        "train", {}, prompts, baseline=prompts == _OLD, planned_ids=[str(one) for one in ids], turn=turn
    )
    for start in range(0, count, 100):
        results = [_result(rng, number, 0.5 + turn / 500, traced=whole) for number in ids[start : start + 100]]
        store.append(run_id, *results, charge=Charge(len(results), "evaluate") if turn else None)
    store.finish_run(run_id, budget_left=0)


def filled(path: Path) -> RunStore:
    """An optimization that has not ended: the old and the newest prompts on all of train, others on 100 examples."""
    rng = random.Random(1)
    store = RunStore.create(path)
    splits = {"trainset": {"digests": [str(number) for number in range(EXAMPLES)]}, "valset": None, "testset": None}
    student = {"modules": {}, "steps": _OLD}
    settings = {"max_iterations": 20}
    store.record_setup({"student": student, **splits, "metric": "m", "settings": settings, "drawn_seed": 0})
    _add_run(store, rng, _OLD, EXAMPLES, 0)
    for turn in range(1, RUNS):
        prompts = {"answer": f"Answer. {turn // 2} {_text(random.Random(turn // 2), 300)}"}
        store.set_prompts(prompts)
        _add_run(store, rng, prompts, EXAMPLES if turn == RUNS - 1 else 100, turn)
        store.record_iteration(_text(rng, 80), _text(rng, 200), _text(rng, 400), seconds=1.0)
    return store


def _end(store: RunStore) -> None:
    prompts = store.prompts() or _OLD
    AgentOutcome(prompts, None, "", "submitted").record(store)
    Choice(prompts, None, "the agent submitted it").record(store)
    Outcome(None, {}, None, {}).record(store)


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _read_all(store: StoreReader) -> None:
    for run in store.runs():
        for _ in store.each_example(run.run_id):
            pass


def _row(name: str, ours: float, theirs: float, target: float, note: str) -> dict[str, Any]:
    return {
        "name": name,
        "ours": ours * 1e3,
        "theirs": theirs * 1e3,
        "ratio": ours / theirs,
        "target": target,
        "note": note,
    }


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    with tempfile.TemporaryDirectory() as name:
        path, page = Path(name) / "runs-0001.sqlite", Path(name) / "report.html"
        with filled(path) as writing, StoreReader.open(path) as store:
            theirs = _timed(lambda: _read_all(store))
            reader = DocumentReader(store)
            first = _timed(reader.read)
            again = _timed(reader.read)
            rng, prompts = random.Random(2), {"answer": "another"}
            _add_run(writing, rng, prompts, 100, RUNS)
            news = _timed(reader.read)
            _end(writing)
            written = _timed(lambda: write_report(store, page))
            size = page.stat().st_size
            tracemalloc.start()
            write_report(store, page)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        in_memory = path.stat().st_size
    of = f"of {EXAMPLES} examples and {RUNS} runs"
    memory = _row("the report's memory", peak / 1e9, in_memory / 1e9, 0.2, "theirs is the size of the store")
    return [
        _row("the document", first, theirs, 2.0, f"{of}; theirs is reading all results"),
        _row("the document again", again, theirs, 0.1, "nothing has changed"),
        _row("the document after a run of 100", news, theirs, 0.1, "another run has ended"),
        _row("the report", written, theirs, 40.0, f"written to a file of {size / 1e6:.0f} MB"),
        {**memory, "unit": "MB"},
    ]


if __name__ == "__main__":
    for row in run():
        print(
            f"{row['name']:34} ours {row['ours']:9.1f}  theirs {row['theirs']:9.1f} {row.get('unit', 'ms')}  "
            f"ratio {row['ratio']:.4f}  ({row['note']})"
        )
