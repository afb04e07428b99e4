"""What the root LM reads in a request besides the history: the tools, each described once, and the variables."""

# DSPy ships no type information.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

from dspy.adapters.utils import serialize_for_json
from dspy.primitives.repl_types import REPLVariable

__all__ = ["action_instructions", "bare_signature", "tools_text", "variables_shown"]

_NOT_SHOWN: Final = "example_request"  # a whole request and its answer: there to be printed, too long for every turn
_WHOLE_CHARS: Final = 8000  # of a variable that is small enough to be read here instead of being printed
_READ_HERE: Final = frozenset({"program_steps", "baseline_runs", "task_facts", "work_so_far"})


def tools_text(tools: Mapping[str, Callable[..., Any]]) -> str:
    """The tools as the agent calls them, each with its docstring."""
    return "\n\n".join(
        f"- `{name}{bare_signature(function)}`\n{textwrap.indent(inspect.getdoc(function) or '', '  ')}"
        for name, function in tools.items()
    )


def action_instructions(task: str, tools: str, rules: str) -> str:
    """The instructions of every turn. `rules`: DSPy's fragment on the interpreter, which it looks for to replace it."""
    # Not at the end: a signature loses the white space there, and DSPy would not find its fragment again.
    return f"{task}\n{rules}\n# Tools\n\n{tools}"


def bare_signature(function: Callable[..., Any]) -> inspect.Signature:
    """Names and defaults only: what the agent types."""
    signature = inspect.signature(function)
    bare: Iterable[inspect.Parameter] = (
        parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()
    )
    return signature.replace(parameters=list(bare), return_annotation=inspect.Signature.empty)


def variables_shown(variables: Sequence[REPLVariable], values: Mapping[str, Any]) -> list[REPLVariable]:
    """The variables that hold something; the small ones whole, so that no turn is spent on printing them."""
    shown = [variable for variable in variables if values[variable.name] not in ([], "")]
    return [_whole(variable, values[variable.name]) if variable.name in _READ_HERE else variable for variable in shown]


def _whole(variable: REPLVariable, value: Any) -> REPLVariable:
    text = _compact(serialize_for_json(value))
    if len(text) > _WHOLE_CHARS:
        half = _WHOLE_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return variable.model_copy(update={"preview": text, "total_length": len(text)})


def _compact(value: Any) -> str:
    """JSON, a line for each item of a list, without what is empty."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        lines = ",\n ".join(json.dumps(_full(item), ensure_ascii=False) for item in cast("list[Any]", value))
        return f"[{lines}]"
    return json.dumps(_full(value), ensure_ascii=False)


def _full(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: "... (print it)" if key == _NOT_SHOWN else _full(item)
            for key, item in cast("dict[Any, Any]", value).items()
            if item not in ("", None, [], {})
        }
    return [_full(item) for item in cast("list[Any]", value)] if isinstance(value, list) else value
