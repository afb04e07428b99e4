"""Host tools from the agent's side: calls, failures, threads, coming and going."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from annotations import defined, needs_late_annotations
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError, FinalOutput

from kernel_bridge import KernelInterpreter, Limits

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


class Callme:
    """A callable object."""

    def __call__(self, a: int, b: int = 2) -> list[int]:
        return [a, b]

    def method(self, a: int) -> int:
        return a + 1


def pos_only(a: int, b: int, /, c: int = 3) -> list[int]:
    return [a, b, c]


def kw_only(*, x: int, y: int = 2) -> list[int]:
    return [x, y]


def star(a: int, *rest: int, k: int = 1, **more: int) -> list[Any]:
    return [a, list(rest), k, more]


def dspy_like(**kwargs: Any) -> Any:
    return kwargs


dspy_like.__signature__ = __import__("inspect").signature(lambda prompt, n=1: None)  # type: ignore[attr-defined]


async def slow_add(a: int, b: int) -> int:
    await asyncio.sleep(0)
    return a + b


TOOLS: dict[str, Callable[..., Any]] = {
    "call": Callme(),
    "method": Callme().method,
    "pos_only": pos_only,
    "kw_only": kw_only,
    "star": star,
    "dspy_like": dspy_like,
    "slow_add": slow_add,
    "lam": lambda x: x,
    "maximum": max,
    "text": str,
    "context": lambda: var.get(),
    "nothing": lambda: None,
}


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("call(1)", "[1, 2]"),
        ("call(a=1, b=5)", "[1, 5]"),
        ("call(1, b=5)", "[1, 5]"),
        ("method(1)", "2"),
        ("pos_only(1, 2)", "[1, 2, 3]"),
        ("pos_only(1, 2, 4)", "[1, 2, 4]"),
        ("pos_only(1, 2, c=5)", "[1, 2, 5]"),
        ("kw_only(x=1)", "[1, 2]"),
        ("star(1)", "[1, [], 1, {}]"),
        ("star(1, 2, 3, k=4, z=5)", "[1, [2, 3], 4, {'z': 5}]"),
        ("star(a=1, z=5)", "[1, [], 1, {'z': 5}]"),
        ("dspy_like('p')", "{'prompt': 'p'}"),
        ("dspy_like('p', 3)", "{'prompt': 'p', 'n': 3}"),
        ("dspy_like(prompt='p', n=3)", "{'prompt': 'p', 'n': 3}"),
        ("slow_add(1, 2)", "3"),
        ("slow_add(a=1, b=2)", "3"),
        ("lam({'k': [None, 1.5, b'x', 2**80]})", "{'k': [None, 1.5, b'x', 1208925819614629174706176]}"),
        ("lam((1, {2})), lam(float('nan')) != lam(float('nan'))", "([1, [2]], True)"),
        ("maximum(3, 9, 4)", "9"),
        ("text(5)", "5"),
        ("context()", "the caller's"),
        ("nothing()", None),
        ("[f(1) for f in (lam, call)]", "[1, [1, 2]]"),
        ("lam.__name__, lam.__doc__, call.__doc__", "('lam', None, 'A callable object.')"),
    ],
)
def test_a_tool_is_called_as_it_is_written(kernel: KernelInterpreter, code: str, text: str | None) -> None:
    kernel.tools.update(TOOLS)
    token = var.set("the caller's")
    try:
        assert kernel.execute(code) == text
    finally:
        var.reset(token)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("call()", r"TypeError: call\(\): missing a required argument: 'a'; it is called as call\(a: "),
        ("kw_only(1)", r"TypeError: kw_only\(\): too many positional arguments"),
        ("pos_only(a=1, b=2)", r"TypeError: pos_only\(\): "),
        ("lam(1, z=2)", r"TypeError: lam\(\): got an unexpected keyword argument 'z'"),
        ("lam(object())", r"NotSendable: lam\(\) argument\[0\] \(object\) cannot be sent"),
        ("lam(x=[1, {'k': print}])", r"NotSendable: lam\(\)\.x\[1\]\.k \(.*\) cannot be sent: code does not cross"),
        ("text(b'x', 1, 2, 3, 4)", "TypeError"),
    ],
)
def test_a_wrong_call_is_explained_and_never_reaches_the_tool(kernel: KernelInterpreter, code: str, says: str) -> None:
    kernel.tools.update(TOOLS)
    with pytest.raises(CodeExecutionError, match=says):
        kernel.execute(code)
    with pytest.raises(CodeExecutionError):
        kernel.execute(f"caught = None\ntry:\n    {code}\nexcept TypeError as e:\n    raise LookupError from e")
    assert kernel.execute("lam(1)") == "1"


class BudgetExceededError(Exception):
    pass


UNDECODED = "'utf-8' codec can't decode byte 0x61 in position 0: no"


@pytest.mark.parametrize(
    ("error", "caught_as", "name", "text"),
    [
        (ValueError("bad value"), "ValueError", "ValueError", "bad value"),
        (KeyError("key"), "LookupError", "KeyError", "'key'"),
        (BudgetExceededError("asked 40, left 12"), "RuntimeError", "BudgetExceededError", "asked 40, left 12"),
        (FileNotFoundError(2, "none", "f.txt"), "OSError", "FileNotFoundError", "[Errno 2] none: 'f.txt'"),
(UnicodeDecodeError("utf-8", b"a", 0, 1, "no"), "ValueError", "UnicodeDecodeError", UNDECODED),
        (StopIteration(), "StopIteration", "StopIteration", ""),
        (NotImplementedError(), "NotImplementedError", "NotImplementedError", ""),
        (RuntimeError("two\nlines \ud800"), "RuntimeError", "RuntimeError", "two\nlines \\ud800"),
        (dspy.LMError("the LM is down"), "Exception", "LMError", "the LM is down"),
        (CodeExecutionError("inner"), "RuntimeError", "CodeExecutionError", "inner"),
    ],
)  # fmt: skip
def test_a_tools_exception_arrives_under_its_name_with_its_text(
    kernel: KernelInterpreter, error: Exception, caught_as: str, name: str, text: str
) -> None:
    def fail() -> None:
        raise error

    kernel.tools["fail"] = fail
    code = f"try:\n    fail()\nexcept {caught_as} as e:\n    print([type(e).__name__, str(e)])"
    assert kernel.execute(code) == repr([name, text])
    with pytest.raises(CodeExecutionError) as failure:
        kernel.execute("fail()")
    said = str(failure.value)
    assert said.splitlines()[-1].startswith(name) or text.splitlines()[-1] in said
    assert "site-packages" not in said
    assert __file__ not in said


def test_the_same_exception_class_comes_each_time(kernel: KernelInterpreter) -> None:
    def fail(text: str) -> None:
        raise BudgetExceededError(text)

    kernel.tools["fail"] = fail
    kernel.execute("try:\n    fail('a')\nexcept Exception as e:\n    Seen = type(e)")
    assert kernel.execute("try:\n    fail('b')\nexcept Seen as e:\n    print('again', e)") == "again b"


def test_a_tool_that_is_asked_to_stop_everything_stops_the_caller(kernel: KernelInterpreter, patient: None) -> None:
    def stop() -> None:
        raise KeyboardInterrupt("the person pressed Ctrl-C")

    kernel.tools["stop"] = stop
    with pytest.raises(KeyboardInterrupt, match="Ctrl-C"):
        kernel.execute("kept = 1\nstop()\nkept = 2")
    assert kernel.execute("kept") == "1"


def test_an_answer_that_cannot_cross_is_named(kernel: KernelInterpreter) -> None:
    kernel.tools["give"] = lambda: {"rows": [1, object()]}
    with pytest.raises(CodeExecutionError, match=r"NotSendable: .*give\(\)\.rows\[1\] \(object\) cannot be sent"):
        kernel.execute("give()")
    assert kernel.execute("1") == "1"


def test_arguments_at_the_limit_cross_and_above_it_are_refused() -> None:
    tools = {"size": lambda *args, **kwargs: sum(map(len, (*args, *kwargs.values())))}
    limits = Limits(frame_bytes=20_000)
    with KernelInterpreter(tools, limits=limits, confinement="off") as interpreter:
        assert interpreter.execute("size('x' * 19_990)") == "19990"
        for code in ("size('x' * 19_996)", "size('x' * 30_000)", "size('x' * 15_000, y='y' * 15_000)"):
            with pytest.raises(CodeExecutionError, match="at most 20000"):
                interpreter.execute(code)
        interpreter.tools["big"] = lambda: "x" * 30_000
        with pytest.raises(CodeExecutionError, match=r"NotSendable: .*big\(\).*at most 20000"):
            interpreter.execute("big()")
        assert interpreter.execute("size('x')") == "1"


def test_large_results_cross(kernel: KernelInterpreter) -> None:
    kernel.tools["rows"] = lambda: [{"id": str(i), "text": "é" * 100} for i in range(20_000)]
    assert kernel.execute("r = rows(); len(r), r[-1]['id'], len(r[0]['text'])") == "(20000, '19999', 100)"


def test_calls_from_many_threads_of_the_kernel_run_at_once(kernel: KernelInterpreter) -> None:
    meeting = threading.Barrier(8, timeout=60)

    def meet(number: int) -> int:
        meeting.wait()
        return number * 10

    kernel.tools["meet"] = meet
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    results = list(pool.map(meet, range(8)))
results
"""
    assert kernel.execute(code) == "[0, 10, 20, 30, 40, 50, 60, 70]"


def test_a_call_with_a_long_text_keeps_no_other_call_waiting() -> None:
    entered, leave = threading.Event(), threading.Event()

    def hold(text: str) -> bool:
        entered.set()
        return leave.wait(60)

    def release(text: str) -> None:
        assert entered.wait(60)
        leave.set()

    room = 2**20  # parts that all calls together may have, for so small frames
    code = f"""
import threading
answers = []
long = threading.Thread(target=lambda: answers.append(hold('x' * {room - 100})))
long.start(); arrived(); release('y' * 1000); long.join()
print(answers)
"""
    tools = {"hold": hold, "release": release, "arrived": lambda: entered.wait(60)}
    with KernelInterpreter(tools, confinement="off", limits=Limits(frame_bytes=2 * room)) as kernel:
        assert kernel.execute(code) == "[True]"


def test_more_calls_than_may_run_at_once_wait_their_turn() -> None:
    lock, running, most = threading.Lock(), 0, 0

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        try:
            return number
        finally:
            with lock:
                running -= 1

    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(16) as pool:
    total = sum(pool.map(work, range(200)))
total
"""
    with KernelInterpreter({"work": work}, limits=Limits(calls_in_flight=2), confinement="off") as interpreter:
        assert interpreter.execute(code) == "19900"
    assert most <= 2


def test_calls_from_coroutines_work(kernel: KernelInterpreter) -> None:
    kernel.tools["double"] = lambda x: 2 * x
    code = """
import asyncio
async def one(x): return double(x)
await asyncio.gather(*(one(x) for x in range(3)), asyncio.to_thread(double, 10))
"""
    assert kernel.execute(code) == "[0, 2, 4, 20]"


def test_a_tool_may_run_a_kernel_of_its_own(kernel: KernelInterpreter) -> None:
    def deeper(level: int) -> str:
        with KernelInterpreter({"deeper": deeper}, confinement="off") as inner:
            return str(inner.execute(f"deeper({level - 1}) + '<' if {level} else 'bottom'"))

    kernel.tools["deeper"] = deeper
    assert kernel.execute("deeper(1)") == "bottom<"


def test_tools_are_read_afresh_at_every_cell(kernel: KernelInterpreter) -> None:
    kernel.tools["tool"] = lambda: 1
    kernel.execute("alias = tool")
    kernel.tools["tool"] = lambda: 2
    kernel.tools["other"] = lambda a, b: 3
    assert kernel.execute("tool(), other(0, b=0)") == "(2, 3)"
    del kernel.tools["tool"]
    with pytest.raises(CodeExecutionError, match="name 'tool' is not defined"):
        kernel.execute("tool()")
    with pytest.raises(CodeExecutionError, match="there is no tool named 'tool'; the tools are: other"):
        kernel.execute("alias()")
    kernel.tools = {"third": lambda: 4}
    assert kernel.execute("'other' in globals(), third()") == "(False, 4)"
    kernel.tools["not valid"] = lambda: 5
    with pytest.raises(CodeInterpreterError, match="'not valid'"):
        kernel.execute("1")


def test_the_agent_cannot_lose_its_tools_for_good(kernel: KernelInterpreter) -> None:
    kernel.tools["tool"] = lambda: "still here"
    for code in ("tool = None", "del tool", "globals().clear()", "%reset -f", "SUBMIT = tool = 1", "del SUBMIT"):
        kernel.execute(code)
        assert kernel.execute("tool()") == "still here"
    assert kernel.execute("SUBMIT(1)") == FinalOutput({"output": 1})


def test_bind_replaces_tools_and_fields_together_or_not_at_all(kernel: KernelInterpreter) -> None:
    tools, fields = {"old": lambda: 1}, [{"name": "answer", "type": "str"}]
    kernel.bind(tools=tools, output_fields=fields)
    tools["sneaked"] = lambda: 2
    fields[0]["name"] = "changed"
    assert set(kernel.tools) == {"old"}
    assert kernel.execute("SUBMIT(answer='x')") == FinalOutput({"answer": "x"})
    for wrong in ({"tools": {"a b": print}}, {"tools": {"new": print}, "output_fields": [{"name": "a b"}]}):
        with pytest.raises(ValueError, match="a b"):
            kernel.bind(**wrong)
        assert set(kernel.tools) == {"old"}
        assert kernel.output_fields == [{"name": "answer", "type": "str"}]


def test_a_dspy_example_as_a_result_is_its_fields(kernel: KernelInterpreter) -> None:
    kernel.tools["predict"] = lambda: dspy.Prediction(answer="x", score=0.5)
    assert kernel.execute("predict()") == "{'answer': 'x', 'score': 0.5}"


@needs_late_annotations
@pytest.mark.smoke
def test_a_tool_with_annotations_that_only_a_type_checker_knows_is_called_as_any_other(
    kernel: KernelInterpreter,
) -> None:
    kernel.bind(tools={"look": defined("def look(key: Key, n: int = 2) -> list[Row]: return [key] * n", "look")})
    assert kernel.execute("look('a')") == "['a', 'a']"
    assert kernel.execute("import inspect; print(inspect.signature(look))") == "(key: Key, n: int = 2) -> list[Row]"
    with pytest.raises(CodeExecutionError, match=r"it is called as look\(key: 'Key'"):
        kernel.execute("look()")
