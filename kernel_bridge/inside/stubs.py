"""The stubs of the host's tools, and SUBMIT.

A binding, which every cell brings, is a list of tools and the output fields:
`{"tools": [{"name", "doc", "parameters": [{"name", "kind", "default"?, "default_text"?, "annotation"?}]?,
"returns"?}], "output_fields": [{"name", "type"?}] | None}`.
"""

# Submitted values of any type are looked at by their run-time type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from kernel_bridge.inside.channel import HostChannel
from kernel_bridge.inside.pickling import HOST_TOOLS
from kernel_bridge.wire import PAGE_CALL


class Submitted(BaseException):
    """Ends the cell after an accepted SUBMIT. Not an Exception, so that `except Exception` lets it through."""


class _Text:
    """A default or an annotation that could not be sent as itself: its source text."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


class Binding:
    """The stubs of the current cell, remade only when the host's description of them changes."""

    def __init__(self, channel: HostChannel, cell_is_running: Callable[[], bool]) -> None:
        self._channel = channel
        self._cell_is_running = cell_is_running
        self._described: bytes | None = None
        self.names: dict[str, Callable[..., Any]] = {}
        self.submitted = False

    def update(self, described: bytes, namespace: dict[str, Any]) -> None:
        """Make the namespace hold exactly the tools that the host offers now."""
        if described != self._described:
            for name, stub in self.names.items():
                if namespace.get(name) is stub:
                    del namespace[name]
            spec = self._channel.codec.load(described, verify=False)
            self.names = {tool["name"]: self._stub(tool) for tool in spec["tools"]}
            self.names["SUBMIT"] = self._submit(spec["output_fields"])
            self._described = described
        self.submitted = False
        namespace.update(self.names)

    def stub_of(self, name: str) -> Callable[..., Any]:
        """The stub of a tool. Raises: NameError when the host offers no such tool now."""
        if name not in self.names:
            raise NameError(f"there is no host tool named {name!r} now")
        return self.names[name]

    def read_page(self, source: str, key: Any, start: int, stop: int) -> Any:
        """Items of a list that the host keeps. Raises: what its source raised, under the same class name."""
        if self.submitted:
            raise Submitted
        return self._channel.call(PAGE_CALL + source, (key, start, stop), {})

    def _stub(self, tool: Mapping[str, Any]) -> Callable[..., Any]:
        name = tool["name"]
        call = self._channel.call

        def stub(*args: Any, **kwargs: Any) -> Any:
            if self.submitted:
                raise Submitted  # a bare `except:` swallowed the first one; the cell is over all the same
            return call(name, args, kwargs)

        signature = None if tool["parameters"] is None else _signature(tool["parameters"], tool.get("returns"))
        return _dress(stub, name, tool["doc"], signature)

    def _submit(self, fields: list[dict[str, Any]] | None) -> Callable[..., Any]:
        fields = [{"name": "output"}] if fields is None else fields
        signature = _signature([{"kind": 1, "annotation": field.get("type"), **field} for field in fields])
        names = ", ".join(f["name"] for f in fields)

        def submit(*args: Any, **kwargs: Any) -> None:
            if not self._cell_is_running():
                raise RuntimeError("SUBMIT ends the agent's own cell; there is none running now")
            if self.submitted:
                raise Submitted
            try:
                values = signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(f"SUBMIT({names}): {error}") from None
            for field in fields:
                _check_type(field, values[field["name"]])
            self._channel.submit(values)
            self.submitted = True
            raise Submitted

        return _dress(submit, "SUBMIT", f"Submit the final output, SUBMIT({names}), and end the session.", signature)


def _dress(
    function: Callable[..., Any], name: str, doc: str | None, signature: inspect.Signature | None
) -> Callable[..., Any]:
    function.__name__ = function.__qualname__ = name
    function.__module__ = HOST_TOOLS
    function.__doc__ = doc
    if signature is not None:
        function.__signature__ = signature  # type: ignore[attr-defined]
    return function


_KINDS = {int(kind): kind for kind in type(inspect.Parameter.VAR_KEYWORD)}


def _signature(parameters: list[dict[str, Any]], returns: str | None = None) -> inspect.Signature:
    made: list[inspect.Parameter] = []
    for p in parameters:
        default: Any = inspect.Parameter.empty
        if "default" in p:
            default = p["default"]
        elif "default_text" in p:
            default = _Text(p["default_text"])
        annotation = inspect.Parameter.empty if p.get("annotation") is None else _Text(p["annotation"])
        made.append(inspect.Parameter(p["name"], _KINDS[p["kind"]], default=default, annotation=annotation))
    return inspect.Signature(made, return_annotation=inspect.Signature.empty if returns is None else _Text(returns))


_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int, "float": (int, float), "bool": bool, "list": list, "dict": dict, "NoneType": type(None),
}  # fmt: skip


def _check_type(field: Mapping[str, Any], value: Any) -> None:
    """Refuse what cannot become the field's type; `str` takes anything, and text may hold any of the others."""
    wanted = _TYPES.get(field.get("type", ""))
    if wanted is None or (
        (isinstance(value, wanted) and not (wanted is int and isinstance(value, bool)))
        or (wanted is list and isinstance(value, (tuple, set, frozenset)))
        or any(hasattr(value, mark) for mark in ("__dataclass_fields__", "model_dump", "dtype"))  # the host checks them
        or (wanted is int and isinstance(value, float) and value.is_integer())
        or (wanted in (bool, int) and isinstance(value, (bool, int)) and value in (0, 1))
        or (isinstance(value, str) and _parses_as(value, wanted))
    ):
        return
    raise TypeError(f"SUBMIT: {field['name']} must be {field['type']}, got {type(value).__name__} {value!r:.80}")


def _parses_as(text: str, wanted: type | tuple[type, ...]) -> bool:
    if wanted is bool:
        return text.strip().lower() in ("true", "false", "1", "0", "yes", "no", "y", "n", "on", "off", "t", "f")
    for parse in (json.loads, ast.literal_eval):
        try:
            if isinstance(parse(text), wanted):
                return True
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return False
