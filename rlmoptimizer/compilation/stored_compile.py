"""A compile with the run stores that it works in, and what is said on stderr when it goes on and when it ends early."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dspy

from kernel_bridge.text import make_showable, printable_line
from rlmoptimizer.compilation.compilation import compiled
from rlmoptimizer.compilation.ctrl_c import PromptCtrlC
from rlmoptimizer.compilation.result import finished_program
from rlmoptimizer.compilation.resume import found_line, how_to_resume_line, how_to_resume_note, open_store
from rlmoptimizer.compilation.setup import Setup
from rlmoptimizer.compilation.setup_record import describe_setup
from rlmoptimizer.errors import CostLimitReached, InvalidSetup, add_note, notes_of
from rlmoptimizer.lms.failures import failure_line
from rlmoptimizer.outcome.ending import Outcome
from rlmoptimizer.show.terminal.log_lines import printable_logs
from rlmoptimizer.steering.branches import branch_of
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader
from rlmoptimizer.store.temporary_directory import temporary_directory
from rlmoptimizer.task.seeds import fresh_seed

__all__ = ["compiled_in_stores"]


def compiled_in_stores(setup: Setup, *, resume: bool) -> dspy.Module:
    """The result of a compile, with the run stores that it works in: one, and those of its branches."""
    recorded = describe_setup(setup, drawn_seed=fresh_seed() if setup.settings.seed is None else setup.settings.seed)
    kept_in = setup.settings.run_storage_dir
    with printable_logs(), PromptCtrlC(), ExitStack() as stack:
        directory = stack.enter_context(temporary_directory()) if kept_in is None else kept_in
        while True:
            program, branch = _worked(setup, recorded, directory, resume=resume)
            if branch is None:
                return program
            resume = True  # of the branch, which is the newest store


def _worked(
    setup: Setup, recorded: Mapping[str, Any], directory: Path, *, resume: bool
) -> tuple[dspy.Module, Path | None]:
    """The result of the optimization in one store, and its branch that is to be gone on with."""
    kept = setup.settings.run_storage_dir is not None
    with _saying_how_to_go_on(kept=kept) as opened, open_store(directory, recorded, resume=resume) as store:
        opened.append(store)
        if resume:
            _say(printable_line(found_line(store)))
        namespace = store.path.with_suffix(".namespace") if kept else None
        if Outcome.of(store) is not None:
            program = finished_program(setup, store)
        else:
            assert isinstance(store, RunStore)  # only a finished one is opened to be read
            if resume:
                setup.check_keys()
            program = compiled(setup, store, namespace)
        _remove(namespace)
        Requests(store.path).clear()
        return program, branch_of(store.path)


@contextmanager
def _saying_how_to_go_on(*, kept: bool) -> Generator[list[StoreReader]]:
    """Say on stderr why a compile ended, and where the store is `kept`, how to go on with it.

    Gives a list for the store, once it is open.
    """
    opened: list[StoreReader] = []
    try:
        yield opened
    except BaseException as error:
        if (line := failure_line(error)) is not None:
            _say(f"RLMDocstringOptimizer: {line}")
            add_note(error, line)
        make_showable(error)  # it may quote an LM or a kernel, and Python prints what nobody catches as it is
        if not isinstance(error, Exception):
            for note in notes_of(error):  # Python 3.10 would print none
                _say(printable_line(f"{type(error).__name__}: {note}"))
        if kept and opened and not isinstance(error, (InvalidSetup, CostLimitReached)):
            _say(how_to_resume_line(opened[0].path, error))
            add_note(error, how_to_resume_note(opened[0].path))
        raise


def _remove(namespace: Path | None) -> None:
    """Remove the agent's variables, which no process will need any more."""
    if namespace is not None:
        # The second one is there when a process was killed while it wrote the first.
        for path in (namespace, namespace.with_name(f"{namespace.name}.new")):
            with contextlib.suppress(OSError):
                path.unlink()


def _say(line: str) -> None:
    """One line on stderr, whatever has become of that."""
    if sys.stderr is not None:  # pyright: ignore[reportUnnecessaryComparison] # there is none under pythonw
        with contextlib.suppress(OSError, ValueError):
            # A terminal has written ^C where the line is to begin.
            start = "\r" if sys.stderr.isatty() else ""
            print(start + line, file=sys.stderr, flush=True)
