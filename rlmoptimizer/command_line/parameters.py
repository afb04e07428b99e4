"""Parameters that several commands have, each with its words for `--help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

__all__ = ["AsJson", "Directory", "Number", "RunId"]

Directory: TypeAlias = Annotated[
    Path,
    typer.Argument(metavar="DIR", readable=False, help="The run_storage_dir of a compile, or a store file in it."),
]
Number: TypeAlias = Annotated[
    int | None, typer.Option("--number", min=1, metavar="N", help="The optimization in DIR; without it, the newest.")
]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Write one JSON object instead of text.")]
RunId: TypeAlias = Annotated[str, typer.Argument(metavar="RUN", help="The id of an evaluation, such as r3.")]
