"""The commands that make something of an optimization: a report, or its results for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.command_line.exported_rows import csv_text, exported_runs, json_lines
from rlmoptimizer.command_line.output import is_terminal, write_lines, write_pieces
from rlmoptimizer.command_line.parameters import Directory, Number
from rlmoptimizer.command_line.target import open_target

__all__ = ["export", "notebook", "report"]


def report(
    directory: Directory,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")] = Path(
        "report.html"
    ),
    number: Number = None,
) -> None:
    """Write all of it into one HTML file that any browser opens, without a server or a network.

    It holds the examples of train, so only you may read the file. Of val and test it holds totals.
    """
    from rlmoptimizer.show.report.page import write_report  # takes time that other commands need not take

    with open_target(directory, number) as store:
        write_report(store, output)
    write_lines([f"{printable_line(str(output))} ({output.stat().st_size / 1e6:,.1f} MB)"])


def export(
    directory: Directory,
    form: Annotated[Literal["csv", "jsonl"], typer.Option("--format", help="CSV, or a JSON object a line.")] = "csv",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write; without it, to stdout.")
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option("--run", metavar="RUN", help="Only this run on train; may be given again.")
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Also what each step got and gave.")] = False,
    number: Number = None,
) -> None:
    """The results on train for a spreadsheet or a data frame, one row each; never a row of val or test."""
    from rlmoptimizer.show.whole_file import write_whole

    with open_target(directory, number) as store:
        runs = exported_runs(store, run or ())
        # On a terminal nothing in a text may steer it; in a file and in a pipe texts are as they are.
        shown = _shown if output is None and is_terminal() else None
        csv = form == "csv"
        pieces = csv_text(store, runs, steps=steps, shown=shown) if csv else json_lines(store, runs, steps=steps)
        if output is None:
            write_pieces(pieces)
        else:
            write_whole(pieces, output, store.path, "export", f"results.{form}")


def notebook(
    directory: Directory,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write.")],
    number: Number = None,
) -> None:
    """The agent's turns as a Jupyter notebook, which replays them from the store.

    The code in it is the agent's: its first cell says how it is confined when the notebook is run.
    """
    from rlmoptimizer.show.notebook.export import write_notebook

    with open_target(directory, number) as store:
        write_notebook(store, output)
    write_lines([printable_line(str(output), 4000)])


def _shown(text: str) -> str:
    return printable(text, None)
