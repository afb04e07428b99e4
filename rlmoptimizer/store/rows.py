"""What the run store holds, as records and as rows of its tables. Knows no database."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from rlmoptimizer.errors import StoreCorrupt
from rlmoptimizer.evaluation.row_runner import ExampleResult, StepTrace
from rlmoptimizer.store.json_text import decode, encode

__all__ = [
    "LM_USAGE",
    "RESULTS",
    "RUNS",
    "CandidateRecord",
    "EventRecord",
    "IterationRecord",
    "RunRecord",
    "as_column",
    "best_run",
    "decoded",
    "detail_row",
    "event_record",
    "example_result",
    "from_column",
    "iteration_record",
    "run_record",
]

_T = TypeVar("_T")

RUNS: Final = """
SELECT number, run_id, split, baseline, config, candidates.prompts, candidate, turn, answered, planned, state,
    evaluated, passed, errors, unanswered, reused, score, budget_left, started_at, finished_at
FROM runs JOIN candidates ON candidates.id = candidate
"""
RESULTS: Final = """
SELECT example_id, score, passed, error_kind, seconds, source_example_id, error, feedback, inputs, expected, predicted,
    steps
FROM results JOIN details ON details.id = detail
"""
# A row holds the role, then the fields of `RoleUsage` in their order.
LM_USAGE: Final = """
SELECT role, COUNT(*), SUM(outcome = 'cached'),
       SUM(outcome = 'answered' AND prompt_tokens IS NULL AND completion_tokens IS NULL), SUM(cost IS NULL),
       SUM(COALESCE(prompt_tokens, 0)), SUM(COALESCE(completion_tokens, 0)), SUM(COALESCE(cost, 0))
FROM lm_calls GROUP BY role
"""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One evaluation."""

    run_id: str  # "r1", "r2", ... in the order of their beginning
    split: str  # "train" or "val"
    baseline: bool
    config: dict[str, Any]  # the selection, as the agent gets it back
    prompts: dict[str, str]  # the prompts that were evaluated
    candidate: str  # their id; equal prompts have the same
    turn: int  # of the agent, in which it was asked for; 0: before the first
    answered: bool  # the agent has its result; else the same request would take it over
    planned_count: int  # examples chosen
    state: str  # "running", "finished", "cancelled" (cut; can be continued) or "failed" (cannot)
    score: float | None  # mean over the evaluated examples, 0..1; None: none yet
    evaluated_count: int  # examples that have a verdict
    passed_count: int
    error_count: int  # of the evaluated ones
    unanswered_count: int  # examples of which an LM call failed: they have a row, but no verdict
    reused_count: int  # of the evaluated ones: taken over from a run that was cut, so not paid here
    budget_left: int | None  # units left after it; None: it has not ended, or nobody told
    started_at: float  # Unix time
    finished_at: float | None


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


def best_run(records: Iterable[RunRecord], split: str, examples: int) -> RunRecord | None:
    """The finished run over all `examples` of `split` with the best score; None: there is none.

    The earliest one of equals, so a change that gains nothing never replaces what was there.
    """
    whole = [
        record
        for record in records
        if record.state == "finished" and record.split == split and record.evaluated_count == examples
    ]
    return max(whole, key=lambda record: record.score or 0.0, default=None)


def decoded(make: Callable[[tuple[Any, ...]], _T], rows: Iterable[tuple[Any, ...]], path: Path) -> list[_T]:
    """What `make` makes of rows of the store at `path`. Raises `StoreCorrupt` when one does not hold what it should."""
    try:
        return [make(row) for row in rows]
    except (ValueError, TypeError) as error:
        raise StoreCorrupt(str(path), f"a row does not hold what it should: {error}") from error


def as_column(text: str) -> str | bytes:
    """What SQLite can hold: it refuses text with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(column: str | bytes) -> str:
    return column if isinstance(column, str) else column.decode("utf-8", "surrogatepass")


def _optional_column(text: str | None) -> str | bytes | None:
    return None if text is None else as_column(text)


def _optional_text(column: str | bytes | None) -> str | None:
    return None if column is None else from_column(column)


def detail_row(result: ExampleResult) -> tuple[Any, ...]:
    """The columns of `details` after its id."""
    steps = [
        [step.step_name, step.signature_name, step.inputs, step.outputs]
        + ([] if step.error is None else [step.error, step.completion])
        for step in result.steps
    ]
    return (
        _optional_column(result.source_example_id),
        _optional_column(result.error),
        _optional_column(result.feedback),
        *(as_column(encode(value)) for value in (result.inputs, result.expected, result.predicted, steps)),
    )


def example_result(row: tuple[Any, ...]) -> ExampleResult:
    """A row of `RESULTS` as it was given to the store."""
    example_id, score, passed, kind, seconds, source, error, feedback, *documents = row
    inputs, expected, predicted, steps = (decode(from_column(document)) for document in documents)
    return ExampleResult(
        example_id=example_id,
        source_example_id=_optional_text(source),
        inputs=inputs,
        expected=expected,
        predicted=predicted,
        score=score,
        passed=bool(passed),
        error=_optional_text(error),
        error_kind=kind,
        feedback=_optional_text(feedback),
        steps=tuple(StepTrace(index, *step) for index, step in enumerate(steps)),
        seconds=seconds,
    )


def iteration_record(row: tuple[Any, ...]) -> IterationRecord:
    number, reasoning, code, output, seconds, at = row
    return IterationRecord(number, from_column(reasoning), from_column(code), _optional_text(output), seconds, at)


def event_record(row: tuple[Any, ...]) -> EventRecord:
    number, kind, data, at = row
    return EventRecord(number, from_column(kind), decode(from_column(data)), at)


def run_record(row: tuple[Any, ...]) -> RunRecord:
    """A row of `RUNS`, its totals filled in."""
    _, run_id, split, baseline, config, prompts, candidate, turn, answered, planned, state, *rest = row
    evaluated, passed, errors, unanswered, reused, score, budget_left, started_at, finished_at = rest
    return RunRecord(
        run_id=run_id,
        split=split,
        baseline=bool(baseline),
        config=decode(from_column(config)),
        prompts=decode(from_column(prompts)),
        candidate=candidate,
        turn=turn,
        answered=bool(answered),
        planned_count=planned,
        state=state,
        score=score,
        evaluated_count=evaluated,
        passed_count=passed,
        error_count=errors,
        unanswered_count=unanswered,
        reused_count=reused,
        budget_left=budget_left,
        started_at=started_at,
        finished_at=finished_at,
    )
