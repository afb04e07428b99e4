"""One evaluation for a terminal: its totals, and its examples as a table or one after another."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.example_text import EXAMPLE_COLUMNS, example_block, example_row
from rlmoptimizer.command_line.run_table import run_state, score_text, steps_before
from rlmoptimizer.command_line.selection import Selection, examples_of
from rlmoptimizer.command_line.spans import Line, plain
from rlmoptimizer.command_line.table import table_lines
from rlmoptimizer.outcome.run_totals import objective_names, progress
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.records import RunRecord, mean
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.text import count_text

__all__ = ["RunText"]


@dataclass(frozen=True, slots=True)
class RunText:
    """The lines of one run; `selection` says which of its examples were asked for."""

    store: StoreReader
    record: RunRecord
    selection: Selection

    def table(self, ids: Sequence[str] | None, width: int) -> Iterator[str]:
        """A row for each example that `ids` names; None: all."""
        if self.record.split != "train":
            return
        before = self._scores_before()
        examples = examples_of(self.store, self.record.run_id, ids, heads=True)
        rows = (example_row(example, before.get(example.example_id)) for example in examples)
        first = next(rows, None)
        yield ""
        if first is None:
            yield self._nothing()
        else:
            yield from table_lines(EXAMPLE_COLUMNS, itertools.chain([first], rows), width)

    def blocks(self, ids: Sequence[str] | None, *, steps: bool) -> Iterator[Line]:
        """All that is known of each example that `ids` names; None: all."""
        if self.record.split != "train":
            return
        before = self._scores_before()
        has_some = False
        for example in examples_of(self.store, self.record.run_id, ids):
            has_some = True
            yield []
            yield from example_block(example, steps=steps, was=before.get(example.example_id))
        if not has_some:
            yield plain(self._nothing())

    def totals(self) -> Iterator[Line]:
        """The whole run in a few lines."""
        yield from map(plain, self._totals())

    def _totals(self) -> Iterator[str]:
        record = self.record
        said = run_state(record, state_of(self.store))
        state = f", {said}" if said else ""
        error = "" if record.standard_error is None else f" (standard error {score_text(record.standard_error)})"
        yield f"run {record.run_id} on {record.split}{state}: score {score_text(record.score)}{error}"
        units = self.store.units_by_run().get(record.run_id, 0)
        cost = "free, the baseline" if record.baseline else count_text(units, "unit")
        parts = [progress(record), f"{record.passed_count} passed", cost, f"turn {record.turn}"]
        counts = {
            "with errors": record.error_count,
            "cut at a limit of tokens": record.truncated_count,
            "without a verdict": record.unanswered_count,
            "reused": record.reused_count,
        }
        yield ", ".join([*parts[:2], *(f"{count} {what}" for what, count in counts.items() if count), *parts[2:]])
        objectives = objective_names(self.store.runs())
        if means := [f"{name} {value:.4g}" for name, value in record.objectives.items() if name in objectives]:
            yield printable_line(f"objectives: {', '.join(means)}")
        changed = changed_steps(record.prompts, steps_before(self.store))
        yield printable_line(f"prompts changed: {', '.join(changed) or 'none'}")
        if record.split != "train":
            yield f"examples of {record.split} are never shown"

    def _nothing(self) -> str:
        if self.selection.options:
            return f"no example of this run fits {' and '.join(self.selection.options)}"
        return "no example has a result yet"

    def _scores_before(self) -> dict[str, float]:
        """The scores in the run that was named to be compared with."""
        if self.selection.flipped_since is None:
            return {}
        return {one: mean(scores) for one, scores in self.store.scores(self.selection.flipped_since).items()}
