"""The command that opens a console on the live kernel of an agent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from kernel_bridge.text import printable_line, shorten_list
from rlmoptimizer.command_line.errors import WrongCall
from rlmoptimizer.command_line.parameters import Number
from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.errors import InvalidSetup

__all__ = ["console"]


def console(
    directory: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", readable=False, help="The run_storage_dir; without it, that of the only one that runs."
        ),
    ] = None,
    number: Number = None,
) -> None:
    """A Jupyter console on the live kernel of the agent: look at what it has, call its tools, leave notes."""
    from rlmoptimizer.command_line.agent_kernel import AgentKernel  # 0.02 s that other commands do not take

    if directory is None:
        if number is not None:
            raise WrongCall("--number chooses an optimization of a directory; name the directory too")
        directory = _only_one()
    with open_target(directory, number) as store:
        kernel = AgentKernel.of(store)
        try:
            from rlmoptimizer.command_line.console_shell import open_console
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in ("jupyter_console", "prompt_toolkit"):
                raise
            raise InvalidSetup("the console needs jupyter_console: pip install jupyter_console") from None
        if not sys.stdin.isatty() or not sys.stdout.isatty():
            raise WrongCall("the console needs a terminal; stdin or stdout is none")
        open_console(store, kernel)


def _only_one() -> Path:
    from rlmoptimizer.command_line.agent_kernel import running_stores

    stores = running_stores()
    if len(stores) > 1:
        names = shorten_list([printable_line(str(store)) for store in stores], 10)
        raise WrongCall(f"{len(stores)} optimizations run; name one of them: {names}")
    return stores[0]
