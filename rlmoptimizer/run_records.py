"""What the run store holds, as records and as rows of its tables. Knows no database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from .candidate import ExampleResult, StepTrace
from .stored_json import decode, encode

__all__ = [
    "LM_USAGE",
    "RESULT_COLUMNS",
    "RUNS",
    "EventRecord",
    "IterationRecord",
    "RunRecord",
    "as_column",
    "event_record",
    "example_result",
    "from_column",
    "result_row",
    "run_record",
]

_RUN_COLUMNS: Final = (
    "run_id, split, baseline, config, prompts, planned_ids, state, budget_left, started_at, finished_at, "
    "COUNT(example_id), TOTAL(score), TOTAL(passed), COUNT(error)"
)
RUNS: Final = f"SELECT {_RUN_COLUMNS} FROM runs LEFT JOIN results ON run = number"
RESULT_COLUMNS: Final = (
    "run, position, example_id, source_example_id, score, passed, error, error_kind, feedback, seconds, "
    "inputs, expected, predicted, steps"
)
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
    planned_ids: tuple[str, ...]  # example ids chosen, in order
    state: str  # "running", "finished" or "cancelled"
    score: float | None  # mean over the evaluated examples, 0..1; None: none yet
    evaluated_count: int
    passed_count: int
    error_count: int
    budget_left: int | None  # units left after it; None: not finished, or not told
    started_at: float  # Unix time
    finished_at: float | None


@dataclass(frozen=True, slots=True)
class IterationRecord:
    """One turn of the agent."""

    number: int  # 1-based
    reasoning: str
    code: str
    output: str
    at: float  # Unix time


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Anything else worth keeping."""

    number: int  # 1-based
    kind: str
    data: dict[str, Any]
    at: float  # Unix time


def as_column(text: str) -> str | bytes:
    """What SQLite can hold: it refuses text with lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")
    return text


def from_column(column: str | bytes) -> str:
    return column if isinstance(column, str) else column.decode("utf-8", "surrogatepass")


def _optional_text(column: str | bytes | None) -> str | None:
    return None if column is None else from_column(column)


def result_row(number: int, place: int, result: ExampleResult) -> tuple[Any, ...]:
    steps = [[step.step_name, step.signature_name, step.inputs, step.outputs] for step in result.steps]
    return (
        number,
        place,
        result.example_id,
        None if result.source_example_id is None else as_column(result.source_example_id),
        result.score,
        int(result.passed),
        None if result.error is None else as_column(result.error),
        result.error_kind,
        None if result.feedback is None else as_column(result.feedback),
        result.seconds,
        *(as_column(encode(value)) for value in (result.inputs, result.expected, result.predicted, steps)),
    )


def example_result(row: tuple[Any, ...]) -> ExampleResult:
    _, _, example_id, source, score, passed, error, kind, feedback, seconds, *documents = row
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


def event_record(row: tuple[Any, ...]) -> EventRecord:
    number, kind, data, at = row
    return EventRecord(number, from_column(kind), decode(from_column(data)), at)


def run_record(row: tuple[Any, ...]) -> RunRecord:
    run_id, split, baseline, config, prompts, planned_ids, state, budget_left, *rest = row
    started_at, finished_at, count, total, passed, errors = rest
    return RunRecord(
        run_id=run_id,
        split=split,
        baseline=bool(baseline),
        config=decode(from_column(config)),
        prompts=decode(from_column(prompts)),
        planned_ids=tuple(decode(planned_ids)),
        state=state,
        score=total / count if count else None,
        evaluated_count=count,
        passed_count=int(passed),
        error_count=errors,
        budget_left=budget_left,
        started_at=started_at,
        finished_at=finished_at,
    )
