"""SUBMIT in all its forms, and the host's word on it."""

from __future__ import annotations

import contextvars
import threading
from typing import Any

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, FinalOutput

from kernel_bridge import KernelInterpreter

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")

FROM_A_THREAD = """
import threading
thread = threading.Thread(target=SUBMIT, args=("t", 1))
thread.start(); thread.join()
"""
FIELDS = [{"name": "answer", "type": "str"}, {"name": "score", "type": "int"}]


@pytest.mark.parametrize(
    ("code", "output"),
    [
        ("SUBMIT('yes', 42)", {"answer": "yes", "score": 42}),
        ("SUBMIT(answer='yes', score=42)", {"answer": "yes", "score": 42}),
        ("SUBMIT('yes', score=42)", {"answer": "yes", "score": 42}),
        ("SUBMIT(score=42, answer='yes')", {"answer": "yes", "score": 42}),
        ("SUBMIT('yes', 42); print('no'); raise ValueError", {"answer": "yes", "score": 42}),
        ("def f():\n    SUBMIT('f', 1)\nf()", {"answer": "f", "score": 1}),
        ("async def f():\n    SUBMIT('f', 1)\nawait f()", {"answer": "f", "score": 1}),
        ("try:\n    SUBMIT('yes', 42)\nexcept Exception:\n    SUBMIT('no', 0)", {"answer": "yes", "score": 42}),
        ("try:\n    SUBMIT('yes', 42)\nexcept:\n    pass\nafter()\nSUBMIT('no', 0)", {"answer": "yes", "score": 42}),
        ("try:\n    SUBMIT('yes', 42)\nfinally:\n    print('cleaned up')", {"answer": "yes", "score": 42}),
(FROM_A_THREAD, {"answer": "t", "score": 1}),
    ],
)  # fmt: skip
def test_submit_ends_the_cell_with_its_fields(kernel: KernelInterpreter, code: str, output: dict[str, Any]) -> None:
    called: list[str] = []
    kernel.bind(tools={"after": lambda: called.append("after")}, output_fields=FIELDS)
    assert kernel.execute(code) == FinalOutput(output)
    assert called == []
    assert kernel.execute("'the session goes on'").startswith("the session goes on")  # perhaps with what is not kept


@pytest.mark.parametrize(
    ("fields", "code", "output"),
    [
        (None, "SUBMIT(42)", {"output": 42}),
        (None, "SUBMIT({'answer': 1})", {"output": {"answer": 1}}),
        (None, "SUBMIT(output=[1, (2,)])", {"output": [1, [2]]}),
        ([], "SUBMIT()", {}),
        ([{"name": "x"}], "SUBMIT(None)", {"x": None}),
        ([{"name": "x", "type": "list"}], "SUBMIT((1, 2))", {"x": [1, 2]}),
        ([{"name": "x", "type": "float"}], "SUBMIT(1)", {"x": 1}),
        ([{"name": "x", "type": "dict"}], "SUBMIT({'a': {'b': 1}})", {"x": {"a": {"b": 1}}}),
        ([{"name": "x", "type": "bool"}], "SUBMIT(x=False)", {"x": False}),
        ([{"name": "x", "type": "str"}], "SUBMIT('\\ud800')", {"x": "\ud800"}),
    ],
)
def test_submit_takes_what_the_output_fields_say(
    kernel: KernelInterpreter, fields: Any, code: str, output: dict[str, Any]
) -> None:
    kernel.output_fields = fields
    answer = kernel.execute(code)
    assert isinstance(answer, FinalOutput)
    assert answer.output == output
    assert list(map(type, answer.output.values())) == list(map(type, output.values()))


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("SUBMIT()", r"SUBMIT\(answer, score\): missing a required argument: 'answer'"),
        ("SUBMIT('only')", "missing a required argument: 'score'"),
        ("SUBMIT('a', 1, 2)", "too many positional arguments"),
        ("SUBMIT('a', 1, extra=2)", "unexpected keyword argument 'extra'"),
        ("SUBMIT({'answer': 'a', 'score': 1})", "missing a required argument: 'score'"),
        ("SUBMIT('a', 'many')", "score must be int, got str 'many'"),
        ("SUBMIT('a', 1.5)", "score must be int, got float"),
        ("SUBMIT('a', [1])", "score must be int, got list"),
        ("SUBMIT(lambda: 1, 1)", r"NotSendable: SUBMIT\.answer \(function\) cannot be sent"),
    ],
)
def test_a_wrong_submission_raises_in_the_cell_and_can_be_mended_there(
    kernel: KernelInterpreter, code: str, says: str
) -> None:
    kernel.output_fields = FIELDS
    with pytest.raises(CodeExecutionError, match=says):
        kernel.execute(code)
    mended = kernel.execute(f"try:\n    {code}\nexcept TypeError:\n    SUBMIT('mended', 1)")
    assert mended == FinalOutput({"answer": "mended", "score": 1})


def test_submit_has_a_signature_and_a_text(kernel: KernelInterpreter) -> None:
    kernel.output_fields = FIELDS
    assert "SUBMIT(answer: str, score: int)" in kernel.execute("help(SUBMIT)")


class SubmissionError(Exception):
    pass


def test_the_host_may_refuse_a_submission_with_a_reason(kernel: KernelInterpreter) -> None:
    seen: list[dict[str, Any]] = []

    def judge(fields: dict[str, Any]) -> None:
        seen.append(fields)
        if fields["score"] < 10:
            raise SubmissionError(f"a score of {fields['score']} is too low")

    kernel.bind(tools={}, output_fields=FIELDS)
    kernel.submit_validator = judge
    with pytest.raises(CodeExecutionError, match="SubmissionError: a score of 1 is too low"):
        kernel.execute("SUBMIT('a', 1)")
    mended = kernel.execute(
        "for score in (2, 12, 99):\n    try:\n        SUBMIT('a', score)\n    except Exception: pass"
    )
    assert mended == FinalOutput({"answer": "a", "score": 12})
    assert [fields["score"] for fields in seen] == [1, 2, 12]
    kernel.submit_validator = None
    assert kernel.execute("SUBMIT('a', 1)") == FinalOutput({"answer": "a", "score": 1})


def test_the_judge_runs_in_the_callers_context(kernel: KernelInterpreter) -> None:
    seen: list[str] = []
    kernel.submit_validator = lambda fields: seen.append(var.get())
    token = var.set("of the caller")
    try:
        kernel.execute("SUBMIT(1)")
    finally:
        var.reset(token)
    assert seen == ["of the caller"]


def test_of_several_threads_that_submit_one_wins(kernel: KernelInterpreter) -> None:
    kernel.output_fields = [{"name": "n", "type": "int"}]
    code = """
import threading
threads = [threading.Thread(target=SUBMIT, args=(n,)) for n in range(8)]
for t in threads: t.start()
for t in threads: t.join()
"""
    answer = kernel.execute(code)
    assert isinstance(answer, FinalOutput)
    assert answer.output["n"] in range(8)


def test_a_submission_between_cells_is_nobodys(kernel: KernelInterpreter) -> None:
    between, reported = threading.Event(), threading.Event()
    said: list[str] = []

    def report(text: str) -> None:
        said.append(text)
        reported.set()

    kernel.bind(tools={"wait": lambda: between.wait(30), "report": report})
    kernel.execute("""
import threading
def late():
    wait()
    try:
        SUBMIT(99)
    except BaseException as e:
        report(repr(e))
threading.Thread(target=late).start()
""")
    between.set()
    assert reported.wait(30)
    assert "there is none running now" in said[0]
    assert kernel.execute("1") == "1"
