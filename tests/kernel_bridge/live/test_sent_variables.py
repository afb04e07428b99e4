"""Variables of a cell: what they may be, how they arrive, and when they are sent again."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

import dspy
import pydantic
import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError

from kernel_bridge import KernelInterpreter, Pickled


def test_variables_are_there_and_stay(kernel: KernelInterpreter) -> None:
    values = {"a": [1, {"b": None}], "c": "text", "d": 2**100, "e": b"\x00", "f": float("inf"), "g": True}
    assert kernel.execute("[a, c, d, e, f, g]", values) == repr(list(values.values()))
    assert kernel.execute("a[1]") == "{'b': None}"


def test_kinds_that_are_not_plain_arrive_as_documented(kernel: KernelInterpreter) -> None:
    @dataclass
    class Point:
        x: int

    class Model(pydantic.BaseModel):
        points: tuple[int, ...]
        day: datetime.date = datetime.date(2020, 1, 2)

    given = {"p": Point(1), "m": Model(points=(1, 2)), "s": {3}, "c": dspy.Code(code="x"), "e": dspy.Example(q="x").q}
    expected = "({'x': 1}, {'points': [1, 2], 'day': '2020-01-02'}, [3], 'x', 'x')"
    assert kernel.execute("p, m, s, c, e", given) == expected


def test_models_cross_both_ways_as_results_arguments_and_submissions(kernel: KernelInterpreter) -> None:
    dates = pydantic.RootModel[list[datetime.date]]
    got: list[Any] = []

    def tool(value: Any, default: Any = dates([])) -> Any:  # noqa: B008 - a default that cannot be sent as it is
        got.append(value)
        return dates(value)

    kernel.bind(tools={"tool": tool}, output_fields=[{"name": "days", "type": "list"}])
    code = """
import datetime, pydantic
dates = pydantic.RootModel[list[datetime.date]]([datetime.date(2020, 1, 2)])
SUBMIT(tool(dates) + dates.model_dump(mode="json"))
"""
    answer = kernel.execute(code)
    assert (got, answer.output) == ([["2020-01-02"]], {"days": ["2020-01-02"] * 2})
    assert kernel.execute("SUBMIT(dates)").output == {"days": ["2020-01-02"]}
    with pytest.raises(CodeExecutionError, match=r"tool\(\) argument\[0\] \(date\) cannot be sent: .*isoformat"):
        kernel.execute("tool(dates.root[0])")


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"examples": [{"image": object()}]}, r"examples\[0\]\.image \(object\) cannot be sent"),
        ({"f": lambda: 1}, r"f \(function\) cannot be sent: code does not cross"),
        ({"d": {1: 2}}, r"d\[1\] \(dict key int\) cannot be sent"),
        ({"class": 1}, "'class'"),
        ({"a b": 1}, "'a b'"),
        ({"SUBMIT": 1}, "'SUBMIT'"),
        ({"__builtins__": 1}, "__builtins__"),
        ({1: 1}, "identifiers"),
        ({"tool": 1}, r"\['tool'\]"),
        ([("a", 1)], "must map names to values, not list"),
    ],
)
def test_what_cannot_be_a_variable_is_refused_and_nothing_runs(
    kernel: KernelInterpreter, variables: Any, says: str
) -> None:
    kernel.tools["tool"] = lambda: 1
    kernel.execute("ran = False")
    with pytest.raises(CodeInterpreterError, match=says) as failure:
        kernel.execute("ran = True", variables)
    assert not isinstance(failure.value, CodeExecutionError)
    assert kernel.execute("ran, tool()") == "(False, 1)"


def test_ten_megabytes_cross_and_are_sent_again_only_when_they_changed(kernel: KernelInterpreter) -> None:
    text = "0123456789" * 1_000_000
    rows = [{"id": number, "text": "é" * 50} for number in range(2000)]
    assert (
        kernel.execute("first = text, rows; len(text), len(rows)", {"text": text, "rows": rows}) == "(10000000, 2000)"
    )
    equal = {"text": "".join([text[:5], text[5:]]), "rows": [dict(row) for row in rows]}
    assert kernel.execute("text is first[0], rows is first[1]", equal) == "(True, True)"
    rows[7]["text"] = "changed in place"
    changed = {"text": text[:-1] + "!", "rows": rows}
    assert kernel.execute("text is first[0], text[-1], rows[7]['text']", changed) == "(False, '!', 'changed in place')"
    back = {"text": text, "rows": rows}
    assert kernel.execute("text == first[0]", back) == "True"


def test_a_value_of_another_type_is_another_value(kernel: KernelInterpreter) -> None:
    for value in (1, True, 1.0, "1", b"1", None, [1], (1,), 0, False, 0.0, -0.0, float("nan"), "", b"", {}):
        arrives = list(value) if isinstance(value, tuple) else value
        assert kernel.execute("repr(value)", {"value": value}) == repr(arrives)


def test_the_agents_changes_to_an_input_last_until_the_caller_changes_it(kernel: KernelInterpreter) -> None:
    assert kernel.execute("items.append(3); items", {"items": [1, 2]}) == "[1, 2, 3]"
    assert kernel.execute("items", {"items": [1, 2]}) == "[1, 2, 3]"
    kernel.execute("del items")
    assert kernel.execute("items[:2]", {"items": [1, 2]}) == "[1, 2]"
    assert kernel.execute("items", {"items": [9]}) == "[9]"


def test_a_variable_of_a_cell_that_did_not_run_is_sent_with_the_next(kernel: KernelInterpreter) -> None:
    with pytest.raises(CodeInterpreterError):
        kernel.execute("1", {"early": 1, "late": object()})
    assert kernel.execute("early, late", {"early": 1, "late": 2}) == "(1, 2)"
    with pytest.raises(SyntaxError):
        kernel.execute("if", {"early": 3})
    assert kernel.execute("early", {"early": 3}) == "3"
    with pytest.raises(CodeExecutionError):
        kernel.execute("1 / 0", {"early": 4})
    assert kernel.execute("early", {"early": 4}) == "4"


def test_a_pickled_value_travels_when_the_caller_says_so(kernel: KernelInterpreter) -> None:
    def double(x: int) -> int:
        return 2 * x

    assert kernel.execute("double(21)", {"double": Pickled(double)}) == "42"
    assert kernel.execute("fs[0](4)", {"fs": [Pickled(double)]}) == "8"


def test_a_pickled_value_that_does_not_load_is_the_cells_failure(kernel: KernelInterpreter) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (int, ("no number",))

    with pytest.raises(CodeExecutionError, match="no number"):
        kernel.execute("ran = 'yes'", {"bomb": Pickled(Bomb())})
    assert kernel.execute("'bomb' in globals()") == "False"
