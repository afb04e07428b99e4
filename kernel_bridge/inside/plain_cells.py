"""Cells that are plain Python: run without IPython's transformers, hooks and history, which cost more than the code.

The agent sees no difference: a cell that any of those could change or watch is left to IPython.
"""

# IPython carries no types: what comes from it is unknown to the checker.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ast
import builtins
import codeop
import contextlib
import keyword
import re
from collections.abc import Generator, Mapping
from types import CodeType
from typing import Any

__all__ = ["PlainCells", "without_empty_lines"]

_PROMPTS = ("In [", "...")  # which IPython removes from pasted text; both can be Python, too, as can ">>>"
_BEGIN = re.compile(r"(\w*)\s*(.?)")  # the first word of a line, and what follows it
_EMPTY_LINES = re.compile(r"(?:[^\S\n]*\n)+")
_WAITS = 0x80  # `inspect.CO_COROUTINE`, without importing that


class PlainCells:
    """Compiles the cells that need nothing of IPython.

    Args:
        names: the globals of the cells.
    """

    def __init__(self, names: Mapping[str, Any]) -> None:
        self._names = names
        self._compiler: Any = _Compiler()
        self._shell: Any = None
        self._hooks: tuple[object, ...] = ()

    def watch(self, shell: Any) -> None:
        """From now on there is IPython's shell, which the agent's code may change. It has not yet."""
        shell.compile.flags |= self._compiler.flags  # what cells have imported from `__future__`
        self._compiler = shell.compile
        self._shell = shell
        self._hooks = self._present_hooks()

    def _present_hooks(self) -> tuple[object, ...]:
        """All that may change a cell or watch it."""
        shell = self._shell
        if shell is None:
            return ()
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
        if not source:
            return []
        if source[0].isspace() or self._present_hooks() != self._hooks or self._is_changed(source):
            return None
        compiler = self._compiler
        awaits = self._shell is None or self._shell.autoawait
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if awaits else 0
        if source[0] != "#" and "\n" not in source.rstrip("\n") and ":" not in source and ";" not in source:
            # One simple statement, as all others need one of these; "single" shows its value if it is an expression.
            with compiler.extra_flags(flags):
                code = compiler(source, file_name, "single")
            return None if code.co_flags & _WAITS else [code]
        nodes = compiler.ast_parse(source, file_name).body
        shown = nodes.pop() if nodes and isinstance(nodes[-1], ast.Expr) else None
        parts: list[CodeType] = []
        with compiler.extra_flags(flags):
            if nodes:
                parts.append(compiler(ast.Module(nodes, []), file_name, "exec"))
            if shown is not None:
                parts.append(compiler(ast.Interactive([shown]), file_name, "single"))
        return None if any(part.co_flags & _WAITS for part in parts) else parts

    def _is_changed(self, source: str) -> bool:
        """Whether IPython would change this text, or might, which is Python as it is."""
        lines = source.splitlines()
        if ">>>" in source or any(prompt in line for line in lines[:2] for prompt in _PROMPTS):
            return True
        if len(lines) > 1:
            return False
        # A single word may be the name of a magic, and `exit` calls itself.
        if self._shell is None:
            return self._may_be_magic(source)
        return self._shell.prefilter_manager.prefilter_lines(source) != source.rstrip("\n")

    def _may_be_magic(self, line: str) -> bool:
        found = _BEGIN.match(line)
        assert found is not None
        word, follows = found.groups()
        if not word.isidentifier() or follows in ("=", ",", "."):
            return False
        return not (word in self._names or hasattr(builtins, word) or keyword.iskeyword(word))


def without_empty_lines(code: str) -> str:
    """The code without the empty lines before its first, as IPython runs it."""
    found = _EMPTY_LINES.match(code)
    return code if found is None else code[found.end() :]


class _Compiler(codeop.Compile):
    """IPython's compiler in its place, before it is there: it keeps what cells import from `__future__`."""

    flags: int

    def ast_parse(self, source: str, file_name: str) -> ast.Module:
        return compile(source, file_name, "exec", self.flags | ast.PyCF_ONLY_AST, True)

    @contextlib.contextmanager
    def extra_flags(self, flags: int) -> Generator[None]:
        before = self.flags
        self.flags |= flags
        try:
            yield
        finally:
            self.flags &= before | ~flags
