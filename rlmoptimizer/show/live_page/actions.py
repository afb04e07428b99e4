"""What the page's buttons ask for, from the JSON that they send to words that say what happens now."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from rlmoptimizer.errors import InvalidSetupType
from rlmoptimizer.outcome.state import OptimizationState, state_of
from rlmoptimizer.steering.branches import prepare_branch
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.directory import number_of
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["ACTIONS", "act"]

_Given = Mapping[str, Any]


def act(path: Path, action: str, given: _Given) -> str:
    """Do what was asked of the optimization in a store; the words that say what happens now.

    Args:
        path: of the store.
        action: one of `ACTIONS`.
        given: its parameters, as JSON holds them.

    Raises:
        OptimizerError: it cannot be done. The message is for the person.
    """
    with StoreReader.open(path) as store:
        state = state_of(store)
        if action == "branch":
            return _branch(store, state, given)
        return ACTIONS[action](Requests.to(store), state, given)


def _pause(requests: Requests, state: OptimizationState, given: _Given) -> str:
    requests.pause()
    if state == "interrupted":
        return "When it is resumed, the agent will wait before its first turn."
    return "The agent will wait before its next turn. Evaluations that are under way finish."


def _unpause(requests: Requests, state: OptimizationState, given: _Given) -> str:
    requests.unpause()
    return "When it is resumed, the agent will go on at once." if state == "interrupted" else "The agent goes on."


def _note(requests: Requests, state: OptimizationState, given: _Given) -> str:
    requests.note(_text(given, "text"))
    if state == "interrupted":
        return "The agent will get the note when the optimization is resumed."
    return "The agent will get the note " + ("when it goes on." if state == "paused" else "with its next turn.")


def _stop(requests: Requests, state: OptimizationState, given: _Given) -> str:
    requests.stop()
    if state == "interrupted":
        return "When it is resumed, the agent will stop at once, and the best prompts will be taken."
    return "The agent stops. The best prompts so far are taken and measured once more."


def _branch(store: StoreReader, state: OptimizationState, given: _Given) -> str:
    units = given.get("units")
    if units is not None and (not isinstance(units, int) or isinstance(units, bool)):
        raise InvalidSetupType("units must be a whole number, or null for what is left")
    note = None if given.get("note") is None else _text(given, "note")
    path = prepare_branch(store, _text(given, "run_id"), units=units, note=note)
    number = number_of(path)
    if state in ("running", "paused"):
        return f"The running optimization makes way, and optimization {number} begins with these prompts."
    return f"Optimization {number} is prepared. Call compile(..., resume=True) with the same setup to begin it."


def _text(given: _Given, name: str) -> str:
    text = given.get(name)
    if not isinstance(text, str):
        raise InvalidSetupType(f"{name} must be a text")
    return text


ACTIONS: Final[Mapping[str, Callable[[Requests, OptimizationState, _Given], str]]] = {
    "pause": _pause,
    "unpause": _unpause,
    "note": _note,
    "stop": _stop,
}
