"""What a check of a setup found, as data. Imports no DSPy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlmoptimizer.check.report_text import as_html, as_text

__all__ = [
    "BudgetFound",
    "CheckReport",
    "Estimate",
    "ExampleTried",
    "KernelFound",
    "LMAsked",
    "MetricFound",
    "SplitFound",
    "StepFound",
]


@dataclass(frozen=True, slots=True)
class StepFound:
    """A step whose prompt can be changed."""

    name: str
    prompt_chars: int
    model: str | None  # that answers it; None: not known


@dataclass(frozen=True, slots=True)
class LMAsked:
    """An LM, and whether it answers. It was asked for one word, or has answered the program."""

    roles: tuple[str, ...]  # "root", "sub", "eval"
    model: str
    error: str | None  # why it did not answer; None: it did
    error_kind: str | None  # one of DSPy's codes of failures, or "unknown"; None: it answered
    seconds: float | None  # None: it was not asked by itself
    is_priced: bool | None  # whether DSPy knows what the call cost; None: it did not answer


@dataclass(frozen=True, slots=True)
class ExampleTried:
    """An example of train that was run."""

    example_id: str
    score: float | None  # 0..1; None: no verdict, because an LM failed
    error: str | None
    error_kind: str | None  # as in `ExampleResult`
    seconds: float  # program and metric together
    has_feedback: bool


@dataclass(frozen=True, slots=True)
class MetricFound:
    """What was seen of the metric."""

    name: str
    compared: int  # predictions on which it was called twice and gave a score both times
    differing: int  # of these: the two scores differ
    lowest: float | None  # 0..1; None: it gave no score
    highest: float | None
    gives_feedback: bool


@dataclass(frozen=True, slots=True)
class SplitFound:
    """One data set."""

    name: str  # "train", "val" or "test"
    examples: int
    repeated: int  # examples that stand in it before
    repeated_inputs: int  # examples whose inputs stand in it before, with these or with other labels
    shared: Mapping[str, int]  # other split -> examples of this one that are in that too
    shared_inputs: Mapping[str, int]  # the same by their inputs alone


@dataclass(frozen=True, slots=True)
class BudgetFound:
    """What the budget pays for; units are examples evaluated once."""

    units: int
    val_runs: int | None  # runs of all of val if nothing else is paid; None: there is no val
    train_runs: int  # runs of all of train once val has been paid


@dataclass(frozen=True, slots=True)
class Estimate:
    """What so many evaluations may take, going by those that were tried. None: not known."""

    examples: int  # evaluations
    calls: int | None  # LM calls
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_usd: float | None
    seconds: float | None  # on `num_threads` threads


@dataclass(frozen=True, slots=True)
class KernelFound:
    """What the agent's code would run under here."""

    summary: str
    missing: Mapping[str, str]  # guarantee -> why it is not given


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `optimizer.check(...)` found. Prints, and shows itself in a notebook. What could not be looked at is None.

    `problems` are what `compile` would fail on or make nothing of, `warnings` what it would work with; each says what
    to do.
    """

    program: str  # the name of its class
    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    steps: tuple[StepFound, ...]
    lms: tuple[LMAsked, ...]
    examples: tuple[ExampleTried, ...]
    metric: MetricFound | None
    splits: tuple[SplitFound, ...]
    budget: BudgetFound | None
    baseline: Estimate | None  # of train and val, before the agent begins
    at_most: Estimate | None  # of all: the baseline, a test set twice, and every unit spent on an example
    kernel: KernelFound | None
    usage: Mapping[str, Mapping[str, Any]]  # of the check itself: by role, as in an `OptimizationResult`

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON holds it."""
        return {"ok": self.ok, **asdict(self)}

    def __str__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return as_html(self)
