"""The quality benchmark on a toy task: models that answer in this process, and a person who answers in files.

It makes the package `quality` of the folder bench/ importable: import it first.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import offline
import toy
from dspy import lm15

BENCH = Path(__file__).resolve().parents[2] / "bench"
sys.path.insert(0, str(BENCH))
try:
    from quality.metered_lm import CallLog, MeteredLM
    from quality.models import ModelNames, opened_models
    from quality.results import Result
    from quality.run import Conditions, run_arm
    from quality.task import Task
finally:
    sys.path.remove(str(BENCH))

ROWS = 12
BUDGET = 80
SUBMISSION = f"SUBMIT(optimized_dspy_program={{'topic': {toy.FIX!r}, 'reply': 'Answer by the topic.'}})"


def five_argument_metric(
    gold: dspy.Example, prediction: dspy.Prediction, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> dspy.Prediction:
    return toy.metric(gold, prediction)


def toy_task(*, rows: int = ROWS, metric: Callable[..., Any] = five_argument_metric) -> Task:
    return Task(
        name="toy",
        description="Answers a message by its topic.",
        program=toy.Triage(),
        metric=metric,
        train=[toy.example(number) for number in range(rows)],
        val=[toy.example(number) for number in range(100, 100 + rows)],
        test=[toy.example(number) for number in range(200, 200 + rows)],
        hand_written={"topic": toy.FIX},
    )


class InProcess:
    """Models that answer in this process: the program by toy's rules, the proposer with the right prompt."""

    def __init__(self, turns: tuple[offline.Turn, ...] = (SUBMISSION,)) -> None:
        self.engines: dict[str, offline.Engine] = {
            "eval": offline.Engine(_evaluated),
            "test": offline.Engine(_evaluated),
        }
        self._root = offline.ScriptedRootLM(list(turns), idle=SUBMISSION)

    def of_run(self, run: str, log: CallLog) -> Callable[[str], dspy.LM]:
        def lm(role: str) -> dspy.LM:
            made = self._root.engine if role == "root" else offline.Engine(right_proposal)
            engine = self.engines.setdefault(role, made)
            asynchronous = offline.AsyncEngine(engine)
            return MeteredLM(
                f"offline/{role}",
                role=role,
                log=log,
                engine=engine,
                async_engine=asynchronous,
                cache=False,
                num_retries=0,
            )

        return lm

    def calls(self, role: str) -> int:
        return self.engines[role].calls if role in self.engines else 0


def _evaluated(request: lm15.Request) -> str:
    return offline.fields_text(toy.respond(offline.asked(request)))


def right_proposal(request: lm15.Request) -> str:
    question = offline.asked(request)
    outputs = dict.fromkeys(question.outputs, toy.FIX)
    return json.dumps(outputs) if "JSON object" in question.text else offline.fields_text(outputs)


def conditions(out: Path, **changed: Any) -> Conditions:
    ours = {"kernel": toy.KERNEL, "rlm_max_iterations": 4}
    return replace(Conditions(out, BUDGET, 4, "stand-in", "nobody", ours), **changed)


def made(arm: str, out: Path, *, models: InProcess | None = None, task: Task | None = None) -> Result:
    result = run_arm(task or toy_task(), arm, 0, conditions(out), models or InProcess())
    assert result is not None
    return result


def answering(directory: Path, answer: Callable[[str], str], stop: threading.Event) -> threading.Thread:
    """A person: answers every request below a directory as it appears. The directory may appear, and go, meanwhile."""

    def work() -> None:
        while not stop.wait(0.02):
            with contextlib.suppress(FileNotFoundError):
                for request in directory.rglob("*.request.md"):
                    answer_one(request)

    def answer_one(request: Path) -> None:
        answered = request.with_name(request.name.replace(".request.", ".answer."))
        if not answered.exists():
            part = answered.with_name(f"{answered.name}.part")
            part.write_text(answer(request.read_text("utf-8")), encoding="utf-8")
            part.rename(answered)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def proposal(request: str) -> str:
    """What a person answers to any arm."""
    if "JSON object" in request:
        return json.dumps({"new_instruction": toy.FIX})
    outputs: dict[str, str] = {"reasoning": "one word", "code": SUBMISSION}
    if "instruction_1" in request:
        outputs = {"reasoning": "one word", "instruction_1": toy.FIX, "instruction_2": "Answer."}
    return offline.fields_text(outputs)


class AskedInFiles(InProcess):
    """The program runs in this process, and a directory proposes."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        super().__init__()
        self._named = ModelNames(eval="offline/eval", root=f"files:{directory}", answer_seconds=seconds)

    def of_run(self, run: str, log: CallLog) -> Callable[[str], dspy.LM]:
        with opened_models(self._named, threads=4) as models:
            in_files, in_process = models.of_run(run, log), super().of_run(run, log)
        return lambda role: in_process(role) if role in ("eval", "test") else in_files(role)
