"""The records that flow between the evaluation, the ledgers, the run store and its readers. No dspy, no SQL.

Scores are fractions 0..1, times are seconds, amounts of money are whole picodollars: sums of them are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final, Literal, TypeAlias

__all__ = [
    "EXAMPLE_TIMEOUT",
    "LM_FAILURES",
    "METRIC_ERRORS",
    "PASSED_AT",
    "ROLES",
    "WORKER_LOST",
    "CandidateRecord",
    "Charge",
    "EventRecord",
    "ExampleResult",
    "IterationRecord",
    "LMCall",
    "Role",
    "RoleUsage",
    "Rollout",
    "RunRecord",
    "StepTrace",
    "combined",
    "dollars",
    "mean",
    "picodollars",
    "rollouts_of",
    "total_usd",
    "usage_dict",
]

Role: TypeAlias = Literal["root", "sub", "eval"]
ROLES: Final[tuple[Role, ...]] = ("root", "sub", "eval")

METRIC_ERRORS: Final = frozenset({"metric", "score"})  # error kinds of an example: the metric raised, or gave no score
LM_FAILURES: Final = frozenset(
    {
        "rate_limit",
        "timeout",
        "transport",  # no connection, or a broken one
        "server",  # 5xx
        "lock_timeout",
        "auth",
        "billing",
        "not_configured",
        "configuration",
        "unsupported_model",
    }
)
"""Kinds of errors that say nothing about the program: an LM could not be reached, or would not serve us."""

PASSED_AT: Final = 1.0 - 1e-9
"""An example passed when its score is at least this."""

Rollout: TypeAlias = tuple[str, int]
"""One of the evaluations of an example in a run: the example's id, and 0 for the first, 1 for the second, ..."""

EXAMPLE_TIMEOUT: Final = "example_timeout"
"""The kind of the error of an example that took longer than the limit of that name. It has a verdict: a score of 0."""

WORKER_LOST: Final = "worker_lost"
"""The kind of the error of an example whose worker process died, twice. It has a verdict: a score of 0."""

_PICO: Final = 10**12
_MOST_USD: Final = 1e6  # a larger figure is a mistake


# What becomes of an example.


@dataclass(frozen=True, slots=True)
class StepTrace:
    """One call of one predictor."""

    step_index: int  # 0-based, in the order in which the calls ended
    step_name: str  # the name that `update_prompt` takes
    signature_name: str
    inputs: dict[str, Any]  # plain values, as they were when the call began
    outputs: dict[str, Any]  # plain values, as they were when it ended; {} when it failed
    error: str | None = None  # "ExceptionType: message"; None: it did not fail
    completion: str | None = None  # what its LM wrote, where the call failed, was cut or left an output empty
    first_completion: str | None = None  # what its LM wrote before it was asked again; None: it was asked once
    feedback: str | None = None  # what the metric says about this step; None: nothing of its own
    truncated: bool = False  # an answer of its LM was cut at the limit of tokens
    request: dict[str, Any] | None = None  # what its LM was sent and wrote; None: that is not kept of this call

    @property
    def is_answered(self) -> bool:
        """Whether it shows anything that came out of the call."""
        return self.error is None or self.completion is not None

    def as_row(self) -> dict[str, Any]:
        """The agent-facing dict, without the request; what comes after `outputs` only where there is some."""
        some = {
            "error": self.error,
            "completion": self.completion,
            "first_completion": self.first_completion,
            "feedback": self.feedback,
            "truncated": self.truncated or None,
        }
        return {
            "step_index": self.step_index,
            "step_name": self.step_name,
            "signature_name": self.signature_name,
            "inputs": self.inputs,
            "outputs": self.outputs,
            **{key: value for key, value in some.items() if value is not None},
        }


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """What became of one rollout of one example: one run of the program on it, and the metric's verdict.

    All values are plain: None, bool, int, float, str, bytes, list, dict.
    """

    example_id: str
    source_example_id: str | None
    inputs: dict[str, Any]
    expected: dict[str, Any]  # the example's other fields
    predicted: Any  # a dict for a dspy.Prediction; None when the program raised
    score: float  # 0..1; 0.0 in an error row
    passed: bool
    error: str | None  # "ExceptionType: message"; None: no error
    # None: no error; "program", "metric", "score", EXAMPLE_TIMEOUT, WORKER_LOST, or DSPy's code of an LM's failure.
    error_kind: str | None
    feedback: str | None
    steps: tuple[StepTrace, ...]  # those that ended before the program did, also those that failed
    seconds: float  # program and metric together
    rollout: int = 0  # 0-based; always 0 unless the run repeats its examples
    objectives: dict[str, float] | None = None  # name -> number, on the metric's own scale; None: it gave none
    reused: bool = False  # it was taken over from another run, so it was not paid in this one
    scores: tuple[float, ...] = ()  # in the order of the rollouts, in what `combined` made of several

    @property
    def has_verdict(self) -> bool:
        """False: an LM failed, so the example is neither right nor wrong."""
        return self.error_kind not in LM_FAILURES

    @property
    def is_truncated(self) -> bool:
        """Whether an answer of an LM to one of its steps was cut at the limit of tokens."""
        return any(step.truncated for step in self.steps)

    @property
    def shows_answers(self) -> bool:
        """Whether it shows any output of the program or of one of its steps; such an example is paid for."""
        return self.predicted is not None or any(step.is_answered for step in self.steps)

    def as_row(self) -> dict[str, Any]:
        """The agent-facing dict, `steps` as dicts.

        Without `seconds` and `rollout`; `error_kind`, `scores`, `objectives` and `reused` only where there is one.
        """
        told = not self.has_verdict or self.error_kind in (EXAMPLE_TIMEOUT, WORKER_LOST)
        failure = {"error_kind": self.error_kind} if told else {}
        return {
            "example_id": self.example_id,
            "source_example_id": self.source_example_id,
            "inputs": self.inputs,
            "expected": self.expected,
            "predicted": self.predicted,
            "score": self.score,
            **({"scores": list(self.scores)} if self.scores else {}),
            **({"objectives": dict(self.objectives)} if self.objectives else {}),
            "passed": self.passed,
            **({"reused": True} if self.reused else {}),
            "error": self.error,
            **failure,
            "feedback": self.feedback,
            "steps": [step.as_row() for step in self.steps],
        }


def combined(rollouts: Sequence[ExampleResult]) -> ExampleResult:
    """The rollouts of one example, at least one, as one result.

    `score` and `objectives` are means over those that have a verdict; it passed when all of these did. What it shows
    beside them is of the one with the lowest score, the first of equals. `seconds` is the sum.
    """
    judged = [one for one in rollouts if one.has_verdict]
    shown = min(judged or rollouts, key=lambda one: (one.score, one.rollout))
    objectives: dict[str, list[float]] = {}
    for one in judged:
        for name, score in (one.objectives or {}).items():
            objectives.setdefault(name, []).append(score)
    return replace(
        shown,
        score=mean([one.score for one in judged]) if judged else shown.score,
        passed=bool(judged) and all(one.passed for one in judged),
        seconds=math.fsum(one.seconds for one in rollouts),
        objectives={name: mean(scores) for name, scores in objectives.items()} or None,
        reused=all(one.reused for one in rollouts),
        scores=tuple(one.score for one in judged),
    )


def rollouts_of(example_ids: Sequence[str], repeats: int) -> Iterator[Rollout]:
    """Each example `repeats` times, in the order of the work: all of them once, then all again."""
    return ((example_id, number) for number in range(repeats) for example_id in example_ids)


def mean(values: Sequence[float]) -> float:
    """Of at least one; exact, so it does not depend on their order."""
    return math.fsum(values) / len(values)


# What is spent.


@dataclass(frozen=True, slots=True)
class Charge:
    """One settled amount."""

    amount: int  # budget units, >= 1
    purpose: str  # "evaluate", "llm_query", ...


@dataclass(frozen=True, slots=True)
class LMCall:
    """One call of an LM that was answered."""

    role: Role
    model: str
    outcome: Literal["answered", "cached"]  # "cached": by DSPy's cache, so nothing was asked or billed
    prompt_tokens: int | None  # None: not reported
    completion_tokens: int | None  # None: not reported
    cost: int | None  # picodollars; None: the price is not known


@dataclass(frozen=True, slots=True)
class RoleUsage:
    """What the calls of one role amount to."""

    calls: int = 0  # that were answered, those from the cache included
    cached_calls: int = 0  # of these: from the cache
    unreported_calls: int = 0  # of these: the provider said nothing of tokens
    unpriced_calls: int = 0  # of these: the price is not known
    prompt_tokens: int = 0  # as far as reported
    completion_tokens: int = 0  # as far as reported
    cost: int = 0  # picodollars, as far as known

    @classmethod
    def of(cls, call: LMCall) -> RoleUsage:
        answered = call.outcome == "answered"
        return cls(
            calls=1,
            cached_calls=int(not answered),
            unreported_calls=int(answered and call.prompt_tokens is None and call.completion_tokens is None),
            unpriced_calls=int(call.cost is None),
            prompt_tokens=call.prompt_tokens or 0,
            completion_tokens=call.completion_tokens or 0,
            cost=call.cost or 0,
        )

    def __add__(self, other: RoleUsage) -> RoleUsage:
        return RoleUsage(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    @property
    def priced_calls(self) -> int:
        """Calls that a provider answered at a known price."""
        return self.calls - self.cached_calls - self.unpriced_calls

    @property
    def cost_usd(self) -> float | None:
        """Dollars; None when the price of any call is not known."""
        return None if self.unpriced_calls else dollars(self.cost)

    def as_dict(self) -> dict[str, Any]:
        """What people and events get. Tokens are None when calls were answered and none of them reported any."""
        asked = self.calls - self.cached_calls
        silent = 0 < asked == self.unreported_calls
        return {
            "calls": self.calls,
            "cached_calls": self.cached_calls,
            "prompt_tokens": None if silent else self.prompt_tokens,
            "completion_tokens": None if silent else self.completion_tokens,
            "cost_usd": self.cost_usd,
            "known_cost_usd": dollars(self.cost),
            "unpriced_calls": self.unpriced_calls,
        }


def usage_dict(usage: Mapping[Role, RoleUsage]) -> dict[str, dict[str, Any]]:
    """Usage by role as people and events get it."""
    return {role: used.as_dict() for role, used in usage.items()}


def total_usd(usage: Mapping[Role, RoleUsage]) -> float | None:
    """Dollars of all roles together; None when any price is not known."""
    return sum(usage.values(), RoleUsage()).cost_usd


def picodollars(usd: object) -> int | None:
    """A figure in dollars as a whole number of picodollars (1e-12 dollars); None for what is no amount."""
    if isinstance(usd, bool) or not isinstance(usd, (int, float)) or not 0 <= usd < _MOST_USD:
        return None
    return round(usd * _PICO)


def dollars(amount: int) -> float:
    """Picodollars as dollars."""
    return amount / _PICO


# What the run store keeps.


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One evaluation."""

    run_id: str  # "r1", "r2", ... in the order of their beginning
    split: str  # "train", "val" or "test"
    baseline: bool
    config: dict[str, Any]  # the selection, as the agent gets it back
    prompts: dict[str, str]  # the prompts that were evaluated
    candidate: str  # their id; equal prompts have the same
    turn: int  # of the agent, in which it was asked for; 0: before the first
    answered: bool  # the agent has its result; else the same request would take it over
    planned_count: int  # examples chosen
    repeats: int  # rollouts of each example, >= 1
    state: str  # "running", "finished", "cancelled" (cut; can be continued) or "failed" (cannot)
    score: float | None  # mean of the evaluated examples' means, 0..1; None: none yet
    standard_error: float | None  # of `score`, over the examples; None: fewer than two
    objectives: dict[str, float]  # name -> mean, as `score`; {}: the metric gave none
    evaluated_count: int  # examples that have a verdict, at least on one of their rollouts
    passed_count: int  # of these: every verdict is a pass
    error_count: int  # of these: at least one verdict is on an error
    truncated_count: int  # of these: in at least one rollout an LM's answer was cut at its limit
    judged_count: int  # rollouts that have a verdict; with repeats == 1 as many as `evaluated_count`
    unanswered_count: int  # rollouts of which an LM call failed: they have a row, but no verdict
    reused_count: int  # of the judged ones: taken over from another run, so not paid here
    budget_left: int | None  # units left after it; None: it has not ended, or nobody told
    started_at: float  # Unix time
    finished_at: float | None

    @property
    def missing_count(self) -> int:
        """Rollouts that were planned and have no verdict."""
        return self.planned_count * self.repeats - self.judged_count

    def covers(self, split: str, examples: int) -> bool:
        """Whether it has ended with a verdict on each of the `examples` of a split."""
        return self.state == "finished" and self.split == split and self.evaluated_count == examples


@dataclass(frozen=True, slots=True)
class CandidateRecord:
    """One map of prompts that was evaluated or set."""

    candidate: str  # its id
    parent: str | None  # the candidate that was set when it came up; None: there was none
    prompts: dict[str, str]
    at: float  # Unix time


@dataclass(frozen=True, slots=True)
class IterationRecord:
    """One turn of the agent."""

    number: int  # 1-based
    reasoning: str
    code: str
    output: str | None  # None: it was begun and has not ended
    seconds: float | None  # the root LM's thinking included; None: nobody told
    at: float  # Unix time of its end, or its beginning while it has none


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Anything else worth keeping."""

    number: int  # 1-based
    kind: str
    data: dict[str, Any]
    at: float  # Unix time
