"""Parameters that several commands have, each with its words for `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.errors import OptimizerError

__all__ = ["AsJson", "Directory", "Number", "RunId", "run_ids"]

Directory: TypeAlias = Annotated[
    Path,
    typer.Argument(metavar="DIR", readable=False, help="The run_storage_dir of a compile, or a store file in it."),
]
Number: TypeAlias = Annotated[
    int | None, typer.Option("--number", min=1, metavar="N", help="The optimization in DIR; without it, the newest.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write one JSON object instead of text.")]


def run_ids(context: typer.Context, args: list[str], incomplete: str) -> list[str]:
    """The runs of DIR, for the completion of a shell; []: it cannot be read."""
    place, number = context.params.get("directory"), context.params.get("number")
    try:
        with open_target(Path(place or "."), None if number is None else int(number)) as store:
            return [record.run_id for record in store.runs() if record.run_id.startswith(incomplete)]
    except (OptimizerError, OSError, ValueError):
        return []


RunId: TypeAlias = Annotated[
    str, typer.Argument(metavar="RUN", help="The id of an evaluation, such as r3.", autocompletion=run_ids)
]
