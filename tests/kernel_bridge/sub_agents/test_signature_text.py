"""The grammar of sub-agents' signatures: what it reads, and that it looks nothing up."""

from __future__ import annotations

import sys
import tracemalloc
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernel_bridge import SubAgentError
from kernel_bridge.sub_agents.signature_text import MOST_FIELDS, MOST_TEXT, read_signature

READ: dict[str, Any] = {
    "str": str,
    "list[str]": list[str],
    "List[int]": list[int],
    "dict[str, list[float]]": dict[str, list[float]],
    "Optional[int]": int | None,
    "int | None": int | None,
    "Union[int, str, None]": int | str | None,
    "tuple[int, str]": tuple[int, str],
    "tuple[int, ...]": tuple[int, ...],
    "set[str]": set[str],
    "Any": Any,
    "None": type(None),
    "Literal['a', \"b's\", 3, -4, True, None]": Literal["a", "b's", 3, -4, True, None],
    "Literal['->', ':', ',', ']', 'os.environ']": Literal["->", ":", ",", "]", "os.environ"],
    r"Literal['it\'s\n', '\\']": Literal["it's\n", "\\"],
    "list[dict[str, Optional[Literal['x']]]]": list[dict[str, Literal["x"] | None]],
}


@pytest.mark.parametrize("text", READ)
def test_a_type_is_read_as_python_would(text: str) -> None:
    read = read_signature(f" a, b : {text} -> c:{text} ,d, ")
    assert [field.name for field in (*read.inputs, *read.outputs)] == ["a", "b", "c", "d"]
    assert read.inputs[1].annotation == read.outputs[0].annotation == READ[text]
    assert read.outputs[1].annotation is str


def test_there_may_be_no_input() -> None:
    assert read_signature("-> answer").inputs == ()


NOT_READ = [
    "", "->", "a ->", "a", "a -> b -> c", "a b -> c", "a -> b c", "a, -> b:", "a: -> b", "a -> b: int str",
    "q: os.environ -> a", "q: os -> a", "q: my_script -> a", "q: __main__.valset -> a", "q: dspy.settings.lm -> a",
    "q: typing.List -> a", "q: builtins -> a", "q: __import__('os') -> a", "q: print('x') -> a", "q: (int) -> a",
    "q: list[os.environ] -> a", "q: Optional[os] -> a", "q: int | os.environ -> a", "q: Union[int, os] -> a",
    "q: dict[str, os.environ] -> a", "q: tuple[os, ...] -> a", "q: Literal[os.environ] -> a", "q: Literal[os] -> a",
    "q: Literal[1.5] -> a", "q: Literal[1 + 1] -> a", "q: Literal[f'{x}'] -> a", "q: Literal[b'x'] -> a",
    "q: Literal[] -> a", "q: list[] -> a", "q: list[int, str] -> a", "q: dict[str] -> a", "q: dict[list, str] -> a",
    "q: set[list] -> a", "q: Optional[int, str] -> a", "q: int[str] -> a", "q: Any[str] -> a", "q: Literal -> a",
    "q: Union -> a", "q: Field(gt=3) -> a", "q: Image -> a", "q: ImportString -> a", "q: pydantic.ImportString -> a",
    "q: TYPE_CHECKING -> a", "q: cast -> a", "q: NamedTuple -> a", "q: ForwardRef -> a", "q: 'int' -> a",
    "q: Annotated[int, 3] -> a", "q: Callable[[int], int] -> a", "q: type[int] -> a", "q: bytes -> a",
    "q=1 -> a", "*q -> a", "**q -> a", "q, / -> a", "q: int = 3 -> a", "q) -> a", "q): pass\nimport os\ndef f(a -> b",
    "__class__ -> a", "_q -> a", "q -> __dict__", "class -> a", "q -> None", "1q -> a", "q-r -> a", "q.r -> a",
    "\ufb01 -> a", "q, q -> a", "q -> q", "q: int\x00 -> a", "q: Literal['a\nb'] -> a", "q: Literal['a -> b",
    r"q: Literal['\x41'] -> a", r"q: Literal['\N{DIGIT ONE}'] -> a", "q: \ud800 -> a", "q # -> a\n -> b",
    "q: list[tuple[int, ...], ...] -> a", "q: " + "9" * 5000 + " -> a", "q: Literal[" + "9" * 5000 + "] -> a",
]  # fmt: skip


@pytest.mark.parametrize("text", NOT_READ, ids=range(len(NOT_READ)))
def test_what_is_no_signature_is_refused_and_nothing_is_looked_up(text: str) -> None:
    before = set(sys.modules)
    with pytest.raises(SubAgentError) as refused:
        read_signature(text)
    assert set(sys.modules) == before
    assert len(str(refused.value)) < 500


TOO_LARGE = [
    ", ".join(f"f{n}" for n in range(MOST_FIELDS)) + " -> a",
    ", ".join(f"f{n}" for n in range(20_000)) + " -> a",
    "q: " + "list[" * 8 + "int" + "]" * 8 + " -> a",
    "q: " + "list[" * 3000 + "int" + "]" * 3000 + " -> a",
    "q: " + " | ".join(["int"] * 1000) + " -> a",
    "q: Literal[" + ", ".join(map(str, range(2000))) + "] -> a",
    "q: Literal['" + "x" * MOST_TEXT + "'] -> a",
    "x" * 100 + " -> a",
]


@pytest.mark.parametrize("text", TOO_LARGE, ids=range(len(TOO_LARGE)))
def test_what_is_too_large_is_refused(text: str) -> None:
    with pytest.raises(SubAgentError, match=r"at most|more than|nested"):
        read_signature(text)


def test_a_huge_text_is_refused_without_a_copy_of_it() -> None:
    text = "q" * 50_000_000
    tracemalloc.start()
    try:
        with pytest.raises(SubAgentError, match="50,000,000 characters"):
            read_signature(text)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


def test_further_types_are_those_of_the_table() -> None:
    class Mine:
        pass

    assert read_signature("q: list[Mine] -> a", {"Mine": Mine}).inputs[0].annotation == list[Mine]
    with pytest.raises(SubAgentError):
        read_signature("q: Mine.__module__ -> a", {"Mine": Mine})
    with pytest.raises(SubAgentError):
        read_signature("q: Theirs -> a", {"Mine": Mine})


PIECES = [*"qa:,[]|'\".(_ 1\\", "->", "int", "list", "Literal", "os", "__"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read = read_signature(text)
    except SubAgentError:
        return
    assert read.outputs
    assert all(field.name.isidentifier() for field in (*read.inputs, *read.outputs))
