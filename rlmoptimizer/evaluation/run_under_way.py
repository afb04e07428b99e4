"""A run under way: which it is, who waits for it, what of it is still to be done, and its totals so far."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rlmoptimizer.evaluation.row_runner import Detail
from rlmoptimizer.evaluation.run_price import RunPrice
from rlmoptimizer.evaluation.run_request import Request
from rlmoptimizer.records import PASSED_AT, ExampleResult
from rlmoptimizer.task.dataset import Row

__all__ = ["AgentKernel", "Caller", "RunUnderWay"]


@dataclass(slots=True)
class AgentKernel:
    """What ends with a kernel of the agent."""

    gone: threading.Event = field(default_factory=threading.Event)  # nobody waits for answers any more
    given: set[str] = field(default_factory=set[str])  # finished runs whose answers it got in this turn
    turns: int = 0  # that have ended


@dataclass(frozen=True, slots=True)
class Caller:
    """Who waits for the answer: a kernel of the agent in one of its turns; by default the host itself."""

    kernel: AgentKernel = field(default_factory=AgentKernel)
    turn: int = 0

    @property
    def is_gone(self) -> bool:
        return self.kernel.gone.is_set()


@dataclass(slots=True)
class RunUnderWay:
    """One run under way. The totals count rollouts, and are added by one thread at a time."""

    run_id: str
    request: Request
    rows: tuple[Row, ...]  # the rollouts that have no verdict yet
    price: RunPrice
    caller: Caller
    baseline: bool = False
    done: int = 0
    total: int = field(init=False)  # what it will have done in the end
    passed: int = 0
    score_sum: float = 0.0

    def __post_init__(self) -> None:
        self.total = self.done + len(self.rows)

    @property
    def may_be_cut(self) -> bool:
        """Whether it ends early when nobody waits for it any more."""
        return self.request.split == "train" or (self.baseline and self.request.split == "val")

    @property
    def detail(self) -> Detail:
        """How much of its examples is kept: all of the baseline on train, next to nothing beside the results of val."""
        if self.request.split != "train":
            return "totals"
        return "requests" if self.price.units is None else "rows"

    def start_from(self, scores: Mapping[str, Sequence[float]]) -> None:
        """Count what it has already: the scores of each example."""
        self._count([score for of_one in scores.values() for score in of_one])
        self.total = self.done + len(self.rows)

    def add(self, results: Iterable[ExampleResult]) -> None:
        self._count([result.score for result in results if result.has_verdict])

    def _count(self, scores: Sequence[float]) -> None:
        self.done += len(scores)
        self.passed += sum(score >= PASSED_AT for score in scores)
        self.score_sum += sum(scores)
