"""The sub-agents of a kernel: what its code may ask of DSPy's facade, and how many of them there may be. Knows no DSPy.

DSPy's modules put two tools into an interpreter, by which `import dspy` in generated code builds predictors on the
host and calls them. What comes with such a call is the kernel's text. It reaches DSPy only as what is made here of it:
a signature of types from a closed list, arguments from a closed list for each kind, inputs of the signature's fields.
A tool of the facade that is not known here is refused.
"""

from __future__ import annotations

import inspect
import itertools
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, cast

from kernel_bridge.errors import SubAgentError
from kernel_bridge.live.tool_dispatch import BoundedTool
from kernel_bridge.sub_agents.signature_text import SignatureText, read_signature

__all__ = ["KINDS", "Account", "Maker", "SubAgents", "plain_input"]

Tool = Callable[..., Any]

MOST_SUB_AGENTS: Final = 64  # that one interpreter keeps; the one that was not used for longest makes room
MOST_KERNELS: Final = 4  # of sub-agents that run code of their own, at once, for one agent
MOST_CALLS: Final = 64  # of sub-agents at once, for one agent
LEAST_MEMORY: Final = 512 * 2**20  # bytes for the kernel of a sub-agent, unless the agent's own has less
MOST_INSTRUCTIONS: Final = 65_536  # characters
MOST_CONSTRUCT_BYTES: Final = 2**18  # of one construction as it comes
MOST_CALL_BYTES: Final = 4 * 2**20  # of the inputs of one call as they come
MOST_CALL_VALUES: Final = 100_000  # in the inputs of one call, those within lists and dicts counted
MOST_DIGITS: Final = 4300  # of a whole number; Python prints no longer one

_CONSTRUCT: Final = "__dspy_construct__"
_CALL: Final = "__dspy_call__"
_RESERVED: Final = ("__dspy", "_dspy")
_FACADE: Final = "dspy.primitives.facade"

_SIGNATURE_MARK: Final = "__dspy_sig__"
_TOOL_MARK: Final = "__dspy_tool__"


def _number(least: float, most: float) -> Callable[[Any], str | None]:
    def wrong(value: Any) -> str | None:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
        return None if fits else f"a number from {least:g} to {most:g}"

    return wrong


def _whole(least: int, most: int) -> Callable[[Any], str | None]:
    def wrong(value: Any) -> str | None:
        fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if fits else f"a whole number from {least} to {most}"

    return wrong


_Check = Callable[[Any], "str | None"]  # what is accepted, where a value is not
_LM_OPTIONS: Final[Mapping[str, _Check]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "max_tokens": _whole(1, 200_000),
    "n": _whole(1, 16),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """One of DSPy's modules, as a sub-agent."""

    options: Mapping[str, _Check]  # arguments of its constructor
    takes_tools: bool = False
    runs_code: bool = False  # in an interpreter of its own
    also_returns: tuple[str, ...] = ()  # fields beside those of its signature
    taken: frozenset[str] = frozenset()  # names that its own fields and arguments have


_STEPS: Final = {"max_iters": _whole(1, 50)}
_AGENT_NAMES: Final = frozenset({"max_iters", "trajectory", "next_thought", "next_tool_name", "next_tool_args"})
_CODE_NAMES: Final = frozenset({"max_iters", "interpreter", "trajectory", "generated_code", "finished", "reasoning"})

KINDS: Final[Mapping[str, Kind]] = {
    "Predict": Kind(_LM_OPTIONS),
    "ChainOfThought": Kind(_LM_OPTIONS, also_returns=("reasoning",), taken=frozenset({"reasoning"})),
    "ReAct": Kind(_STEPS, takes_tools=True, taken=_AGENT_NAMES | {"reasoning"}),
    "ReActV2": Kind(
        _STEPS,
        takes_tools=True,
        taken=_AGENT_NAMES | {"history", "tools", "tool_calls", "termination_reason", "tool_call_results"},
    ),
    "RLM": Kind(
        {**_STEPS, "max_llm_calls": _whole(0, 1000), "max_output_chars": _whole(1, 100_000)},
        takes_tools=True,
        runs_code=True,
        taken=frozenset(
            {"interpreter_factory", "trajectory", "final_reasoning", "variables_info", "repl_history", "llm_query",
             "llm_query_batched", "SUBMIT", "print", "dspy"}
        ),
    ),
    # DSPy 3.5 will drop both. Their tools would run in the kernel, from the source text of the host's functions.
    "CodeAct": Kind(_STEPS, runs_code=True, taken=_CODE_NAMES),
    "ProgramOfThought": Kind(
        _STEPS, runs_code=True,
        taken=_CODE_NAMES | {"previous_code", "error", "final_generated_code", "code_output"},
    ),
}  # fmt: skip
"""The modules that may be built, and what they may be built with."""

# Names that DSPy's predictors take for their own arguments when they are called.
_TAKEN: Final = frozenset({"signature", "new_signature", "demos", "config", "lm", "prediction", "trace", "self"})


class Maker(Protocol):
    """What is known of DSPy, by the interpreter."""

    def taken_names(self) -> frozenset[str]:
        """Names that no field of a signature can have."""
        ...

    def signature(self, read: SignatureText, instructions: str | None) -> Any:
        """The signature as DSPy's own object."""
        ...

    def types(self, facade: object) -> Mapping[str, Any]:
        """Types by name that the owner of the facade has declared."""
        ...

    def tools(self, facade: object) -> Mapping[str, Any]:
        """The tools by name that may be handed to sub-agents."""
        ...

    def tool(self, tool: Any) -> Any:
        """One of them as a sub-agent gets it: it fails with a text instead of an exception; its texts are texts."""
        ...

    def has_originals(self, facade: object) -> bool:
        """Whether there are any texts that stand for objects of its owner."""
        ...

    def original(self, facade: object, text: str) -> bool:
        """Whether a text stands for an object that the owner of the facade has handed in."""
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


class Account:
    """What the sub-agents of one agent have of its host, their own sub-agents included. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls = 0
        self._kernels = 0

    @classmethod
    def current(cls) -> Account | None:
        """That of the sub-agent under whose call this code runs; None: it runs under none."""
        return _CURRENT.get()

    @contextmanager
    def calling(self, *, runs_code: bool) -> Generator[None]:
        """Around one call of a sub-agent. Raises: SubAgentError when there are too many at once."""
        with self._lock:
            if self._calls >= MOST_CALLS:
                raise SubAgentError(f"{MOST_CALLS} calls of sub-agents are under way, and no more are accepted at once")
            if runs_code and self._kernels >= MOST_KERNELS:
                raise SubAgentError(
                    f"{MOST_KERNELS} sub-agents that run code are at work, and no more are accepted at once, those of "
                    "sub-agents included; call it when one of them has ended, or use dspy.Predict"
                )
            self._calls += 1
            self._kernels += runs_code
        before = _CURRENT.set(self)
        try:
            yield
        finally:
            _CURRENT.reset(before)
            with self._lock:
                self._calls -= 1
                self._kernels -= runs_code

    @staticmethod
    def share(memory_bytes: int | None) -> int | None:
        """The memory of one sub-agent's kernel, so that all of them have about as much as the agent's own."""
        return None if memory_bytes is None else min(memory_bytes, max(memory_bytes // MOST_KERNELS, LEAST_MEMORY))


_CURRENT: Final[ContextVar[Account | None]] = ContextVar("kernel_bridge_sub_agents", default=None)


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
        return getattr(self.construct, "__self__", None)


class SubAgents:
    """Stands between a kernel and the facade's tools. Thread-safe."""

    def __init__(self, maker: Maker, account: Account) -> None:
        self._maker = maker
        self._account = account
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
        return self._maker.has_originals(self._facade.owner)

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
        facade, maker = self._facade, self._maker
        kind = _checked_kind(kind)
        read, instructions = self._read(kind, signature, facade)
        options = _checked_options(kind, kwargs)
        inputs = tuple(field.name for field in read.inputs)
        if KINDS[kind].takes_tools:
            options["tools"] = self._chosen_tools(options.get("tools", []), set(inputs), facade)
        elif kind == "CodeAct":
            options["tools"] = []
        slot = self._claim(facade)
        try:
            if facade.construct is None:
                raise SubAgentError("sub-agents cannot be built here")
            made = maker.signature(read, instructions)
            facade.construct(kind=kind, signature=made, attr_name=slot, kwargs=options)
        except BaseException as error:  # noqa: BLE001 - foreign code, on a thread of ours: nothing of it ends the host
            with self._lock:
                facade.free.append(slot)
            raise maker.refusal(error, kind) from None
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
            with self._account.calling(runs_code=KINDS[built.kind].runs_code), self._maker.around_call():
                fields = facade.call(handle=built.slot, inputs=given)
            return {name: fields[name] for name in built.returned if name in fields}
        except BaseException as error:  # noqa: BLE001 - as above
            raise self._maker.refusal(error, built.kind) from None
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
        text, instructions = _signature_parts(kind, signature)
        # The values of a Literal are put into the prompt.
        read = read_signature(self._maker.clean(text), self._maker.types(facade.owner))
        taken = _TAKEN | KINDS[kind].taken | self._maker.taken_names()
        if wrong := sorted(field.name for field in (*read.inputs, *read.outputs) if field.name in taken):
            raise SubAgentError(f"dspy.{kind} has names of its own that no field can have: {', '.join(wrong)}; rename")
        return read, None if instructions is None else self._maker.clean(instructions)

    def _chosen_tools(self, given: Any, inputs: set[str], facade: _Facade) -> list[Any]:
        offered = self._maker.tools(facade.owner)
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
        return [self._maker.tool(tool) for tool in chosen.values()]

    def _checked_inputs(self, built: _Built, inputs: Any, facade: _Facade) -> dict[str, Any]:
        given: dict[str, Any] = {} if inputs is None else inputs
        if not isinstance(given, dict) or set(given) != set(built.inputs):  # pyright: ignore[reportUnnecessaryIsInstance]
            names = ", ".join(built.inputs) or "none"
            raise SubAgentError(f"call it with exactly the inputs of its signature, by name: {names}")

        if sum(map(_values, given.values())) > MOST_CALL_VALUES:
            raise SubAgentError(
                f"the inputs hold more than {MOST_CALL_VALUES:,} values, those within lists and dicts counted; pass "
                "fewer, or a text"
            )

        def text(value: str) -> str:
            return value if self._maker.original(facade.owner, value) else self._maker.clean(value)

        return {name: plain_input(name, value, text) for name, value in given.items()}


def plain_input(path: str, value: Any, text: Callable[[str], str]) -> Any:
    """A copy of a value whose texts have gone through `text`. Raises: SubAgentError when it is no plain value."""
    if value is None or isinstance(value, (bool, float)):
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        if value.bit_length() > MOST_DIGITS * math.log2(10):
            raise SubAgentError(f"{path} is a whole number of more than {MOST_DIGITS} digits")
        return value
    if isinstance(value, list):
        return [plain_input(path, item, text) for item in cast("list[Any]", value)]
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {text(key): plain_input(path, item, text) for key, item in items}
    raise SubAgentError(f"{path} holds {type(value).__name__}; inputs are text, numbers, bool, None, lists and dicts")


def _values(value: Any) -> int:
    if isinstance(value, dict):
        value = list(cast("dict[str, Any]", value).values())
    return 1 + sum(map(_values, cast("list[Any]", value))) if isinstance(value, list) else 1


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


def _checked_kind(kind: Any) -> str:
    if not isinstance(kind, str) or kind not in KINDS:
        raise SubAgentError(f"a sub-agent is one of {', '.join(f'dspy.{name}' for name in KINDS)}")
    return kind


def _signature_parts(kind: str, signature: Any) -> tuple[str, str | None]:
    """The text of a signature, and its instructions."""
    instructions: Any = None
    if isinstance(signature, dict):
        parts = cast("dict[str, Any]", signature)
        if set(parts) != {_SIGNATURE_MARK, "signature", "instructions"} or parts[_SIGNATURE_MARK] is not True:
            signature = None
        else:
            signature, instructions = parts["signature"], parts["instructions"]
    if not isinstance(signature, str) or not (instructions is None or isinstance(instructions, str)):
        raise SubAgentError(
            f'dspy.{kind} takes its signature as a text, dspy.{kind}("question -> answer"), or as '
            'dspy.Signature("question -> answer", "instructions")'
        )
    if instructions is not None and len(instructions) > MOST_INSTRUCTIONS:
        raise SubAgentError(
            f"the instructions have {len(instructions):,} characters; at most {MOST_INSTRUCTIONS:,} are accepted"
        )
    return signature, instructions


def _checked_options(kind: str, kwargs: Any) -> dict[str, Any]:
    given: Any = {} if kwargs is None else kwargs
    known = KINDS[kind]
    accepted = [*known.options, *(["tools"] if known.takes_tools else [])]
    if not isinstance(given, dict) or not set(cast("dict[str, Any]", given)) <= set(accepted):
        raise SubAgentError(
            f"dspy.{kind} is built from a signature and, by name, {', '.join(accepted)}; nothing else is accepted here"
        )
    options = cast("dict[str, Any]", given)
    for name, value in options.items():
        if name in known.options and (wanted := known.options[name](value)) is not None:
            raise SubAgentError(f"{name} must be {wanted}")
    return dict(options)
