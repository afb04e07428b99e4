"""The binding of calls: a tool gets what it would get if it were called directly, or the caller is told how."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge.live.signatures import ArgumentBinder
from kernel_bridge.live.tool_dispatch import ToolDispatcher


def _plain(a: int, b: int = 2) -> Any:
    return "plain", a, b


def _keyword_only(*, a: int, b: int = 2) -> Any:
    return "keywords", a, b


def _mixed(a: int, b: int = 2, *, c: int = 3) -> Any:
    return "mixed", a, b, c


def _positional(a: int, /, b: int) -> Any:
    return "positional", a, b


def _any(a: int, *b: int, c: int = 3, **d: int) -> Any:
    return "any", a, b, c, d


def _none() -> Any:
    return "none"


TOOLS: list[Callable[..., Any]] = [_plain, _keyword_only, _mixed, _positional, _any, _none]


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except TypeError:
        return TypeError


@given(
    st.sampled_from(TOOLS),
    st.lists(st.integers(0, 9), max_size=4),
    st.dictionaries(st.sampled_from("abcd"), st.integers(0, 9), max_size=4),
)
def test_a_call_comes_to_the_same_as_without_the_binder(
    tool: Callable[..., Any], args: list[int], kwargs: dict[str, int]
) -> None:
    def bound() -> Any:
        positional, keywords = ArgumentBinder("tool", tool)(args, kwargs)
        return tool(*positional, **keywords)

    assert outcome(bound) == outcome(lambda: tool(*args, **kwargs))


def test_what_can_be_passed_by_keyword_is() -> None:
    assert ArgumentBinder("tool", _mixed)([1, 5], {"c": 7}) == ([], {"a": 1, "b": 5, "c": 7})


class _Lies(inspect.Signature):
    """A signature that binds in a way of its own."""

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        raise TypeError("whatever it says")


def test_a_signature_of_another_kind_decides_for_itself() -> None:
    def tool(a: int) -> int:
        return a

    tool.__signature__ = _Lies(inspect.signature(tool).parameters.values())  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match=r"whatever it says; it is called as tool\(a"):
        ArgumentBinder("tool", tool)([], {"a": 1})


def test_a_tool_whose_signature_changes_is_read_anew_in_the_next_cell() -> None:
    def tool(**given: int) -> dict[str, int]:
        return given

    def shown(*names: str) -> inspect.Signature:
        return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])

    dispatcher = ToolDispatcher()
    for name in ("first", "second"):
        tool.__signature__ = shown(name)  # type: ignore[attr-defined]
        dispatcher.bind({"tool": tool}, None)
        assert dispatcher.call("tool", [], {name: 1}) == {name: 1}
    with pytest.raises(TypeError, match=r"missing a required argument: .second."):
        dispatcher.call("tool", [], {"first": 1})


def test_a_tool_that_takes_the_place_of_another_is_not_taken_for_it() -> None:
    dispatcher = ToolDispatcher()
    dispatcher.bind({"tool": _none}, None)
    assert dispatcher.call("tool", [], {}) == "none"
    dispatcher.note_seconds("tool", 0.0)
    assert dispatcher.is_brief("tool")
    dispatcher.bind({"tool": _plain}, None)
    assert not dispatcher.is_brief("tool")
    assert dispatcher.call("tool", [1], {}) == ("plain", 1, 2)
