"""The encoder of cells: tools, output fields and variables as the frames that go with a cell. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from kernel_bridge.cells import Cell, Limits
from kernel_bridge.errors import NotSendable
from kernel_bridge.live.sent_variables import VariableLedger
from kernel_bridge.live.tool_dispatch import describe_tool
from kernel_bridge.wire import Codec, Unsendable

__all__ = ["CellEncoder", "CellFrame", "CellVariable"]

CellFrame: TypeAlias = "bytes | memoryview"
# name, index of its frame or None when the kernel has it, form, whether what a checkpoint restored is newer
CellVariable: TypeAlias = "tuple[str, int | None, str, bool]"


class CellEncoder:
    """Encodes the cells of one session; knows what its present kernel has already. For one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self._codec = Codec(limit_bytes=limits.frame_bytes, limit_depth=limits.frame_depth)
        self.variables = VariableLedger(self._codec)
        self._descriptions: dict[str, tuple[Any, dict[str, Any]]] = {}

    def encode(self, cell: Cell, tools: Mapping[str, Callable[..., Any]]) -> tuple[list[CellFrame], list[CellVariable]]:
        """The frames of a cell, the first of which tells of the tools, and its variables. Raises: NotSendable."""
        fields = None if cell.output_fields is None else [dict(field) for field in cell.output_fields]
        binding = self._codec.dump({"tools": self._described(tools), "output_fields": fields})
        frames: list[CellFrame] = [binding]
        self.variables.begin()
        names: list[CellVariable] = []
        for name, value in cell.variables.items():
            try:
                changed = self.variables.changed(name, value)
            except Unsendable as error:
                raise NotSendable(error.path, error.type, error.reason) from None
            if changed is None:
                names.append((name, None, "value", False))
            else:
                form, data = changed
                names.append((name, len(frames), form, self.variables.inherited(name)))
                frames.append(data)
        return frames, names

    def _described(self, tools: Mapping[str, Callable[..., Any]]) -> list[dict[str, Any]]:
        """The tools as the kernel's stubs show them, made anew only for tools that changed."""
        fresh: dict[str, tuple[Any, dict[str, Any]]] = {}
        for name, tool in tools.items():
            known = self._descriptions.get(name)
            same = known is not None and known[0] is tool
            fresh[name] = known if known is not None and same else (tool, describe_tool(name, tool, self._codec))
        self._descriptions = fresh
        return [description for _, description in fresh.values()]
