"""The commands that steer an optimization: what people ask of one that runs, or that will be resumed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.output import write_lines
from rlmoptimizer.command_line.parameters import Directory, Number, RunId
from rlmoptimizer.command_line.target import open_target
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.steering.branches import prepare_branch
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["branch", "note", "pause", "stop", "unpause"]


def note(
    directory: Directory,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="What the agent should know.")],
    number: Number = None,
) -> None:
    """Tell the agent something: it stands in its next turn, marked as a person's, and in the report."""
    with _steered(directory, number) as at:
        at.requests.note(text)
        _say(f"note left: the agent reads it {at.resumed or f'in its turn {at.next_turn}'}")


def pause(directory: Directory, number: Number = None) -> None:
    """Let the agent wait after its turn. Evaluations under way finish; the time does not count."""
    with _steered(directory, number) as at:
        at.requests.pause()
        if at.state == "paused":
            _say(f"it is paused, before turn {at.next_turn} of its agent")
        else:
            _say(f"pause asked for: the agent waits {at.resumed or f'before its turn {at.next_turn}'}")


def unpause(directory: Directory, number: Number = None) -> None:
    """Let the agent go on after a pause."""
    with _steered(directory, number) as at:
        at.requests.unpause()
        _say(f"the pause is over: the agent goes on {at.resumed or f'with its turn {at.next_turn}'}")


def stop(directory: Directory, number: Number = None) -> None:
    """Stop, and take the best prompts so far. An evaluation on val comes to its end, and the test is made."""
    with _steered(directory, number) as at:
        at.requests.stop()
        _say(f"stop asked for: the agent's work ends {at.resumed or 'now'}, and the best prompts so far are the result")


def branch(
    directory: Directory,
    run: RunId,
    units: Annotated[
        int | None,
        typer.Option("--units", metavar="N", help="Its budget; without it, what is left of the one it comes from."),
    ] = None,
    note: Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What its agent should know.")] = None,
    number: Number = None,
) -> None:
    """Begin a new optimization in the same directory whose prompts are those of a run. One that runs ends for it."""
    with open_target(directory, number) as store:
        path = prepare_branch(store, run, units=units, note=note)
        how = f"begin it with {_how_to_resume(path)}"
        if state_of(store) in ("running", "paused"):
            how = "the optimization that runs ends, and its compile goes on with the branch"
        _say(f"branch {path.name} is made, with the prompts of run {run}: {how}")


@dataclass(frozen=True, slots=True)
class _Steered:
    """An optimization whose agent may still be steered."""

    path: Path
    requests: Requests
    state: OptimizationState
    next_turn: int  # of the agent, that has not begun

    @property
    def resumed(self) -> str:
        """When what is asked for takes effect, where no process works on it; else empty."""
        return f"when it is resumed, with {_how_to_resume(self.path)}" if self.state == "interrupted" else ""


@contextmanager
def _steered(path: Path, number: int | None) -> Generator[_Steered]:
    """Raises `InvalidSetup` for an optimization whose agent has ended its work."""
    with open_target(path, number) as store:
        requests, state = Requests.to(store), state_of(store)
        yield _Steered(store.path, requests, state, _next_turn(store, state))


def _next_turn(store: StoreReader, state: OptimizationState) -> int:
    ended = len(store.iterations())
    marks = [record for kind in ("CompileStarted", "PhaseStarted") for record in store.events(kind)]
    newest = max(marks, key=lambda record: record.number, default=None)
    # Once the agent's phase has begun, a turn is always under way, unless it is paused between two.
    works = state == "running" and newest is not None and newest.data.get("phase") == "agent"
    return ended + (2 if works else 1)


def _how_to_resume(path: Path) -> str:
    return f"compile(..., resume=True) and run_storage_dir={str(path.parent)!r}"


def _say(line: str) -> None:
    write_lines([printable_line(line)])
