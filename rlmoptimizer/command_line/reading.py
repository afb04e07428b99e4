"""The commands that show what an optimization did."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from rlmoptimizer.command_line.chosen_prompts import ChosenPrompts
from rlmoptimizer.command_line.errors import WrongCall
from rlmoptimizer.command_line.optimization_head import OptimizationHead
from rlmoptimizer.command_line.output import json_text, terminal_width, write_json, write_lines
from rlmoptimizer.command_line.parameters import AsJson, Directory, Number, RunId, run_ids
from rlmoptimizer.command_line.run_difference import RunDifference
from rlmoptimizer.command_line.run_table import run_table, steps_before
from rlmoptimizer.command_line.run_text import RunText
from rlmoptimizer.command_line.selection import Selection, examples_of, selected_ids
from rlmoptimizer.command_line.spans import Line, text_lines, write_spans
from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.outcome.run_totals import objective_names, run_log
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["diff", "prompts", "runs", "show"]


def runs(directory: Directory, number: Number = None, as_json: AsJson = False) -> None:
    """Every evaluation: split, examples, score, passed, units, steps whose prompts differ from the baseline's."""
    with open_target(directory, number) as store:
        head = OptimizationHead.of(store)
        if as_json:
            write_json({**head.as_dict(), "runs": _logs(store)})
        else:
            width = terminal_width()
            write_lines(itertools.chain(head.lines(width), run_table(store, head.state, width)))


def show(
    directory: Directory,
    run: RunId,
    failed: Annotated[bool, typer.Option("--failed", help="Only examples that did not pass.")] = False,
    flipped_since: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            autocompletion=run_ids,
            help="Only examples that passed in that run and not in this one, or the reverse.",
        ),
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", metavar="ID", help="Only this example, whole; may be given again.")
    ] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Show what each step got and gave.")] = False,
    number: Number = None,
    as_json: AsJson = False,
) -> None:
    """The examples of an evaluation. Of one on val or test only the totals are shown."""
    selection = Selection(failed, flipped_since, ids or ())
    with open_target(directory, number) as store:
        record = store.run(run)
        chosen = selected_ids(store, record, selection)
        if as_json:
            write_lines(_show_json(store, run, chosen))
            return
        text = RunText(store, record, selection)
        write_spans(text.totals())
        if ids or steps:
            write_spans(text.blocks(chosen, steps=steps))
        else:
            write_lines(text.table(chosen, terminal_width()))


def diff(
    directory: Directory,
    run_a: Annotated[
        str, typer.Argument(metavar="RUN_A", autocompletion=run_ids, help="The id of the earlier evaluation.")
    ],
    run_b: Annotated[str, typer.Argument(metavar="RUN_B", autocompletion=run_ids, help="The id of the later one.")],
    number: Number = None,
    as_json: AsJson = False,
) -> None:
    """Two evaluations compared: prompts word by word, examples fixed and broken, sign test."""
    with open_target(directory, number) as store:
        found = RunDifference.of(store, run_a, run_b)
    if as_json:
        write_json(found.as_dict())
    else:
        write_spans(found.lines())


def prompts(
    directory: Directory,
    best: Annotated[bool, typer.Option("--best", help="Those with the best score so far.")] = False,
    baseline: Annotated[bool, typer.Option("--baseline", help="Those of the unchanged program.")] = False,
    result: Annotated[bool, typer.Option("--result", help="Those that the optimization gave back.")] = False,
    run: Annotated[
        str | None, typer.Option("--run", metavar="RUN", autocompletion=run_ids, help="Those of an evaluation.")
    ] = None,
    number: Number = None,
    as_json: AsJson = False,
) -> None:
    """The prompts of every step: the result, or the best so far while there is none. JSON maps steps to texts."""
    if best + baseline + result + (run is not None) > 1:
        raise WrongCall("--best, --baseline, --result and --run each choose other prompts; give one of them")
    with open_target(directory, number) as store:
        if run is not None:
            chosen = ChosenPrompts.of_run(store, run)
        elif baseline:
            chosen = ChosenPrompts.baseline(store)
        elif result:
            chosen = ChosenPrompts.result(store)
        elif best:
            chosen = ChosenPrompts.best(store)
        else:
            chosen = ChosenPrompts.newest(store)
    if as_json:
        write_json(chosen.prompts)
    else:
        write_spans(_prompt_lines(chosen))


def _logs(store: StoreReader) -> list[dict[str, Any]]:
    """All runs, as in the `trial_logs` of the result, with what they cost and the steps whose prompts are new."""
    records, units, before = store.runs(), store.units_by_run(), steps_before(store)
    objectives = objective_names(records)
    return [
        {
            **run_log(record, objectives),
            "units": units.get(record.run_id, 0),
            "prompts_changed": changed_steps(record.prompts, before),
        }
        for record in records
    ]


def _show_json(store: StoreReader, run_id: str, ids: list[str] | None) -> Iterator[str]:
    """The object, a line for each example: they may be large, and one at a time is held."""
    record = store.run(run_id)
    log = run_log(record, objective_names(store.runs()))
    if record.split != "train":
        yield json_text({"run": log, "examples": None}, indent=2)
        return
    yield f'{{"run": {json_text(log)},\n "examples": ['
    comma = ""
    for example in examples_of(store, run_id, ids):
        yield f"{comma}  {json_text(example.as_row())}"
        comma = ","
    yield " ]}"


def _prompt_lines(chosen: ChosenPrompts) -> Iterator[Line]:
    yield [("dim", chosen.said)]
    for step, text in chosen.prompts.items():
        yield []
        yield from text_lines(step, style="bold")
        yield from text_lines(text, indent="  ", limit=None)
