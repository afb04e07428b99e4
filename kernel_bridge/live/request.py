"""Requests: what goes to a kernel for one cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from kernel_bridge.cells import Cell, CellHost, RemoteFailure
from kernel_bridge.errors import NotSendable
from kernel_bridge.live.sent_variables import SentVariables
from kernel_bridge.live.tool_dispatch import describe_tool
from kernel_bridge.options import Limits
from kernel_bridge.wire import Codec, Unsendable

__all__ = ["CellEncoder", "CellRequest", "RestoreRequest", "why_unreadable"]

# name, index of its frame or None when the kernel has it, form, whether what a checkpoint restored is newer
_Variable: TypeAlias = "tuple[str, int | None, str, bool]"


@dataclass(frozen=True, slots=True)
class CellRequest:
    """One cell as a kernel gets it."""

    code: str
    number: int  # of the cell
    variables: Sequence[_Variable]
    setup: bool  # see `Cell`
    again: bool  # a setup cell, run once more in a successor
    frames: Sequence[bytes | memoryview]  # the first tells of the tools and output fields, the others hold variables

    def metadata(self) -> dict[str, Any]:
        """What stands beside the code in Jupyter's message."""
        return {"number": self.number, "variables": list(self.variables), "setup": self.setup, "again": self.again}


@dataclass(frozen=True, slots=True)
class RestoreRequest:
    """Asks a kernel to load the checkpoint that lies in its directory."""

    code: str = ""
    frames: Sequence[bytes | memoryview] = ()

    def metadata(self) -> dict[str, Any]:
        """What stands beside the code in Jupyter's message."""
        return {"restore": True}


class CellEncoder:
    """Encodes the cells of one session; knows what its present kernel has already. For one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._codec = Codec(limit_bytes=limits.frame_bytes, limit_depth=limits.frame_depth)
        self.variables = SentVariables(self._codec)
        self._descriptions: dict[str, tuple[Any, dict[str, Any]]] = {}

    def encode(self, cell: Cell, host: CellHost, number: int, *, again: bool) -> CellRequest:
        """The request of a cell. Raises: NotSendable."""
        fields = None if cell.output_fields is None else [dict(field) for field in cell.output_fields]
        frames: list[bytes | memoryview] = [
            self._codec.dump({"tools": self._described(host.tools), "output_fields": fields})
        ]
        self.variables.begin()
        variables: list[_Variable] = []
        for name, value in cell.variables.items():
            if not _is_text(name):
                raise NotSendable(name, type(value).__name__, "its name holds a lone surrogate")
            try:
                changed = self.variables.changed(name, value, host.page_sources)
            except Unsendable as error:
                raise NotSendable(error.path, error.type, error.reason) from None
            if changed is None:
                variables.append((name, None, "value", False))
            else:
                form, data = changed
                variables.append((name, len(frames), form, self.variables.inherited(name)))
                frames.append(data)
        return CellRequest(cell.code, number, variables, cell.setup, again, frames)

    def _described(self, tools: Mapping[str, Callable[..., Any]]) -> list[dict[str, Any]]:
        """The tools as the kernel's stubs show them, made anew only for tools that changed."""
        fresh: dict[str, tuple[Any, dict[str, Any]]] = {}
        for name, tool in tools.items():
            known = self._descriptions.get(name)
            same = known is not None and known[0] is tool
            fresh[name] = known if known is not None and same else (tool, describe_tool(name, tool, self._codec))
        self._descriptions = fresh
        return [description for _, description in fresh.values()]


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def why_unreadable(code: str) -> RemoteFailure | None:
    """Why code cannot even be sent: Python source is text, and a lone surrogate is not."""
    try:
        code.encode()
    except UnicodeEncodeError as error:
        line = code.count("\n", 0, error.start) + 1
        text = f"line {line} holds {code[error.start]!r}, a lone surrogate, which is no character of Python source"
        return RemoteFailure("SyntaxError", text, f"SyntaxError: {text}", compiling=True)
    return None
