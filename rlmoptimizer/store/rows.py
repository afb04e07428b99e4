"""The records of the run store as rows of its tables, and the queries that read them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, TypeVar

from rlmoptimizer.errors import StoreCorrupt
from rlmoptimizer.records import EventRecord, ExampleResult, IterationRecord, RunRecord, StepTrace
from rlmoptimizer.store.json_text import decode, encode

__all__ = [
    "LM_USAGE",
    "RESULTS",
    "RESULTS_WITHOUT_STEPS",
    "RESULT_HEADS",
    "RUNS",
    "as_column",
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
SELECT number, run_id, split, baseline, config, candidates.prompts, candidate, turn, answered, planned,
    repeats, state, evaluated, passed, errors, truncated, judged, unanswered, reused, score, standard_error,
    objectives, budget_left, started_at, finished_at
FROM runs JOIN candidates ON candidates.id = candidate
"""
RESULTS: Final = """
SELECT example_id, rollout, score, passed, error_kind, origin, seconds, objectives, source_example_id, error, feedback,
    inputs, expected, predicted, steps
FROM results JOIN details ON details.id = detail
"""
# The same without what is large and seldom looked at.
RESULT_HEADS: Final = RESULTS.replace("inputs, expected, predicted, steps", "inputs, '{}', 'null', '[]'")
RESULTS_WITHOUT_STEPS: Final = RESULTS.replace("predicted, steps", "predicted, '[]'")
# Fields of a step that most steps lack, and the value of those that lack them.
_STEP_EXTRAS: Final = tuple((field.name, field.default) for field in fields(StepTrace)[5:])
# A row holds the role, then the fields of `RoleUsage` in their order.
LM_USAGE: Final = """
SELECT role, COUNT(*), SUM(outcome = 'cached'),
       SUM(outcome = 'answered' AND prompt_tokens IS NULL AND completion_tokens IS NULL), SUM(cost IS NULL),
       SUM(COALESCE(prompt_tokens, 0)), SUM(COALESCE(completion_tokens, 0)), SUM(COALESCE(cost, 0))
FROM lm_calls GROUP BY role
"""


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


def _more(step: StepTrace) -> list[dict[str, Any]]:
    """What a step has beside that which every step has."""
    more = {name: value for name, default in _STEP_EXTRAS if (value := getattr(step, name)) != default}
    return [more] if more else []


def detail_row(result: ExampleResult) -> tuple[Any, ...]:
    """The columns of `details` after its id."""
    steps = [[step.step_name, step.signature_name, step.inputs, step.outputs, *_more(step)] for step in result.steps]
    return (
        _optional_column(result.source_example_id),
        _optional_column(result.error),
        _optional_column(result.feedback),
        *(as_column(encode(value)) for value in (result.inputs, result.expected, result.predicted, steps)),
    )


def example_result(row: tuple[Any, ...]) -> ExampleResult:
    """A row of `RESULTS` as it was given to the store."""
    example_id, rollout, score, passed, kind, origin, seconds, objectives, source, error, feedback, *documents = row
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
        steps=tuple(StepTrace(index, *step[:4], **dict(*step[4:])) for index, step in enumerate(steps)),
        seconds=seconds,
        rollout=rollout,
        objectives=None if objectives is None else decode(from_column(objectives)),
        reused=origin is not None,
    )


def iteration_record(row: tuple[Any, ...]) -> IterationRecord:
    number, reasoning, code, output, seconds, at = row
    return IterationRecord(number, from_column(reasoning), from_column(code), _optional_text(output), seconds, at)


def event_record(row: tuple[Any, ...]) -> EventRecord:
    number, kind, data, at = row
    return EventRecord(number, from_column(kind), decode(from_column(data)), at)


def run_record(row: tuple[Any, ...]) -> RunRecord:
    """A row of `RUNS`, its totals filled in."""
    _, run_id, split, baseline, config, prompts, candidate, turn, answered, planned, repeats, state, *rest = row
    evaluated, passed, errors, truncated, judged, unanswered, reused, *rest = rest
    score, standard_error, objectives, *ended = rest
    budget_left, started_at, finished_at = ended
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
        repeats=repeats,
        state=state,
        score=score,
        standard_error=standard_error,
        objectives={} if objectives is None else decode(from_column(objectives)),
        evaluated_count=evaluated,
        passed_count=passed,
        error_count=errors,
        truncated_count=truncated,
        judged_count=judged,
        unanswered_count=unanswered,
        reused_count=reused,
        budget_left=budget_left,
        started_at=started_at,
        finished_at=finished_at,
    )
