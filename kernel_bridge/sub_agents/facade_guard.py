"""The guard of DSPy's facade: what a kernel's code may ask of it.

DSPy's modules put two tools into an interpreter, by which `import dspy` in generated code builds predictors on the
host and calls them. What comes with such a call is the kernel's text. It reaches DSPy only as what is made here of it:
a signature of types from a closed list, arguments from a closed list for each kind, inputs of the signature's fields.
A tool of the facade that is not known here is refused.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from kernel_bridge.errors import SubAgentError
from kernel_bridge.live.tool_dispatch import BoundedTool
from kernel_bridge.sub_agents.inputs import MOST_CALL_VALUES, plain_input, value_count
from kernel_bridge.sub_agents.kinds import KINDS, checked_kind, checked_options, signature_parts
from kernel_bridge.sub_agents.quota import Quota
from kernel_bridge.sub_agents.signature_text import SignatureText, read_signature

__all__ = ["DSPyBinding", "FacadeGuard"]

Tool = Callable[..., Any]

MOST_SUB_AGENTS: Final = 64  # that one interpreter keeps; the one that was not used for longest makes room
MOST_CONSTRUCT_BYTES: Final = 2**18  # of one construction as it comes
MOST_CALL_BYTES: Final = 4 * 2**20  # of the inputs of one call as they come

_CONSTRUCT: Final = "__dspy_construct__"
_CALL: Final = "__dspy_call__"
_RESERVED: Final = ("__dspy", "_dspy")
_FACADE: Final = "dspy.primitives.facade"

_TOOL_MARK: Final = "__dspy_tool__"


# Names that DSPy's predictors take for their own arguments when they are called.
_TAKEN: Final = frozenset({"signature", "new_signature", "demos", "config", "lm", "prediction", "trace", "self"})


class DSPyBinding(Protocol):
    """What is needed of DSPy; the interpreter, which imports it, has it."""

    taken_names: frozenset[str]  # that no field of a signature can have

    def signature(self, read: SignatureText, instructions: str | None) -> Any:
        """The signature as DSPy's own object."""
        ...

    def tool(self, tool: Any) -> Any:
        """A host's tool as a sub-agent gets it: it fails with a text instead of an exception; its texts are texts."""
        ...

    def clean(self, text: str) -> str:
        """A text in which DSPy reads nothing but text."""
        ...

    def around_call(self) -> AbstractContextManager[Any]:
        """Around a call: it is kept in no trace, unless somebody has asked for one; what LMs answer in it is text."""
        ...

    def refusal(self, error: BaseException, kind: str) -> Exception:
        """What the kernel is told of an error, in words of ours."""
        ...


@dataclass(slots=True)
class _Built:
    kind: str
    slot: str  # its name in DSPy's facade
    inputs: tuple[str, ...]
    returned: tuple[str, ...]
    running: int = 0


@dataclass(frozen=True, slots=True)
class _Facade:
    """DSPy's side: its two tools, and what was built by them."""

    construct: Tool | None
    call: Tool | None
    built: OrderedDict[str, _Built] = field(default_factory=OrderedDict[str, _Built])
    free: list[str] = field(default_factory=lambda: [f"sub_agent_{number}" for number in range(MOST_SUB_AGENTS)])

    @property
    def owner(self) -> object:
        """DSPy's facade, of which the tools are methods."""
        return getattr(self.construct, "__self__", None)

    @property
    def types(self) -> Mapping[str, Any]:
        """Types by name that the facade's owner has declared."""
        declared = _mapping(getattr(self.owner, "_custom_types", None))
        return {name: kind for name, kind in declared.items() if isinstance(kind, type)}

    @property
    def tools(self) -> Mapping[str, Any]:
        """The tools by name that may be handed to sub-agents."""
        return _mapping(getattr(self.owner, "_tools", None))

    @property
    def originals(self) -> Mapping[str, Any]:
        """The objects that the owner has handed in, by the texts that stand for them, such as images."""
        return _mapping(getattr(self.owner, "_originals", None))



def _mapping(found: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", found or {})


class FacadeGuard:
    """Stands between a kernel and the facade's tools. Thread-safe."""

    def __init__(self, dspy: DSPyBinding, quota: Quota) -> None:
        self._dspy = dspy
        self._quota = quota
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._facade = _Facade(None, None)
        building = _stand_in(self._construct, "the construction of a sub-agent", MOST_CONSTRUCT_BYTES, own_time=True)
        calling = _stand_in(self._call, "the call of a sub-agent", MOST_CALL_BYTES, own_time=False)
        self._tools: Mapping[str, Tool] = {_CONSTRUCT: building, _CALL: calling}
        self._unknown = _stand_in(_refuse, "the call of a sub-agent", MOST_CONSTRUCT_BYTES, own_time=True)

    @property
    def has_originals(self) -> bool:
        """Whether the facade's owner has handed in objects that cross as texts, such as images."""
        return bool(self._facade.originals)

    def guarded(self, tools: Mapping[str, Tool]) -> Mapping[str, Tool]:
        """The tools as a kernel may have them: those of the facade are replaced by ours, or refused."""
        construct, call = tools.get(_CONSTRUCT), tools.get(_CALL)
        with self._lock:
            if construct != self._facade.construct or call != self._facade.call:
                self._facade = _Facade(construct, call)
        return {
            name: self._tools.get(name, self._unknown) if _of_facade(name, tool) else tool
            for name, tool in tools.items()
        }

    # -- what the kernel calls ---------------------------------------------------------------------------------------

    def _construct(self, kind: Any, signature: Any, attr_name: Any = None, kwargs: Any = None) -> str:
        facade, dspy = self._facade, self._dspy
        kind = checked_kind(kind)
        read, instructions = self._read(kind, signature, facade)
        options = checked_options(kind, kwargs)
        inputs = tuple(field.name for field in read.inputs)
        if KINDS[kind].takes_tools:
            options["tools"] = self._chosen_tools(options.get("tools", []), set(inputs), facade)
        elif kind == "CodeAct":
            options["tools"] = []
        slot = self._claim(facade)
        try:
            if facade.construct is None:
                raise SubAgentError("sub-agents cannot be built here")
            made = dspy.signature(read, instructions)
            facade.construct(kind=kind, signature=made, attr_name=slot, kwargs=options)
        except BaseException as error:  # noqa: BLE001 - foreign code, on a thread of ours: nothing of it ends the host
            with self._lock:
                facade.free.append(slot)
            raise dspy.refusal(error, kind) from None
        outputs = tuple(field.name for field in read.outputs)
        built = _Built(kind, slot, inputs, (*KINDS[kind].also_returns, *outputs))
        with self._lock:
            handle = f"sub-agent {next(self._numbers)}"
            facade.built[handle] = built
        return handle

    def _call(self, handle: Any, inputs: Any = None) -> dict[str, Any]:
        facade = self._facade
        built = self._pinned(handle, facade)
        try:
            given = self._checked_inputs(built, inputs, facade)
            if facade.call is None:
                raise SubAgentError("sub-agents cannot be called here")
            with self._quota.calling(runs_code=KINDS[built.kind].runs_code), self._dspy.around_call():
                fields = facade.call(handle=built.slot, inputs=given)
            return {name: fields[name] for name in built.returned if name in fields}
        except BaseException as error:  # noqa: BLE001 - as above
            raise self._dspy.refusal(error, built.kind) from None
        finally:
            with self._lock:
                built.running -= 1

    # -- those that there are ----------------------------------------------------------------------------------------

    def _claim(self, facade: _Facade) -> str:
        with self._lock:
            if facade.free:
                return facade.free.pop()
            idle = next((handle for handle, built in facade.built.items() if not built.running), None)
            if idle is None:
                raise SubAgentError(f"{MOST_SUB_AGENTS} sub-agents are at work; build another when one has ended")
            return facade.built.pop(idle).slot

    def _pinned(self, handle: Any, facade: _Facade) -> _Built:
        with self._lock:
            built = facade.built.get(handle) if isinstance(handle, str) else None
            if built is None:
                raise SubAgentError(
                    f"this sub-agent is not there any more: of those that were built, the {MOST_SUB_AGENTS} last used "
                    "are kept. Build it again"
                )
            facade.built.move_to_end(cast("str", handle))
            built.running += 1
            return built

    # -- checks ------------------------------------------------------------------------------------------------------

    def _read(self, kind: str, signature: Any, facade: _Facade) -> tuple[SignatureText, str | None]:
        text, instructions = signature_parts(kind, signature)
        # The values of a Literal are put into the prompt.
        read = read_signature(self._dspy.clean(text), facade.types)
        taken = _TAKEN | KINDS[kind].taken | self._dspy.taken_names
        if wrong := sorted(field.name for field in (*read.inputs, *read.outputs) if field.name in taken):
            raise SubAgentError(f"dspy.{kind} has names of its own that no field can have: {', '.join(wrong)}; rename")
        return read, None if instructions is None else self._dspy.clean(instructions)

    def _chosen_tools(self, given: Any, inputs: set[str], facade: _Facade) -> list[Any]:
        offered = facade.tools
        marks = cast("list[Any]", given) if isinstance(given, list) else [given]
        chosen: dict[str, Any] = {}
        for mark in marks:
            name = cast("dict[str, Any]", mark).get(_TOOL_MARK) if isinstance(mark, dict) else None
            if not isinstance(name, str) or name not in offered:
                raise SubAgentError(
                    "tools must be a list of the host's own tools: "
                    f"{', '.join(offered) or 'there are none'}. Functions of the REPL cannot be handed to sub-agents"
                )
            chosen[name] = offered[name]
        if clash := sorted(set(chosen) & inputs):
            raise SubAgentError(f"inputs and tools have the same names: {', '.join(clash)}; rename the inputs")
        return [self._dspy.tool(tool) for tool in chosen.values()]

    def _checked_inputs(self, built: _Built, inputs: Any, facade: _Facade) -> dict[str, Any]:
        given: dict[str, Any] = {} if inputs is None else inputs
        if not isinstance(given, dict) or set(given) != set(built.inputs):  # pyright: ignore[reportUnnecessaryIsInstance]
            names = ", ".join(built.inputs) or "none"
            raise SubAgentError(f"call it with exactly the inputs of its signature, by name: {names}")

        if sum(map(value_count, given.values())) > MOST_CALL_VALUES:
            raise SubAgentError(
                f"the inputs hold more than {MOST_CALL_VALUES:,} values, those within lists and dicts counted; pass "
                "fewer, or a text"
            )

        def text(value: str) -> str:
            return value if value in facade.originals else self._dspy.clean(value)

        return {name: plain_input(name, value, text) for name, value in given.items()}


def _stand_in(tool: Tool, what: str, most_bytes: int, *, own_time: bool) -> BoundedTool:
    """What stands for a tool of the facade."""
    signature = inspect.signature(tool)

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            raise SubAgentError("DSPy's facade was called in a way that is not known here") from None
        return tool(*bound.args, **bound.kwargs)

    return BoundedTool(run, what, most_bytes, own_time)


def _refuse(*args: Any, **kwargs: Any) -> Any:
    raise SubAgentError("this part of DSPy's facade is not offered")


def _of_facade(name: str, tool: Tool) -> bool:
    """Whether a tool is of DSPy's facade: by its name, or because it is one of the facade's own functions."""
    return name == "dspy" or name.startswith(_RESERVED) or getattr(tool, "__module__", None) == _FACADE
