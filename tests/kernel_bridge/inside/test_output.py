"""What a cell prints and how it fails, as the agent reads it."""

from __future__ import annotations

import re
import signal
import threading
from typing import Any

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError, CodeInterpreterError

from kernel_bridge import KernelInterpreter, Limits

# -- output ------------------------------------------------------------------------------------------------------------

MIXED = """
import os, subprocess
print("a")
os.system("echo b")
print("c")
_ = subprocess.run(["sh", "-c", "echo d; echo e >&2"])
print("f")
_ = os.write(2, b"g\\n")
"h"
"""


BAR = """
import sys
for step in range(401):
    sys.stdout.write(f"\\rstep {step}/400")
    sys.stdout.flush()
_ = sys.stdout.write("\\rdone 400/400\\n")
"""


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("x = 1", None),
        ("", None),
        ("# nothing", None),
        ("None", None),
        ("print()", None),
        ("print(end='')", None),
        ("'text'", "text"),
        ("print('a'); 'b'", "a\nb"),
        ("b'raw'", "b'raw'"),
        ("1 + 1\n2 + 2", "4"),
        ("for i in range(2):\n    i", None),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out again')", "out\nerr\nout again"),
        ("import sys\nsys.stdout.buffer.write(b'by\\xc3\\xa4tes') and None", "byätes"),
        ("print('tail', end='')", "tail"),
        (BAR, "done 400/400"),
        (BAR.replace("stdout", "stderr"), "done 400/400"),
        (f"import subprocess, sys\n_ = subprocess.run([sys.executable, '-c', {BAR!r}])", "done 400/400"),
        ("import tqdm\nfor _ in tqdm.tqdm(range(400), mininterval=0, leave=False): pass\nprint('done')", "done"),
        ("print('one\\r\\ntwo\\r\\n', end='')", "one\ntwo"),
        ("print('50%', end='\\r')\n'a value\\rwith a return'", "50%a value\rwith a return"),
        ("print('\\n\\nx\\n\\n')", "\n\nx"),
        ("print('\\x1b[31mred\\x1b[0m \\x1b]0;title\\x07plain')", "red plain"),
        ("display(3)\ndisplay('x')", "3\n'x'"),
        ("await __import__('asyncio').sleep(0)\n'slept'", "slept"),
(MIXED, "a\nb\nc\nd\ne\nf\ng\nh"),
        ("!echo shell; echo err >&2", "shell\nerr"),
        ("%%bash\necho cell magic", "cell magic"),
        ("print(chr(0xd800) + 'é')", "\\ud800é"),
        ("chr(0xdfff) * 2", "\\udfff\\udfff"),
        ("import warnings\nwarnings.simplefilter('always')\nwarnings.warn('look')", None),
        ("get_ipython() is not None", "True"),
        ("__name__", "__main__"),
    ],
)  # fmt: skip
def test_output_is_the_text_of_the_cell_in_order(kernel: KernelInterpreter, code: str, text: str | None) -> None:
    answer = kernel.execute(code)
    if "warn" in code:
        assert answer.splitlines()[0].endswith("UserWarning: look")
    else:
        assert answer == text


def test_what_a_forked_child_prints_is_there(kernel: KernelInterpreter) -> None:
    code = """
import multiprocessing, warnings
warnings.filterwarnings("ignore", ".*multi-threaded", DeprecationWarning)  # what Python 3.12 and later say of a fork
child = multiprocessing.get_context("fork").Process(target=print, args=("from the child",))
child.start(); child.join()
print("from the parent")
"""
    assert kernel.execute(code) == "from the child\nfrom the parent"


def test_a_cell_that_loses_its_stdout_silences_nothing_after_it(kernel: KernelInterpreter) -> None:
    kernel.execute("import sys; sys.stdout = sys.stderr = None")
    assert kernel.execute("print('back')") == "back"
    kernel.execute("import io, sys; sys.stdout = io.StringIO(); print('swallowed')")
    assert kernel.execute("print('back')") == "back"
    kernel.execute("sys.stdout.close(); sys.stderr.close()")
    assert kernel.execute("print('back')") == "back"


def test_a_background_threads_late_output_stays_out_of_other_cells(kernel: KernelInterpreter) -> None:
    kernel.execute("""
import threading
go, done = threading.Event(), threading.Event()
def late():
    go.wait()
    print("late")
    done.set()
threading.Thread(target=late).start()
""")
    release = threading.Event()
    kernel.tools["release"] = release.set
    kernel.execute("pass")  # which is told that no checkpoint has the events
    assert kernel.execute("go.set(); done.wait(); print('own')") == "late\nown"
    assert kernel.execute("1") == "1"


def test_output_is_bounded_and_says_what_was_left_out() -> None:
    with KernelInterpreter(limits=Limits(output_bytes=1000), confinement="off") as interpreter:
        text = interpreter.execute("for i in range(10_000):\n    print(f'{i:06}')")
        assert text.startswith("000000\n000001\n")
        assert text.endswith("009998\n009999")
        assert "... [69,000 characters left out] ..." in text
        assert len(text) < 1100
        assert len(interpreter.execute("'x' * 10_000_000")) < 1100
        assert len(interpreter.execute("import os; os.write(1, b'y' * 60_000)")) < 1100
        with pytest.raises(CodeExecutionError) as failure:
            interpreter.execute("print('z' * 5000); raise ValueError('v' * 10_000_000)")
        assert len(str(failure.value)) < 3000
        assert interpreter.execute("print('ok')") == "ok"


def test_large_output_crosses_whatever_the_limit_of_one_value_is() -> None:
    with KernelInterpreter(limits=Limits(frame_bytes=2000), confinement="off") as interpreter:
        assert interpreter.execute("print('\\0é😀' * 100_000)") == "\0é😀" * 100_000
        with pytest.raises(CodeExecutionError, match="eeeee"):
            interpreter.execute("raise ValueError('e' * 100_000)")


def test_question_marks_and_help_show_a_tool(kernel: KernelInterpreter) -> None:
    def evaluate(split: str = "train", *, limit: int | None = None) -> dict[str, Any]:
        """Score the program.

        Returns a dict.
        """
        return {}

    kernel.tools["evaluate"] = evaluate
    for code in ("help(evaluate)", "evaluate?", "?evaluate"):
        text = kernel.execute(code)
        assert "evaluate(split: str = 'train', *, limit: int | None = None) -> dict[str, Any]" in text
        assert "Score the program." in text
        assert "Returns a dict." in text


ORDER = """
import ctypes, os, sys
write = {write}
for number in range(3_000):
    print(number)
    write(1, b"-\\n", 2)
    sys.stderr.write("=\\n")
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="descriptors are not captured here")
@pytest.mark.parametrize("write", ["lambda fd, data, size: os.write(fd, data)", "ctypes.CDLL(None).write"])
def test_what_is_written_between_two_prints_stays_between_them(kernel: KernelInterpreter, write: str) -> None:
    lines = str(kernel.execute(ORDER.format(write=write))).splitlines()
    assert lines[: 3 * 3_000] == [line for number in range(3_000) for line in (str(number), "-", "=")]


TIGHT = """
import ctypes, os, sys
def tight(out, write, number):
    for _ in range(number):
        out("a")
        write(1, b"b", 1)
tight(sys.stdout.write, {write}, 3_000)
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="descriptors are not captured here")
@pytest.mark.parametrize("write", ["lambda fd, data, size: os.write(fd, data)", "ctypes.CDLL(None).write"])
def test_what_is_written_as_soon_as_can_be_after_another_text_comes_after_it(
    kernel: KernelInterpreter, write: str
) -> None:
    for _ in range(3):
        assert kernel.execute(TIGHT.format(write=write)) == "ab" * 3_000


def test_threads_that_print_at_once_lose_nothing(kernel: KernelInterpreter) -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
with ThreadPoolExecutor(8) as pool:
    _ = list(pool.map(lambda n: [print(f"<{n}>", end=" ") for _ in range(1_500)], range(8)))
"""
    said = re.findall(r"<\d>", str(kernel.execute(code)))  # a text and its end may be apart
    assert sorted(said) == [f"<{n}>" for n in range(8) for _ in range(1_500)]


def test_prints_that_are_interrupted_leave_the_next_cell_as_it_was(kernel: KernelInterpreter) -> None:
    begun = threading.Event()
    kernel.tools["begun"] = begun.set
    for number in range(20):
        begun.clear()
        breaker = threading.Thread(target=lambda: (begun.wait(30), kernel.interrupt()))
        breaker.start()
        with pytest.raises(CodeExecutionError, match=r"\A0\n1\n2\n(?s:.*)KeyboardInterrupt"):
            kernel.execute("for n in range(3): print(n)\nbegun()\nwhile True:\n    print(n)\n    n += 1")
        breaker.join()
        assert kernel.execute(f"print({number})") == str(number)


# -- before a death ----------------------------------------------------------------------------------------------------

DEATHS = {
    "exit": "os._exit(1)",
    "kill": "os.kill(os.getpid(), 9)",
    "segfault": "ctypes.string_at(0)",
}


@pytest.mark.parametrize("death", DEATHS.values(), ids=list(DEATHS))
@pytest.mark.parametrize("lines", [1, 12_000])
def test_all_that_was_printed_before_a_death_is_told(death: str, lines: int) -> None:
    with KernelInterpreter(confinement="off") as kernel:
        kernel.execute("import ctypes, os\nfor n in range(5_000): print('of the cell before')")
        raw = "raw\n" if hasattr(signal, "setitimer") else ""  # elsewhere descriptors are not captured
        with pytest.raises(CodeExecutionError, match="The kernel died") as died:
            kernel.execute(
                f"for n in range({lines}): print(n)\n"
                f"os.write(1, {raw.encode()}); print('d\u00e9j\u00e0', end='')\n{death}"
            )
        said = str(died.value).partition("\nThe kernel died")[0]
        assert said == "".join(f"{n}\n" for n in range(lines)) + raw + "déjà"


def test_what_was_printed_before_a_death_is_bounded_and_says_so() -> None:
    with KernelInterpreter(confinement="off", limits=Limits(output_bytes=50_000)) as kernel:
        for _ in range(2):
            with pytest.raises(CodeExecutionError, match="what it printed after this was lost with it") as died:
                kernel.execute("for n in range(100_000): print(f'{n:09}')\nimport os; os._exit(1)")
            said = str(died.value).split("\n")
            assert said[:2_500] == [f"{n:09}" for n in range(2_500)]
            assert said[2_500:2_502] == ["", "... [what it printed after this was lost with it] ..."]


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["if", "def f(:\n  pass", "x = 'open", "return 1 +", "a b", "x = \ud800", "  x\n y"])
def test_code_that_is_no_python_is_a_syntax_error_and_nothing_ran(kernel: KernelInterpreter, code: str) -> None:
    kernel.execute("ran = False")
    with pytest.raises(SyntaxError) as failure:
        kernel.execute(f"ran = True\n{code}")
    assert str(failure.value)
    assert kernel.execute("ran") == "False"


def test_a_runtime_error_shows_the_agents_own_frames(kernel: KernelInterpreter) -> None:
    kernel.execute("def inner(x):\n    import json\n    return json.loads(x)\n")
    with pytest.raises(CodeExecutionError) as failure:
        kernel.execute("print('before')\ninner('{')")
    text = str(failure.value)
    assert text.startswith("before\nTraceback (most recent call last):\n")
    assert "    inner('{')" in text
    assert "in inner\n    return json.loads(x)" in text
    assert text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: Expecting property name")
    for noise in ("site-packages", "lib/python", "kernel_bridge", "\x1b"):
        assert noise not in text


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("undefined", "NameError: name 'undefined' is not defined"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("eval('1 +')", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import sys; sys.exit()", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("exit()", "call SUBMIT"),
        ("quit()", "call SUBMIT"),
        ("input('name? ')", "nobody can type into this session"),
        ("class E(Exception):\n    def __str__(self): raise ValueError\nraise E", r"E: <exception str\(\) failed>"),
        ("class R:\n    def __repr__(self): return 1 / 0\nR()", "ZeroDivisionError"),
        ("raise ValueError(chr(0xd800))", r"ValueError: \\ud800"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise BaseException('base')", "BaseException: base"),
        ("%no_such_magic", "no_such_magic"),
        ("assert False, 'because'", "AssertionError: because"),
    ],
)
def test_an_error_in_the_code_leaves_the_session_as_it_was(kernel: KernelInterpreter, code: str, says: str) -> None:
    kernel.execute("kept = 41")
    with pytest.raises(CodeExecutionError, match=says):
        kernel.execute(code)
    assert kernel.execute("kept + 1") == "42"


def test_causes_and_groups_are_shown(kernel: KernelInterpreter) -> None:
    with pytest.raises(CodeExecutionError) as failure:
        kernel.execute("try:\n    {}['a']\nexcept KeyError as e:\n    raise RuntimeError('second') from e")
    text = str(failure.value)
    assert "KeyError: 'a'" in text
    assert "direct cause" in text
    assert text.endswith("RuntimeError: second")


@pytest.mark.parametrize("code", [None, 5, b"1", ["1"]])
def test_code_must_be_text(kernel: KernelInterpreter, code: Any) -> None:
    with pytest.raises(CodeInterpreterError, match="code must be a str"):
        kernel.execute(code)
    assert kernel.execute("1") == "1"


def test_a_bar_takes_no_room_from_what_is_printed_around_it() -> None:
    with KernelInterpreter(limits=Limits(output_bytes=2_000)) as kernel:
        assert kernel.execute(f"print('before')\n{BAR * 20}\nprint('after')") == (
            "before\n" + "done 400/400\n" * 20 + "after"
        )
        text = kernel.execute(f"print('x' * 1_500)\n{BAR}\nprint('y' * 1_500)\n{BAR}\nprint('after')")
        assert text.startswith("x" * 1_000)
        assert text.endswith("y\ndone 400/400\nafter")
        assert "characters left out" in text


def test_a_bar_under_which_the_kernel_dies_is_told_as_it_stood() -> None:
    died = r"\Abefore\ndone 400/400\nbegun\nThe kernel died"
    with KernelInterpreter() as kernel, pytest.raises(CodeExecutionError, match=died):
        kernel.execute(f"print('before')\n{BAR}\nprint('begun', end='\\r')\nimport os; os._exit(1)")


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_a_signal_handler_of_the_cell_may_print_in_the_middle_of_a_print() -> None:
    code = """
import signal
ticks = 0
def tick(number, frame):
    global ticks
    ticks += 1
    print("tick")
signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
try:
    for _ in range(20_000): print("x")
finally:
    signal.setitimer(signal.ITIMER_REAL, 0)
print("ticks", ticks > 0)
"""
    with KernelInterpreter(limits=Limits(cell_seconds=30)) as kernel:
        assert str(kernel.execute(code)).endswith("ticks True")
