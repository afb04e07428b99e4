"""Evaluations of the toy task on executors, against a provider on loopback: what came of them, and what was counted."""

from __future__ import annotations

import contextvars
import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from typing import Any

import dspy
import pytest
import toy
from offline import Engine, asked, fields_text
from provider import answers_of
from responses_server import ResponsesServer

from rlmoptimizer.evaluation.evaluator import Evaluator
from rlmoptimizer.records import ExampleResult, RoleUsage
from rlmoptimizer.spending.cost_ledger import CostLedger
from rlmoptimizer.spending.usage_meter import UsageMeter
from rlmoptimizer.task.dataset import build_dataset

__all__ = ["Evaluated", "Provider", "forked_pool", "process_pool", "provider"]

MODEL = "openai/gpt-4o-mini"  # whose price DSPy knows


def process_pool(workers: int = 2) -> ProcessPoolExecutor:
    """Its workers begin with what they need imported: DSPy, and the modules of the program and of the metrics."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rlmoptimizer.evaluation.workers.worker", "toy", "deadly"])
    with pytest.MonkeyPatch.context() as patch:  # Python tells the process no path before it imports these
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()
    return ProcessPoolExecutor(workers, context)


def forked_pool(workers: int = 2) -> ProcessPoolExecutor:
    """Its workers are copies of this process as it is when they are needed."""
    return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))


@dataclass(frozen=True)
class Evaluated:
    results: list[ExampleResult]  # in order, without times
    usage: RoleUsage  # that was counted here

    @property
    def kinds(self) -> list[str | None]:
        return [result.error_kind for result in self.results]


class Provider:
    """Serves the toy's model. `asked` is the number of its answers so far."""

    def __init__(self, server: ResponsesServer) -> None:
        self.server = server

    @property
    def asked(self) -> int:
        return len(self.server.answered)

    def lm(self, **options: Any) -> dspy.LM:
        connection = {"api_base": self.server.url, "api_key": "none", "cache": False, "num_retries": 0}
        return dspy.LM(MODEL, **{**connection, **options})

    @contextmanager
    def evaluator(self, metric: Any = toy.metric, *, lm: dspy.LM | None = None, **options: Any) -> Iterator[Any]:
        """An evaluator, and what gives the usage that it has counted."""
        lm = lm or self.lm()
        meter = UsageMeter(CostLedger(), [lm])
        with meter.role("eval"):
            context = contextvars.copy_context()
        with Evaluator(metric, lm, 4, context=context, count=meter.count_heard, **options) as evaluator:
            yield evaluator, lambda: meter.ledger.usage()["eval"]

    def evaluate(
        self,
        metric: Any = toy.metric,
        *,
        rows: int = 8,
        program: dspy.Module | None = None,
        lm: dspy.LM | None = None,
        on_results: Callable[..., None] | None = None,
        detail: Any = "rows",
        **options: Any,
    ) -> Evaluated:
        """`options` are those of the evaluator, the executor among them."""
        with self.evaluator(metric, lm=lm, **options) as (evaluator, usage):
            student = program or toy.Triage()
            train = build_dataset(toy.trainset(rows)).train
            evaluator.prepare(student, train)
            found = evaluator.score(student, train, on_results=on_results, detail=detail)
            return Evaluated([replace(one, seconds=0.0) for one in found], usage())


@contextmanager
def provider() -> Iterator[Provider]:
    engine = Engine(lambda request: fields_text(toy.respond(asked(request))))
    with ResponsesServer(answers_of(engine)) as server:
        yield Provider(server)
