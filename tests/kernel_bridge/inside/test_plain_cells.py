"""Cells are run without IPython where nothing of it is needed, and in both ways they come to the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kernel_bridge import KernelSession
from kernel_bridge.cells import CellOutcome

WITH_IPYTHON = "get_ipython().input_transformers_post.append(list)"  # changes nothing, but might


@pytest.fixture(scope="module")
def quick() -> Iterator[KernelSession]:
    with KernelSession(confinement="off") as session:
        yield session


@pytest.fixture(scope="module")
def stock() -> Iterator[KernelSession]:
    with KernelSession(confinement="off") as session:
        session.run(WITH_IPYTHON)
        yield session


SAME = [
    "1 + 1",
    "'text'",
    "None",
    "True",
    "-5",
    "10**30",
    "10**5000",
    "x = 3",
    "assert 0, 'no'",
    "@f",
    "x = (",
    "'a' 'b' # why",
    "from __future__ import annotations",
    "x = 3\nx",
    "x = 3; x + 1",
    "print('first'); 'last'",
    "1\n2\n3",
    "for i in range(2):\n    i",
    "def f():\n    return 1\n\nf()",
    "'''a\n  b\n'''",
    "import sys; sys.displayhook is get_ipython().displayhook",
    "[n for n in range(3)]",
    "(yield_ := 5)",
    "...",
    "def stub(): ...\nstub()",
    "# only a comment",
    "",
    "   ",
    "\n\nx = 1\n1 / 0",
    "1 / 0",
    "def f():\n    1 / 0\n\nf()",
    "print('before')\nreturn 3",
    "print('before')\nif:",
    "x = = 3",
    "  indented = 1\n  indented",
    ">>> 1 + 2\n3",
    "In [1]: 1 + 4",
    "from __future__ import annotations\ndef f(x: Nowhere): pass\nf.__annotations__",
    "def g(x: Nowhere): pass\ng.__annotations__",
    "await __import__('asyncio').sleep(0, 'slept')",
    "print('one')\nawait __import__('asyncio').sleep(0, 'two')",
    "async def co(): return 8\nawait co()",
    "%%capture out\nprint(1)",
    "out.stdout",
    "a = %pwd\nlen(a) > 0",
    "b = !echo shell\nb",
    "!echo shell",
    "%automagic",
    "pwd = 5\npwd",
    "len?",
    "?len",
    "exit",
    "class Shown:\n    def __repr__(self): return 'own repr'\nShown()",
    "class Pretty:\n    def _repr_pretty_(self, p, cycle): p.text('pretty')\nPretty()",
    "class Itself:\n    def _ipython_display_(self): print('itself')\nItself()",
    "class Bundle:\n    def _repr_mimebundle_(self, **_): return {'text/plain': 'of a bundle'}\nBundle()",
    "class Broken:\n    def __repr__(self): raise ValueError('no repr')\nBroken()",
    "_ = 6\n_",
    "import builtins; builtins.input.__name__",
    "input()",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "import contextvars\nvariable = globals().setdefault('variable', contextvars.ContextVar('v'))\nvariable.set(1); 0",
    "variable.get()",
    "x = 1;\nx;",
    "%precision 2\n1.23456",
    "1.23456",
    "%precision %r\n",
    "lambda: 0 if",
    "get_ipython().last_execution_result.result",
    "b'bytes'\n",
    "x = 7\\\n+ 1\nx",
    "'é \ud83d\ude00'.encode('utf-16', 'surrogatepass').decode('utf-16')",
]


def without_numbers(outcome: CellOutcome) -> CellOutcome:
    """The outcome as it would be of any other cell."""
    said = outcome.failure
    if said is None:
        return outcome
    texts = {name: re.sub(r"<cell \d+>", "<cell>", getattr(said, name)) for name in ("message", "traceback")}
    return replace(outcome, failure=replace(said, **texts))


@pytest.mark.parametrize("code", SAME)
def test_a_cell_comes_to_the_same_with_ipython_and_without(
    quick: KernelSession, stock: KernelSession, code: str
) -> None:
    one, other = (without_numbers(session.run(code)) for session in (quick, stock))
    assert one == other


def test_plain_cells_do_without_ipython_and_all_others_have_it() -> None:
    count = """
shell = get_ipython()
ran = []
real = type(shell).run_cell_async
def counted(self, raw, *args, **kwargs):
    ran.append(raw)
    return real(self, raw, *args, **kwargs)
type(shell).run_cell_async = counted
"""
    with KernelSession(confinement="off") as session:
        session.run(count)
        for code in ("1 + 1", "x = 1\nprint(x)", "def f(): return [1]\nf()"):
            assert session.run(code).failure is None
        assert session.run("ran").text == "[]\n"
        for code in ("%pwd", "pwd", "await __import__('asyncio').sleep(0)", "!true", "  x"):
            assert session.run(code).failure is None
        assert session.run("len(ran), ran.clear()").text == "(5, None)\n"
        session.run("seen = []; shell.events.register('post_run_cell', seen.append)")
        assert session.run("2 + 2").text == "4\n"
        assert session.run("seen[-1].result, len(ran)").text == "(4, 2)\n"


def test_hooks_of_the_agents_see_and_change_every_cell() -> None:
    with KernelSession(confinement="off") as session:
        session.run("def louder(lines): return [line.replace('quiet', 'LOUD') for line in lines]\n"
                    "get_ipython().input_transformers_cleanup.append(louder)")  # fmt: skip
        assert session.run("print('quiet')").text == "LOUD\n"
        session.run("get_ipython().input_transformers_cleanup.remove(louder)")
        assert session.run("print('quiet')").text == "quiet\n"
        session.run("import ast\nclass Two(ast.NodeTransformer):\n    def visit_Constant(self, node):\n"
                    "        return ast.Constant(2) if node.value == 1 else node\n"
                    "get_ipython().ast_transformers.append(Two())")  # fmt: skip
        assert session.run("1 + 1").text == "4\n"
        session.run("get_ipython().ast_transformers.clear()")
        session.run("%config InteractiveShell.ast_node_interactivity = 'all'")
        assert session.run("5\n6").text == "5\n6\n"


_OTHER_TEXTS = {
    "a printer of integers": "shell.formatters['text/plain'].for_type(int, lambda n, p, cycle: p.text(f'<{n}>'))",
    "a printer of one object": "shell.formatters['text/plain'].singleton_printers[id(7)] = "
    "lambda n, p, cycle: p.text(f'<{n}>')",
    "a display of integers": "shell.ipython_display_formatter.for_type(int, lambda n: print(f'<{n}>'))",
    "a display of integers by name": "shell.ipython_display_formatter.for_type_by_name('builtins', 'int', "
    "lambda n: print(f'<{n}>'))",
    "another format": "shell.format = lambda value, **_: ({'text/plain': f'<{value}>'}, {})",
}


@pytest.mark.parametrize("change", _OTHER_TEXTS.values(), ids=_OTHER_TEXTS.keys())
def test_integers_are_shown_as_the_agent_has_asked(change: str) -> None:
    with KernelSession(confinement="off") as session:
        assert session.run("3 + 4").text == "7\n"
        session.run(f"shell = get_ipython().display_formatter; {change}; None")
        assert session.run("3 + 4").text == "<7>\n"
