"""The evaluations of an optimization as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.table import Column, fit, table_lines
from rlmoptimizer.outcome.recorded_setup import branch_in, unit_limit
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.prompts import Prompts, changed_steps
from rlmoptimizer.records import RunRecord
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["run_table", "score_text", "steps_before"]

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


def run_table(store: StoreReader, width: int) -> Iterator[str]:
    """A line on the optimization, then a line for each evaluation."""
    state = state_of(store)
    yield fit(printable_line(_state_line(store, state)), width)
    if (branch := branch_in(store.setup())) is not None:
        yield fit(printable_line(f"a branch from run {branch['run_id']} of {branch['store']}"), width)
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


def _state_line(store: StoreReader, state: OptimizationState) -> str:
    setup = store.setup()
    limit = "" if setup is None else f" of {unit_limit(setup)}"
    said = ", to be resumed" if state == "interrupted" else ""
    return f"{store.path.name}: {state}{said}, {store.spent()}{limit} units spent"


def _row(record: RunRecord, units: int, before: Mapping[str, str], state: OptimizationState) -> list[str]:
    planned = record.planned_count * record.repeats
    done = str(planned) if record.judged_count == planned else f"{record.judged_count}/{planned}"
    if Prompts.of(before).digest == record.candidate:
        changed = "none (baseline)" if record.baseline else "none"
    else:
        changed = ", ".join(changed_steps(record.prompts, before)) or "none"
    return [
        record.run_id,
        record.split,
        done,
        score_text(record.score),
        str(record.passed_count),
        str(record.error_count or ""),
        "free" if record.baseline else str(units),
        "" if record.budget_left is None else str(record.budget_left),
        "" if record.state == "finished" else _run_state(record, state),
        changed,
    ]


def _run_state(record: RunRecord, state: OptimizationState) -> str:
    """A run that no process works on any more is cut; a resume goes on with it."""
    return "cut" if record.state == "running" and state == "interrupted" else record.state
