"""What a command writes: lines of text, or one JSON object. Knows nothing of what they say."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Iterable
from typing import Any, TextIO, cast

import typer

from rlmoptimizer.store.json_text import encode

__all__ = ["is_terminal", "json_text", "plain_json", "terminal_width", "write_json", "write_lines", "write_pieces"]

_PIPE_COLUMNS = 120  # where there is no terminal, and COLUMNS does not say


def is_terminal() -> bool:
    """Whether a person sees what is written to stdout."""
    out = cast("TextIO | None", sys.stdout)  # None: the caller has closed it
    return out is not None and out.isatty()


def terminal_width() -> int:
    """Columns that a line may have."""
    return max(shutil.get_terminal_size((_PIPE_COLUMNS, 50)).columns, 20)


def write_lines(lines: Iterable[str]) -> None:
    """Write lines to stdout, each as it comes. They are printable: whoever makes them has seen to it.

    Where the reader has left, as `head` does, the command ends quietly.
    """
    write_pieces(f"{line}\n" for line in lines)


def write_pieces(pieces: Iterable[str]) -> None:
    """Write texts to stdout, one after another; see `write_lines`."""
    out = cast("TextIO | None", sys.stdout)
    if out is None:  # the caller has closed it
        return
    try:
        out.writelines(pieces)
        out.flush()
    except BrokenPipeError:
        # Python would try once more to write at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise typer.Exit from None


def write_json(value: Any) -> None:
    """Write one plain value to stdout, as `json_text` makes it."""
    write_lines([json_text(value, indent=2)])


def json_text(value: Any, indent: int | None = None) -> str:
    """A plain value as JSON in ASCII: nothing in it can steer a terminal, and every program reads it.

    Bytes and huge integers are objects, as in the run store: `{"$bytes": "<base64>"}`, `{"$int": "<hexadecimal>"}`.
    Numbers that JSON does not have are the texts "NaN", "Infinity" and "-Infinity".
    """
    try:
        return json.dumps(value, indent=indent, allow_nan=False)
    except (TypeError, ValueError):
        return json.dumps(plain_json(value), indent=indent, allow_nan=False)


def plain_json(value: Any) -> Any:
    """A plain value as every JSON parser knows it."""
    return _finite(json.loads(encode(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return json.dumps(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_finite(item) for item in cast("list[Any]", value)]
    return value
