"""The commands that show what an optimization did."""

from __future__ import annotations

from rlmoptimizer.command_line.output import terminal_width, write_json, write_lines
from rlmoptimizer.command_line.parameters import AsJson, Directory, Number
from rlmoptimizer.command_line.run_table import run_table
from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.outcome.run_totals import objective_names, run_log

__all__ = ["runs"]


def runs(directory: Directory, number: Number = None, as_json: AsJson = False) -> None:
    """Every evaluation: split, examples, score, passed, units, steps whose prompts differ from the baseline's."""
    with open_target(directory, number) as store:
        if as_json:
            records = store.runs()
            objectives = objective_names(records)
            write_json({"runs": [run_log(record, objectives) for record in records]})
        else:
            write_lines(run_table(store, terminal_width()))
