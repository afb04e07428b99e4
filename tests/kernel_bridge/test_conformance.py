"""What any interpreter for DSPy must do, held against ours and against DSPy's own LocalInterpreter.

The same suite runs over both, so that it states what DSPy expects and not how ours happens to work. Results of
expressions are compared as text: the protocol lets an interpreter answer with the value or with its display.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import dspy
import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreter, CodeInterpreterError, FinalOutput
from offline import field_lm

from kernel_bridge import KernelInterpreter

Factory = Callable[[], Any]

IMPLEMENTATIONS: dict[str, Factory] = {
    "kernel": KernelInterpreter.factory(),
    "plain kernel": KernelInterpreter.factory(confinement="off"),
    "dspy.LocalInterpreter": dspy.LocalInterpreter,
}


@pytest.fixture(scope="module", params=list(IMPLEMENTATIONS))
def factory(request: pytest.FixtureRequest) -> Factory:
    return IMPLEMENTATIONS[request.param]


@pytest.fixture(scope="module")
def used(factory: Factory) -> Iterator[Any]:
    made = factory()
    made.execute("1")
    yield made
    made.shutdown()


@pytest.fixture
def interpreter(used: Any) -> Any:
    """One that other tests have used before, without tools and output fields."""
    configure(used, {})
    return used


@pytest.fixture
def fresh(factory: Factory) -> Iterator[Any]:
    made = factory()
    yield made
    made.shutdown()


def configure(interpreter: Any, tools: dict[str, Any], fields: list[dict[str, Any]] | None = None) -> None:
    """As RLM does it: the tools are a dict to be changed in place, the fields an attribute to be set."""
    interpreter.tools.clear()
    interpreter.tools.update(tools)
    interpreter.output_fields = fields


# -- shape and life --------------------------------------------------------------------------------------------------


def test_it_has_the_shape_of_the_protocol(fresh: Any) -> None:
    assert isinstance(fresh, CodeInterpreter)
    assert isinstance(fresh.tools, dict)
    assert isinstance(KernelInterpreter(), CodeInterpreter)


def test_start_is_lazy_and_may_be_repeated(fresh: Any) -> None:
    assert str(fresh.execute("20 + 22")) == "42"
    fresh.start()
    fresh.start()
    assert str(fresh.execute("20 + 22")) == "42"


def test_shutdown_is_terminal_and_may_be_repeated(factory: Factory) -> None:
    for begin in (lambda _: None, lambda made: made.start(), lambda made: made.execute("1")):
        made = factory()
        begin(made)
        made.shutdown()
        made.shutdown()
        for use in (made.start, lambda made=made: made.execute("1")):
            with pytest.raises(CodeInterpreterError) as failure:
                use()
            assert not isinstance(failure.value, CodeExecutionError)


def test_execution_instructions_are_one_stable_text(factory: Factory, fresh: Any) -> None:
    said = fresh.execution_instructions
    assert isinstance(said, str)
    assert said.strip()
    fresh.execute("1")
    assert fresh.execution_instructions == said
    assert factory.execution_instructions == said  # type: ignore[attr-defined]


# -- execution -------------------------------------------------------------------------------------------------------


def test_python_runs_and_its_output_comes_back(interpreter: Any) -> None:
    assert str(interpreter.execute("print('marker')")).strip() == "marker"
    assert str(interpreter.execute("6 * 7")) == "42"
    assert interpreter.execute("x = 1") is None


def test_code_runs_in_another_process(interpreter: Any) -> None:
    assert str(interpreter.execute("import os; os.getpid()")) != str(os.getpid())


def test_the_namespace_persists(interpreter: Any) -> None:
    interpreter.execute("import math\nkept = 41\ndef more(x):\n    return x + kept")
    assert str(interpreter.execute("more(1)")) == "42"
    assert str(interpreter.execute("given + 2", {"given": 40})) == "42"
    assert str(interpreter.execute("given + kept")) == "81"


def test_instances_share_nothing(factory: Factory) -> None:
    first, second = factory(), factory()
    try:
        first.execute("private = 1")
        with pytest.raises(CodeExecutionError):
            second.execute("private")
    finally:
        first.shutdown()
        second.shutdown()


def test_plain_variables_arrive_as_they_are(interpreter: Any) -> None:
    given = {"a": None, "b": [1, {"c": [True, 1.5, "é"]}], "d": "", "e": {}, "f": -(2**40)}
    assert interpreter.execute("print([a, b, d, e, f])", given).strip() == repr(list(given.values()))


# -- errors ----------------------------------------------------------------------------------------------------------


def test_errors_of_the_code_can_be_recovered_from(interpreter: Any) -> None:
    interpreter.execute("kept = 42")
    with pytest.raises(SyntaxError):
        interpreter.execute("if")
    with pytest.raises(CodeExecutionError, match="ZeroDivisionError"):
        interpreter.execute("1 / 0")
    with pytest.raises(CodeExecutionError, match="undefined"):
        interpreter.execute("undefined")
    assert str(interpreter.execute("kept")) == "42"


@pytest.mark.parametrize("name", ["class", "SUBMIT", "__builtins__", "not valid"])
def test_reserved_names_are_refused_and_cost_nothing(interpreter: Any, name: str) -> None:
    with pytest.raises(CodeInterpreterError) as failure:
        interpreter.execute("1", {name: 1})
    assert not isinstance(failure.value, CodeExecutionError)
    interpreter.tools[name] = lambda: 1
    with pytest.raises((CodeInterpreterError, ValueError)):
        interpreter.execute("1")
    interpreter.tools.clear()
    assert str(interpreter.execute("6 * 7")) == "42"


# -- tools -----------------------------------------------------------------------------------------------------------


def test_a_tool_runs_on_the_host(interpreter: Any) -> None:
    seen: list[tuple[int, int]] = []

    def add(*, left: int, right: int) -> dict[str, int]:
        seen.append((left, right))
        return {"value": left + right}

    configure(interpreter, {"add": add})
    assert str(interpreter.execute("add(left=19, right=23)['value']")) == "42"
    assert seen == [(19, 23)]


def test_an_async_tool_is_awaited(interpreter: Any) -> None:
    async def add(*, left: int, right: int) -> int:
        return left + right

    configure(interpreter, {"add": add})
    assert str(interpreter.execute("add(left=19, right=23)")) == "42"


def test_a_tools_failure_is_the_codes_to_handle(interpreter: Any) -> None:
    def fail() -> None:
        raise ValueError("no luck")

    configure(interpreter, {"fail": fail})
    with pytest.raises(CodeExecutionError, match="no luck"):
        interpreter.execute("fail()")
    assert "no luck" in interpreter.execute("try:\n    fail()\nexcept Exception as e:\n    print(e)")


def test_a_tool_taken_away_cannot_be_called(interpreter: Any) -> None:
    interpreter.execute("kept = 42")
    configure(interpreter, {"old": lambda: 1})
    assert str(interpreter.execute("old()")) == "1"
    configure(interpreter, {"new": lambda: 2})
    assert str(interpreter.execute("kept + new()")) == "44"
    with pytest.raises(CodeExecutionError):
        interpreter.execute("old()")


def test_tools_are_called_from_several_threads_at_once(interpreter: Any) -> None:
    configure(interpreter, {"double": lambda x: 2 * x})
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(4) as pool:
    print(list(pool.map(double, range(8))))
"""
    assert interpreter.execute(code).strip() == "[0, 2, 4, 6, 8, 10, 12, 14]"


# -- SUBMIT ----------------------------------------------------------------------------------------------------------


def test_submit_returns_the_fields(interpreter: Any) -> None:
    configure(interpreter, {})
    assert interpreter.execute("SUBMIT(42)") == FinalOutput({"output": 42})
    configure(interpreter, {}, [{"name": "answer", "type": "str"}, {"name": "score", "type": "int"}])
    for code in ("SUBMIT(answer='yes', score=42)", "SUBMIT('yes', 42)"):
        assert interpreter.execute(code) == FinalOutput({"answer": "yes", "score": 42})


@pytest.mark.parametrize("code", ["SUBMIT('missing')", "SUBMIT(answer='a', wrong=1)", "SUBMIT('a', 1, 2)", "SUBMIT()"])
def test_a_submission_that_does_not_fit_raises_in_the_code(interpreter: Any, code: str) -> None:
    configure(interpreter, {}, [{"name": "answer", "type": "str"}, {"name": "score", "type": "int"}])
    with pytest.raises(CodeExecutionError):
        interpreter.execute(code)
    assert str(interpreter.execute("6 * 7")) == "42"


@pytest.mark.parametrize(
    "code",
    [
        "SUBMIT(42)\nafter()",
        "try:\n    SUBMIT(42)\nexcept Exception:\n    after()\nafter()",
        "def f():\n    SUBMIT(42)\n    after()\nf()\nafter()",
    ],
)
def test_nothing_runs_after_an_accepted_submission(interpreter: Any, code: str) -> None:
    calls: list[int] = []
    configure(interpreter, {"after": lambda: calls.append(1)})
    assert interpreter.execute(code) == FinalOutput({"output": 42})
    assert calls == []


def test_bind_replaces_everything_at_once() -> None:
    with KernelInterpreter(confinement="off") as interpreter:
        tools, fields = {"first": lambda: 1}, [{"name": "answer", "type": "str"}]
        interpreter.bind(tools=tools, output_fields=fields)
        tools["second"] = lambda: 2
        fields[0]["name"] = "changed"
        assert set(interpreter.tools) == {"first"}
        assert interpreter.execute("first()") == "1"
        interpreter.bind(tools={"second": lambda: 2}, output_fields=None)
        assert set(interpreter.tools) == {"second"}
        with pytest.raises(CodeExecutionError):
            interpreter.execute("first()")
        assert interpreter.execute("SUBMIT(second())") == FinalOutput({"output": 2})


# -- DSPy's own modules on it ----------------------------------------------------------------------------------------


class Actions(dspy.Predict):
    """The turns of an RLM, written down."""

    def __init__(self, signature: Any, codes: list[str]) -> None:
        super().__init__(signature)
        self.codes = iter(codes)
        self.asked: list[dict[str, Any]] = []

    def forward(self, **kwargs: Any) -> dspy.Prediction:
        self.asked.append(kwargs)
        return dspy.Prediction(reasoning="as planned", code=next(self.codes))


@pytest.mark.smoke
def test_a_real_rlm_runs_on_it(factory: Factory) -> None:
    made: list[Any] = []
    host_calls: list[tuple[int, int]] = []

    def make() -> Any:
        made.append(factory())
        return made[-1]

    make.execution_instructions = factory.execution_instructions  # type: ignore[attr-defined]

    def add(*, left: int, right: int) -> int:
        host_calls.append((left, right))
        return left + right

    rlm = dspy.RLM(
        "question: str -> answer: str",
        max_iters=3,
        tools=[add],
        sub_lm=lambda prompt: [f"heard {prompt}"],
        interpreter_factory=make,
    )
    rlm.generate_action = Actions(
        rlm.generate_action.signature,
        [
            "partial = add(left=20, right=22)\nsemantic = llm_query(prompt='it')\nprint(partial, semantic)",
            "several = llm_query_batched(['a', 'b'])\n1 / 0",
            "SUBMIT(answer=f'{question}: {partial}, {semantic}, {several}')",
        ],
    )
    result = rlm(question="sum")
    assert result.answer == "sum: 42, heard it, ['heard a', 'heard b']"
    assert host_calls == [(20, 22)]
    assert result.trajectory[0]["output"].strip() == "42 heard it"
    assert "ZeroDivisionError" in result.trajectory[1]["output"]
    assert len(made) == 1
    with pytest.raises(CodeInterpreterError):
        made[0].execute("1")
    asked = rlm.generate_action.asked[0]
    assert factory.execution_instructions in asked.get("signature", rlm.generate_action.signature).instructions  # type: ignore[attr-defined]


MODULE = """
class Doubler(dspy.Module):
    def __init__(self):
        super().__init__()
        self.solve = dspy.Predict("value: int -> result: int")

    def forward(self, **inputs):
        print("noise that must not matter")
        predicted = self.solve(value=inputs["value"])
        return dspy.Prediction(result=add_two(value=predicted.result))
""".strip()


@pytest.mark.filterwarnings("ignore:Passing OpenAI-style message:DeprecationWarning")  # DSPy's own facade does it
def test_a_real_flex_runs_on_it(factory: Factory) -> None:
    class Doubling(dspy.Signature):
        value: int = dspy.InputField()
        result: int = dspy.OutputField()

    def add_two(*, value: int) -> int:
        return int(value) + 2

    program = dspy.Flex(Doubling, tools=[add_two], interpreter_factory=factory)
    program._bind_code(MODULE)
    restored = dspy.Flex(Doubling, tools=[add_two], interpreter_factory=factory)
    restored.load_state(program.dump_state())
    for flex in (program, restored):
        with dspy.context(lm=field_lm(lambda asked: {"result": 2 * int(asked.inputs["value"])})):
            assert flex(value=20).result == 42
