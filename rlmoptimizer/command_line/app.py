"""The command `rlmoptimizer`: its commands, its exit codes, and how errors are told.

Exit codes: 0; 1 for what was asked and is not there or cannot be used; 2 for a wrong call. An error is one line on
stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from kernel_bridge.errors import BridgeError
from kernel_bridge.text import error_text, printable_line
from rlmoptimizer.command_line import console, making, probing, reading, steering, viewing
from rlmoptimizer.command_line.errors import WrongCall
from rlmoptimizer.command_line.output import write_lines
from rlmoptimizer.errors import OptimizerError, SelectionError

__all__ = ["app", "main", "run"]

_ERROR_CHARS = 2000
_NAME = "rlmoptimizer"

app = typer.Typer(
    name=_NAME,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        write_lines([version(_NAME)])
        raise typer.Exit


# A callback makes each command have its name on the command line, even where there is only one.
@app.callback()
def _common(  # pyright: ignore[reportUnusedFunction] - typer calls it
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Look at an optimization of prompts, while it runs and after it, and steer it."""


# To add a command: a function in a module of its subject, whose docstring is its help, and a line here.
app.command(rich_help_panel="Read")(reading.runs)
app.command(rich_help_panel="Read")(reading.show)
app.command(rich_help_panel="Read")(reading.diff)
app.command(rich_help_panel="Read")(reading.prompts)
app.command(rich_help_panel="Read")(viewing.view)
app.command(rich_help_panel="Make")(making.report)
app.command(rich_help_panel="Make")(making.export)
app.command(rich_help_panel="Make")(making.notebook)
app.command(rich_help_panel="Steer")(steering.note)
app.command(rich_help_panel="Steer")(steering.pause)
app.command(rich_help_panel="Steer")(steering.unpause)
app.command(rich_help_panel="Steer")(steering.stop)
app.command(rich_help_panel="Steer")(steering.branch)
app.command(rich_help_panel="Steer")(console.console)
app.command(rich_help_panel="Machine")(probing.probe)


def main() -> None:
    """Run the command that the process was called with, and end the process with its exit code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command; the exit code. Commands raise, and this tells of it; what is a mistake of ours is raised on."""
    _accept_any_text()
    try:
        code = app(list(arguments), prog_name=_called_as(), standalone_mode=False)
    except (WrongCall, SelectionError) as error:
        return _tell(error_text(error), 2)
    except typer.TyperException as error:  # of typer's own: an option that there is not, a number that is none
        return _tell(error.format_message(), error.exit_code)
    except (OptimizerError, BridgeError, OSError) as error:
        return _tell(error_text(error), 1)
    return code if isinstance(code, int) else 0


def _tell(text: str, code: int) -> int:
    line = printable_line(" ".join(text.split()), _ERROR_CHARS)
    if line:  # the help of a call without any argument stands for itself
        print(f"{_NAME}: {line}", file=sys.stderr)
    return code


def _called_as() -> str:
    return f"python -m {_NAME}" if Path(sys.argv[0]).name == "__main__.py" else _NAME


def _accept_any_text() -> None:
    """Let no text fail to be written where the terminal's encoding lacks a character."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if callable(reconfigure):
            reconfigure(errors="backslashreplace")
