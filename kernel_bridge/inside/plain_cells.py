"""Cells that are plain Python: run without IPython's transformers, hooks and history, which cost more than the code.

The agent sees no difference: a cell that any of those could change or watch is left to IPython.
"""

# IPython carries no types: what comes from it is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ast
import inspect
from types import CodeType
from typing import Any

__all__ = ["PlainCells"]

_PROMPTS = ("In [", "...")  # which IPython removes from pasted text; both can be Python, too, as can ">>>"


class PlainCells:
    """Compiles the cells that need nothing of IPython.

    Args:
        shell: as it is before the agent's code has changed anything about it.
    """

    def __init__(self, shell: Any) -> None:
        self._shell = shell
        self._hooks = self._present_hooks()

    def _present_hooks(self) -> tuple[object, ...]:
        """All that may change a cell or watch it."""
        shell = self._shell
        manager = shell.input_transformer_manager
        return (
            list(manager.cleanup_transforms),
            list(manager.line_transforms),
            list(manager.token_transformers),
            list(shell.input_transformers_post),
            list(shell.ast_transformers),
            shell.ast_node_interactivity,
            shell.autoawait,
            shell.logger.log_active,
            {event: list(called) for event, called in shell.events.callbacks.items()},
        )

    def compiled(self, source: str, file_name: str) -> list[CodeType] | None:
        """The parts of the cell to run one after the other; the value of an expression in the last is to be shown.

        None: IPython has to run it, because it is no Python, awaits something, or is changed or watched by a hook.
        """
        try:
            return self._compiled(source, file_name)
        except Exception:  # noqa: BLE001 - a magic or a mistake; or the agent's code has damaged IPython
            return None

    def _compiled(self, source: str, file_name: str) -> list[CodeType] | None:
        first = source[:1]
        if not first or first.isspace() or self._present_hooks() != self._hooks or self._is_changed(source):
            return None
        compiler = self._shell.compile
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if self._shell.autoawait else 0
        if "\n" not in source.rstrip("\n") and ":" not in source and ";" not in source:
            # One simple statement, as all others need one of these; "single" shows its value if it is an expression.
            with compiler.extra_flags(flags):
                code = compiler(source, file_name, "single")
            return None if code.co_flags & inspect.CO_COROUTINE else [code]
        nodes = compiler.ast_parse(source, file_name).body
        shown = nodes.pop() if nodes and isinstance(nodes[-1], ast.Expr) else None
        parts: list[CodeType] = []
        with compiler.extra_flags(flags):
            if nodes:
                parts.append(compiler(ast.Module(nodes, []), file_name, "exec"))
            if shown is not None:
                parts.append(compiler(ast.Interactive([shown]), file_name, "single"))
        return None if any(part.co_flags & inspect.CO_COROUTINE for part in parts) else parts

    def _is_changed(self, source: str) -> bool:
        """Whether IPython would change this text, which is Python as it is."""
        lines = source.splitlines()
        if ">>>" in source or any(prompt in line for line in lines[:2] for prompt in _PROMPTS):
            return True
        # A single word may be the name of a magic, and `exit` calls itself.
        return len(lines) == 1 and self._shell.prefilter_manager.prefilter_lines(source) != source.rstrip("\n")
