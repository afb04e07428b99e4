"""The evaluations of an optimization as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rlmoptimizer.command_line.table import Column, table_lines
from rlmoptimizer.outcome.state import OptimizationState
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["run_state", "run_table", "score_text", "steps_before"]

_COLUMNS = (
    Column("run"),
    Column("split"),
    Column("examples", right=True),
    Column("score", right=True),
    Column("passed", right=True),
    Column("errors", right=True),
    Column("units", right=True),
    Column("left", right=True, spare=True),
    Column("state"),
    Column("prompts changed", flexible=True),
)


def run_table(store: StoreReader, state: OptimizationState, width: int) -> Iterator[str]:
    """A line for each evaluation of an optimization that is in this state."""
    units = store.units_by_run()
    before = steps_before(store)
    rows = [_row(record, units.get(record.run_id, 0), before, state) for record in store.runs()]
    if not rows:
        yield "no evaluation has begun yet"
        return
    yield from table_lines(_COLUMNS, rows, width)


def score_text(score: float | None) -> str:
    """A fraction as the percentage that people see."""
    return "-" if score is None else f"{100 * score:.2f}"


def steps_before(store: StoreReader) -> dict[str, str]:
    """The prompts of the unchanged program; {}: they are not recorded yet."""
    setup = store.setup()
    return {} if setup is None else setup["student"]["steps"]


def run_state(record: RunRecord, state: OptimizationState) -> str:
    """How a run stands, in a word; "": it has finished. `state`: of its optimization."""
    if record.state == "cancelled" or (record.state == "running" and state == "interrupted"):
        return "cut"  # the same call goes on with what is missing
    return "" if record.state == "finished" else record.state


def _row(record: RunRecord, units: int, before: Mapping[str, str], state: OptimizationState) -> list[str]:
    planned = record.planned_count * record.repeats
    done = str(planned) if record.judged_count == planned else f"{record.judged_count}/{planned}"
    changed = ", ".join(changed_steps(record.prompts, before)) or ("none (baseline)" if record.baseline else "none")
    return [
        record.run_id,
        record.split,
        done,
        score_text(record.score),
        str(record.passed_count),
        str(record.error_count or ""),
        "free" if record.baseline else str(units),
        "" if record.budget_left is None else str(record.budget_left),
        run_state(record, state),
        changed,
    ]
