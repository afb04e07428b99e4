"""What a person types in a console for the optimization itself: `pause()`, `unpause()`, `note("...")`.

It is read as Python, and never evaluated.
"""

from __future__ import annotations

import ast

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.store_reader import StoreReader

__all__ = ["answer", "is_request"]

_SAID = {
    "pause": "pause asked: the agent waits after its turn; unpause() lets it go on",
    "unpause": "the agent goes on",
    "note": "noted: the agent reads it with its next turn",
}


def is_request(code: str) -> bool:
    """Whether a cell is one call of one of these names, and nothing else."""
    return _call(code) is not None


def answer(code: str, store: StoreReader) -> str:
    """Do what such a cell asks of the optimization in a store; in words what became of it."""
    call = _call(code)
    if call is None:
        raise ValueError("it asks for nothing")
    name, given, has_names = call
    if name == "note":
        if has_names or len(given) != 1 or not isinstance(given[0], str):
            return 'note takes one text in quotes: note("look at the dates")'
    elif given or has_names:
        return f"{name} takes nothing: {name}()"
    try:
        requests = Requests.to(store)
        if name == "note":
            requests.note(str(given[0]))
        elif name == "pause":
            requests.pause()
        else:
            requests.unpause()
    except InvalidSetup as error:
        return str(error)
    return _SAID[name]


def _call(code: str) -> tuple[str, list[object], bool] | None:
    """The name, the literal arguments (an object of its own for any other), and whether there are named ones."""
    try:
        body = ast.parse(code.strip()).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    if len(body) != 1 or not isinstance(body[0], ast.Expr) or not isinstance(call := body[0].value, ast.Call):
        return None
    if not isinstance(call.func, ast.Name) or call.func.id not in _SAID:
        return None
    given = [one.value if isinstance(one, ast.Constant) else object() for one in call.args]
    return call.func.id, given, bool(call.keywords)
