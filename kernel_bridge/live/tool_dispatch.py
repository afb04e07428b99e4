"""The dispatcher: a tool's name and arguments in, its result out. Runs on whatever thread calls it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from kernel_bridge.live.signatures import ArgumentBinder, call_signature
from kernel_bridge.threads.loop_thread import LoopThread
from kernel_bridge.wire import PAGE_CALL, Codec, PageSource, Unsendable

__all__ = ["BoundedTool", "ToolDispatcher", "describe_tool"]

_LOOP = "async tools of a kernel"
_BRIEF_SECONDS = 0.0005  # within which a call has ended that counts as brief: as long as it takes to wake a few threads

# Of a context: the dispatchers of the tools that it runs in, one within the other.
_CALLING: contextvars.ContextVar[tuple[ToolDispatcher, ...]] = contextvars.ContextVar("kernel_bridge_tools", default=())

_NEVER_AWAITED = frozenset({type(None), bool, int, float, str, bytes, list, dict, tuple})

Tool = Callable[..., Any]
Invoke = Callable[[str, list[Any], dict[str, Any]], Any]


@dataclass(frozen=True, slots=True)
class BoundedTool:
    """A tool with bounds of its own."""

    run: Tool
    what: str  # it does, for an error
    most_bytes: int  # of the arguments as they come; of a longer call nothing is read
    own_time: bool  # the time that it takes is the cell's own, unlike that of other tools

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


@dataclass(slots=True)
class _CalledTool:
    """A tool that was called."""

    run: Tool
    binder: ArgumentBinder | None = None  # made in each cell, at the first call
    is_brief: bool = False  # its last call was


class ToolDispatcher:
    """Runs tools for one kernel.

    `bind` says, at the start of every cell, which tools there are and in whose context they run; a call made
    between two cells, from a console, finds the last binding. Sources of pages are called like tools, under names that
    no tool has.

    Args:
        invoke: runs one tool by name; by default the bound tool itself. An interpreter hands in its own, so that
            its callbacks see every call of a tool; they do not see the reading of pages.
    """

    def __init__(self, invoke: Invoke | None = None) -> None:
        self._invoke = self.run if invoke is None else invoke
        self._tools: Mapping[str, Tool] = {}
        self.page_sources: Collection[str] = ()  # by name
        self._submit: Callable[[dict[str, Any]], object] | None = None
        self._called: dict[str, _CalledTool] = {}
        self._context = contextvars.copy_context()
        self._loop = LoopThread(_LOOP)

    def bind(
        self,
        tools: Mapping[str, Tool],
        submit: Callable[[dict[str, Any]], object] | None,
        page_sources: Mapping[str, PageSource] | None = None,
    ) -> None:
        """Set the tools, the judge of submissions and the sources of pages, in the context of the calling thread."""
        sources = {} if page_sources is None else dict(page_sources)
        bound = {**tools, **{PAGE_CALL + name: source for name, source in sources.items()}}
        self._called = {
            name: _CalledTool(known.run, None, known.is_brief)
            for name, known in dict(self._called).items()  # calls of an earlier cell may still run
            if bound.get(name) is known.run
        }
        self._tools = bound
        self.page_sources = sources
        self._submit = submit
        self._context = contextvars.copy_context()

    def call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run a tool in a copy of the binding's context. Raises: whatever it raises."""
        return self._context.copy().run(self._call, name, args, kwargs)

    def _call(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        _CALLING.set((*_CALLING.get(), self))
        run = self.run if name.startswith(PAGE_CALL) else self._invoke
        return run(name, args, kwargs)

    @property
    def is_calling(self) -> bool:
        """Whether this code runs in a tool that was called here."""
        return self in _CALLING.get()

    def is_brief(self, name: str) -> bool:
        """Whether the last call of a tool took less time than it takes to hand work to another thread."""
        known = self._called.get(name)
        return known is not None and known.is_brief

    def note_seconds(self, name: str, seconds: float) -> None:
        """A call took so long."""
        known = self._called.get(name)
        if known is not None:
            known.is_brief = seconds < _BRIEF_SECONDS

    def too_long(self, name: str, size: int) -> str | None:
        """Why a call of so many bytes is not read at all; None: it is."""
        tool = self._tools.get(name)
        if not isinstance(tool, BoundedTool) or size <= tool.most_bytes:
            return None
        return f"{tool.what} came with {size:,} bytes; at most {tool.most_bytes:,} are accepted"

    def takes_own_time(self, name: str) -> bool:
        """Whether the time of a call is the cell's own."""
        tool = self._tools.get(name)
        return isinstance(tool, BoundedTool) and tool.own_time

    def submit(self, fields: dict[str, Any]) -> None:
        """Let the judge look at a submission. Raises: the refusal."""
        if self._submit is not None:
            self._context.copy().run(self._submit, fields)

    def run(self, name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Run the bound tool itself; async tools are awaited, all on one event loop that lasts until `close`.

        Arguments are bound to the tool's signature first; see `ArgumentBinder`.
        """
        tool = self._tools.get(name)
        if tool is None:
            raise NameError(self._unknown(name))
        known = self._called.get(name)
        if known is None or known.run is not tool:
            known = self._called[name] = _CalledTool(tool)
        if known.binder is None:
            known.binder = ArgumentBinder(name, tool)
        args, kwargs = known.binder(args, kwargs)
        result = tool(*args, **kwargs)
        if type(result) in _NEVER_AWAITED or not inspect.isawaitable(result):
            return result
        try:
            return self._loop.run(result)
        except asyncio.CancelledError:  # of the tool alone, not of the caller of the cell
            raise RuntimeError(f"{name}() was cancelled") from None

    def _unknown(self, name: str) -> str:
        if name.startswith(PAGE_CALL):
            return f"there is no source {name.removeprefix(PAGE_CALL)!r} that the rest of this list could be read from"
        known = [tool for tool in self._tools if not tool.startswith(PAGE_CALL)]
        return f"there is no tool named {name!r}; the tools are: {', '.join(known) or 'none'}"

    def close(self) -> None:
        """Cancel the async tools that still run, and end their event loop. Idempotent; tools can run no more."""
        self._loop.close()

    def leave_to_parent(self) -> None:
        """In the child of a fork: the loop's thread is the parent's."""
        self._loop = LoopThread(_LOOP)


def describe_tool(name: str, tool: Tool, codec: Codec) -> dict[str, Any]:
    """What a kernel needs to make a stub that looks like the tool; the shape is in `inside/stubs.py`."""
    try:
        signature = call_signature(tool)
    except (ValueError, TypeError):
        signature = None
    doc = inspect.getdoc(tool) if not inspect.isclass(tool) else tool.__doc__
    description: dict[str, Any] = {"name": name, "doc": doc, "parameters": None}
    if signature is not None:
        description["parameters"] = [_describe_parameter(p, codec) for p in signature.parameters.values()]
        if signature.return_annotation is not inspect.Signature.empty:
            description["returns"] = _annotation_text(signature.return_annotation)
    return description


def _annotation_text(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)


def _describe_parameter(parameter: inspect.Parameter, codec: Codec) -> dict[str, Any]:
    described: dict[str, Any] = {"name": parameter.name, "kind": int(parameter.kind)}
    if parameter.annotation is not inspect.Parameter.empty:
        described["annotation"] = _annotation_text(parameter.annotation)
    if parameter.default is not inspect.Parameter.empty:
        try:
            codec.dump(parameter.default)
            plain = type(parameter.default) in (type(None), bool, int, float, str)
        except Unsendable:
            plain = False
        if plain:
            described["default"] = parameter.default
        else:
            described["default_text"] = repr(parameter.default)[:200]
    return described
