"""What cannot be done in a cell says so and what to do instead; what a cell wipes out is there in the next one."""

from __future__ import annotations

from typing import Any

import pytest
from dspy.primitives.code_interpreter import CodeExecutionError
from dspy.primitives.facade import CALL_TOOL, CONSTRUCT_TOOL, HOST_TOKEN_VAR, SHIM_SETUP

from kernel_bridge import KernelInterpreter

MAIN = "import asyncio, getpass, io, pdb, sys\nasync def main(): return 7\n"


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        ("asyncio.run(main())", "RuntimeError", r"asyncio\.run\(\) cannot work here.* Use await"),
        ("asyncio.run(debug=True, main=main())", "RuntimeError", "Use await"),
        ("asyncio.get_event_loop().run_until_complete(main())", "RuntimeError", "Use await"),
        ("asyncio.new_event_loop().run_until_complete(main())", "RuntimeError", "Use await"),
        ("asyncio.new_event_loop().run_forever()", "RuntimeError", "Use await"),
        ("def f(): return asyncio.run(main())\nf()", "RuntimeError", "Use await"),
        ("input('name? ')", "EOFError", r"input\(\) gets nothing here: nobody can type .* sys.stdin = io.StringIO"),
        ("getpass.getpass()", "EOFError", "nobody can type"),
        ("sys.stdin.read()", "EOFError", "nobody can type"),
        ("sys.stdin.readline()", "EOFError", "nobody can type"),
        ("for line in sys.stdin: pass", "EOFError", "nobody can type"),
        ("sys.stdin.buffer.read()", "EOFError", "nobody can type"),
        ("sys.stdin.close()\nsys.stdin.readlines()", "EOFError", "nobody can type"),
        ("breakpoint()", "RuntimeError", "debugger cannot work here"),
        ("pdb.set_trace()\nx = 1", "RuntimeError", "debugger cannot work here"),
        ("pdb.Pdb().set_trace()", "RuntimeError", "debugger cannot work here"),
        ("from IPython.core.debugger import set_trace\nset_trace()", "RuntimeError", "debugger cannot work here"),
        ("try: 1 / 0\nexcept ZeroDivisionError: pdb.post_mortem()", "RuntimeError", "debugger cannot work here"),
        ("pdb.run('x = 1')", "RuntimeError", "debugger cannot work here"),
    ],
)
def test_a_cell_is_told_why_and_what_to_do_instead(kernel: KernelInterpreter, code: str, kind: str, says: str) -> None:
    with pytest.raises(CodeExecutionError, match=f"(?s){kind}: .*{says}") as told:
        kernel.execute(MAIN + code)
    assert "never awaited" not in str(told.value)
    assert "no running event loop" not in str(told.value)
    assert kernel.execute("import sys; sys.gettrace(), await main()") == "(None, 7)"


@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("import threading; found = []\nt = threading.Thread(target=lambda: found.append(asyncio.run(main())))\n"
         "t.start(); t.join(); found", "[7]"),
        ("hasattr(sys.stdin, 'buffer'), sys.stdin.buffer.readable()", "(True, True)"),
        ("sys.stdin = io.StringIO('first\\nsecond')\ninput(), input()", "('first', 'second')"),
        ("import subprocess; subprocess.run(['cat'], capture_output=True, timeout=30).stdout", "b''"),
        ("import multiprocessing as m\nwith m.get_context('fork').Pool(1) as p: print(p.map(abs, [-1]))", "[1]"),
    ],
)  # fmt: skip
def test_what_does_work_is_left_alone(kernel: KernelInterpreter, code: str, answer: str) -> None:
    quiet = "import warnings; warnings.simplefilter('ignore')\n"
    assert kernel.execute(quiet + MAIN + code) == answer


def _facade(kernel: KernelInterpreter) -> None:
    """What dspy.RLM does before the first turn."""
    kernel.bind(tools={"tool": lambda: "called", CONSTRUCT_TOOL: lambda **_: "h", CALL_TOOL: lambda **_: {}})
    kernel.execute(SHIM_SETUP, variables={HOST_TOKEN_VAR: "token"})


WIPING = [
    "%reset -f",
    "%reset -f in array",
    "%reset -f --aggressive",
    "%reset_selective -f .*",
    "get_ipython().reset()",
    "globals().clear()",
    "del SUBMIT, tool, dspy, given",
    "for name in list(globals()): del globals()[name]",
    "%xdel dspy\n%xdel tool",
    "import sys; sys.modules.pop('dspy'); sys.modules.pop('__main__'); del dspy",
    "import sys, types; sys.modules['dspy'] = types.ModuleType('dspy'); dspy = None; del dspy",
    "get_ipython().user_ns = {}",
    "get_ipython().user_ns = {}; import types; get_ipython().user_module = types.ModuleType('other')",
    "__name__ = 'other'; del __name__, get_ipython",
]


def test_what_a_cell_wipes_out_is_there_in_the_next_one() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        _facade(kernel)
        kernel.execute("given = _raw_given + ['made']", variables={"_raw_given": ["input"]})
        for wipe in WIPING:
            kernel.execute(wipe, variables={"x": [1]})
            found = kernel.execute("tool(), x, given", variables={"x": [1]})
            assert found == "('called', [1], ['input', 'made'])", wipe
            there = "import dspy as again; dspy is again, hasattr(again, 'ChainOfThought'), __name__, SUBMIT.__name__"
            assert kernel.execute(there) == "(True, True, '__main__', 'SUBMIT')", wipe
            assert kernel.execute("class A: pass\nimport pickle; type(pickle.loads(pickle.dumps(A()))) is A") == "True"
            assert kernel.execute("get_ipython() is not None and dspy.Predict('q -> a')(q=1)").startswith("Prediction")
        answer: Any = kernel.execute("SUBMIT('done')")
        assert answer.output == {"output": "done"}


def test_what_the_agent_sets_to_something_else_stays_so() -> None:
    with KernelInterpreter(confinement="off") as kernel:
        _facade(kernel)
        kernel.execute("given = ['made']", variables={"_raw_given": ["input"]})
        kernel.execute("dspy = 'mine'; given.append(1); given = given + [2]")
        assert kernel.execute("dspy, given") == "('mine', ['made', 1, 2])"
