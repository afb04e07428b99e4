"""The kinds of sub-agents that a kernel may build, and what each may be built with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from kernel_bridge.errors import SubAgentError

__all__ = ["KINDS", "SubAgentKind", "checked_kind", "checked_options", "signature_parts"]

MOST_INSTRUCTIONS: Final = 65_536  # characters
_SIGNATURE_MARK: Final = "__dspy_sig__"


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


_Check = Callable[[Any], "str | None"]  # None: the value is accepted; else what would be
_LM_OPTIONS: Final[Mapping[str, _Check]] = {
    "temperature": _number(0, 2),
    "top_p": _number(0, 1),
    "max_tokens": _whole(1, 200_000),
    "n": _whole(1, 16),
}


@dataclass(frozen=True, slots=True)
class SubAgentKind:
    """One of DSPy's modules, as a sub-agent."""

    options: Mapping[str, _Check]  # arguments of its constructor
    takes_tools: bool = False
    runs_code: bool = False  # in an interpreter of its own
    also_returns: tuple[str, ...] = ()  # fields beside those of its signature
    taken: frozenset[str] = frozenset()  # names that its own fields and arguments have


_STEPS: Final = {"max_iters": _whole(1, 50)}
_AGENT_NAMES: Final = frozenset({"max_iters", "trajectory", "next_thought", "next_tool_name", "next_tool_args"})
_CODE_NAMES: Final = frozenset({"max_iters", "interpreter", "trajectory", "generated_code", "finished", "reasoning"})

KINDS: Final[Mapping[str, SubAgentKind]] = {
    "Predict": SubAgentKind(_LM_OPTIONS),
    "ChainOfThought": SubAgentKind(_LM_OPTIONS, also_returns=("reasoning",), taken=frozenset({"reasoning"})),
    "ReAct": SubAgentKind(_STEPS, takes_tools=True, taken=_AGENT_NAMES | {"reasoning"}),
    "ReActV2": SubAgentKind(
        _STEPS,
        takes_tools=True,
        taken=_AGENT_NAMES | {"history", "tools", "tool_calls", "termination_reason", "tool_call_results"},
    ),
    "RLM": SubAgentKind(
        {**_STEPS, "max_llm_calls": _whole(0, 1000), "max_output_chars": _whole(1, 100_000)},
        takes_tools=True,
        runs_code=True,
        taken=frozenset(
            {"interpreter_factory", "trajectory", "final_reasoning", "variables_info", "repl_history", "llm_query",
             "llm_query_batched", "SUBMIT", "print", "dspy"}
        ),
    ),
    # DSPy 3.5 will drop both. Their tools would run in the kernel, from the source text of the host's functions.
    "CodeAct": SubAgentKind(_STEPS, runs_code=True, taken=_CODE_NAMES),
    "ProgramOfThought": SubAgentKind(
        _STEPS, runs_code=True,
        taken=_CODE_NAMES | {"previous_code", "error", "final_generated_code", "code_output"},
    ),
}  # fmt: skip
"""The modules that may be built, and what they may be built with."""


def checked_kind(kind: Any) -> str:
    if not isinstance(kind, str) or kind not in KINDS:
        raise SubAgentError(f"a sub-agent is one of {', '.join(f'dspy.{name}' for name in KINDS)}")
    return kind


def signature_parts(kind: str, signature: Any) -> tuple[str, str | None]:
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


def checked_options(kind: str, kwargs: Any) -> dict[str, Any]:
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
