"""IPython is imported when something first needs it, and nobody sees that it was not there from the beginning."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import PlainTextFormatter

from kernel_bridge import Cell, KernelSession, Limits
from kernel_bridge.inside.plain_text import plain_text

# Code that asks for the modules by their name finds IPython.
IS_THERE = "print('tornado' in getattr(__import__('sys'), 'mod' + 'ules'))"


@pytest.fixture
def young() -> Iterator[KernelSession]:
    """A kernel that has done nothing yet."""
    with KernelSession(confinement="off") as session:
        yield session


def has_it(session: KernelSession) -> bool:
    return {"True\n": True, "False\n": False}[session.run(IS_THERE).text]


PLAIN = [
    "1 + 1",
    "x = [1, 'a', None, 2.5, {'b': (True,)}]\nx",
    "\n\nfor i in range(3):\n    print(i)",
    "def f(n):\n    return n + x[0]\n\nf(2)",
    "1 / 0",
    "if not x:\n    undefined(3)",
    "import json, re, math, random, collections, itertools, pathlib, datetime, typing, dataclasses, statistics, csv",
    "import subprocess, threading, logging, concurrent.futures, multiprocessing, urllib.request, unittest, tempfile",
    "class Point:\n    def __init__(self, x): self.x = x\npoint = Point(3)\npoint.x",
    "with open('file', 'w') as file: print('text', file=file)\nopen('file').read()",
    "for _ in range(3): pass\n_",
    "raise SystemExit(3)",
    "input()",
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool: list(pool.map(f, [1]))",
    "",
    "# nothing",
]


def test_plain_python_needs_no_ipython_nor_does_a_restart(young: KernelSession) -> None:
    young.run(Cell("\nimport sys\nsys.modules['made'] = made = type(sys)('made')\n", setup=True))
    for code in PLAIN:
        young.run(code)
    assert not has_it(young)
    death = young.run("import os; os._exit(1)").death
    assert death is not None
    assert {"x", "f", "Point", "point"} <= set(death.restored)
    assert young.run("f(2), point.x").text == "(3, 3)\n"
    assert not has_it(young)


NEEDS = {
    "%pwd\n0": "0\n",
    "!echo from the shell": "from the shell\n",
    "  indented = 1\n  indented": "1\n",
    "await __import__('asyncio').sleep(0, 'slept')": "slept\n",
    "get_ipython().__class__.__name__": "BridgeShell\n",
    "get_ipython().execution_count": "1\n",
    "display(3)": "3\n",
    "In, Out, _ih is In": "([''], {}, True)\n",
    "{3, 1, 2}": "{1, 2, 3}\n",
    "list(range(40))": "[" + ",\n ".join(map(str, range(40))) + "]\n",
    "from IPython.display import Markdown\nMarkdown.__module__": "IPython.core.display\n",
    "from ipykernel import kernelapp\nkernelapp.IPKernelApp.instance().__class__.__name__": "BridgeApp\n",
    "import sys\nsys.modules['IPython'].get_ipython() is get_ipython()": "True\n",
    "import asyncio\nasyncio.current_task() in asyncio.all_tasks()": "True\n",
    "import builtins\nbuiltins.__IPYTHON__, hasattr(builtins, 'exit')": "(True, False)\n",
    "'_dh' in dir(), globals()['quit'] is exit": "(True, True)\n",
    "import sys\nsys.displayhook is get_ipython().displayhook": "True\n",
}


@pytest.mark.parametrize("code", NEEDS)
def test_a_cell_that_needs_ipython_has_it(young: KernelSession, code: str) -> None:
    assert not has_it(young)
    outcome = young.run(code)
    assert (outcome.failure, outcome.text) == (None, NEEDS[code])
    assert has_it(young)


LIBRARY = """
import builtins, importlib.util, sys, threading

def told():
    try:
        return get_ipython().__class__.__name__
    except NameError:
        return 'no shell'

def shown(): display('shown by a library')
def listed(): return sys.modules.get('IPython').get_ipython().__class__.__name__
def imported():
    import IPython
    return IPython.get_ipython().kernel.shell is get_ipython()
def part(): return importlib.import_module('IPython.lib.pretty').pretty({2, 1})
def app():
    from ipykernel.kernelapp import IPKernelApp
    return IPKernelApp.initialized() and IPKernelApp.instance().kernel.__class__.__name__
def loop():
    import asyncio
    return asyncio.get_running_loop().is_running()
def task():
    import asyncio
    async def later(): return 'later'
    builtins.task = asyncio.create_task(later())
    return 'soon'
def second_loop():
    import asyncio
    async def main(): pass
    try: asyncio.run(main())
    except RuntimeError as error: return 'Use await' in str(error)
def loop_after_a_look():
    importlib.util.find_spec('asyncio')
    return loop()
def debugger():
    import pdb
    try: pdb.set_trace()
    except RuntimeError as error: return 'debugger cannot work' in str(error)
def named():
    return getattr(__main__(), 'get_ipython')().__class__.__name__
def __main__(): return importlib.import_module('__main' + '__')
def left():
    try: __main__().exit()
    except RuntimeError as error: return 'SUBMIT' in str(error)
def refused():
    try: __main__().open(1)
    except ValueError as error: return 'fd=1' in str(error)
def in_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append((listed(), imported(), told())))
    thread.start(); thread.join()
    return found[0]
def in_threads():
    from concurrent.futures import ThreadPoolExecutor
    begin = threading.Barrier(6)
    def look(what):
        begin.wait()
        return what() if what is not loop else __import__('asyncio').__name__
    with ThreadPoolExecutor(6) as pool:
        return list(pool.map(look, [told, listed, loop, imported, told, listed]))
"""

MEETS = {
    "told": "BridgeShell\n",
    "shown": "'shown by a library'\n",
    "listed": "BridgeShell\n",
    "imported": "True\n",
    "part": "{1, 2}\n",
    "app": "BridgeKernel\n",
    "loop": "True\n",
    "loop_after_a_look": "True\n",
    "task": "soon\n",
    "second_loop": "True\n",
    "debugger": "True\n",
    "named": "BridgeShell\n",
    "left": "True\n",
    "refused": "True\n",
    "in_thread": "('BridgeShell', True, 'BridgeShell')\n",
    "in_threads": "['BridgeShell', 'BridgeShell', 'asyncio', True, 'BridgeShell', 'BridgeShell']\n",
}


@pytest.mark.parametrize("way", MEETS)
def test_a_library_that_looks_for_ipython_in_the_middle_of_a_cell_finds_it(young: KernelSession, way: str) -> None:
    young.run(f"with open('library.py', 'w') as file: file.write({LIBRARY!r})")
    assert young.run("import library").failure is None
    assert not has_it(young)
    outcome = young.run(f"print('before')\nfound = library.{way}()\nprint('after')\nfound")
    assert (outcome.failure, outcome.death) == (None, None)
    expected = f"{MEETS[way]}after\n" if way == "shown" else f"after\n{MEETS[way]}"
    assert outcome.text == f"before\n{expected}"
    assert has_it(young) == (way != "debugger")
    if way == "task":
        assert young.run("await task").text == "later\n"
    assert young.run("get_ipython().__class__.__name__, 2 + 2").text == "('BridgeShell', 4)\n"


HINDRANCES = {
    "another name": "__name__ = 'json'",
    "no name": "del __name__",
    "files that a checkpoint needs": "for name in ('string', 'logging'):\n"
    "    with open(name + '.py', 'w') as file: file.write('raise ImportError')\n"
    "file = [1]",
    "few frames": "import sys\nsys.setrecursionlimit(120)",
    "warnings are errors": "import warnings\nwarnings.simplefilter('error')",
    "no path": "import sys\nsys.path.clear()",
    "files in the way": "for name in ('traitlets', 'asyncio', 'uuid', 'tornado'):\n"
    "    with open(name + '.py', 'w') as file: file.write('raise ImportError')",
    "a deep recursion": "def deep(n):\n    return deep(n - 1) if n else __import__('IPython').get_ipython()\n"
    "x = deep(900)",
    "no collection": "import gc\ngc.disable()",
}


@pytest.mark.parametrize("code", HINDRANCES.values(), ids=HINDRANCES)
def test_what_the_agents_code_has_set_is_not_in_the_way_and_stays(young: KernelSession, code: str) -> None:
    kept = "import gc, sys, warnings\nraising = ('error', None, Warning, None, 0) in warnings.filters\n"
    kept += "print(sys.getrecursionlimit(), sys.path, raising, gc.isenabled())"
    assert young.run(code).death is None
    before = young.run(kept).text
    assert young.run("%precision 2\nprint(get_ipython().__class__.__name__)").text == "BridgeShell\n"
    assert young.run(kept).text == before


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_timer_of_the_agents_rings_when_it_has_been_imported(young: KernelSession) -> None:
    code = """
import signal, importlib
signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
try:
    signal.setitimer(signal.ITIMER_REAL, 0.03)
    importlib.import_module('IPy' + 'thon').version_info
    while True: pass
except ZeroDivisionError:
    print('rang')
"""
    assert young.run(code).text == "rang\n"
    assert young.run("get_ipython().__class__.__name__").text == "BridgeShell\n"


def test_names_of_ipythons_that_cells_have_taken_are_theirs(young: KernelSession) -> None:
    young.run(Cell("_ = 5\nlater = 6", variables={"In": "given", "open": "shut", "Out": 3}))
    assert not has_it(young)
    assert young.run("%pwd\nprint(_, In, open, Out, _ih, later)").text == "5 given shut 3 [''] 6\n"
    assert young.run("del open\nprint(In)").text == "given\n"
    assert young.run("import io\nopen.__wrapped__ is io.open").text == "True\n"


def test_context_variables_and_output_go_on_in_the_same_cell(young: KernelSession) -> None:
    code = """
import contextvars, importlib
variable = contextvars.ContextVar('variable')
token = variable.set(1)
print('before', end=' ')
package = importlib.import_module('IPy' + 'thon')
print(package.get_ipython().kernel.cell is not None, end=' ')
variable.reset(token)
variable.set(2)
package.display.display('shown')
[package.get_ipython().__class__]
"""
    outcome = young.run(code)
    assert outcome.failure is None
    assert outcome.text == "before True 'shown'\n[kernel_bridge.inside.shell.BridgeShell]\n"
    if sys.version_info < (3, 11):
        return  # no task can run in a given context
    assert young.run("variable.get()").text == "2\n"
    assert young.run("await __import__('asyncio').sleep(0); variable.get()").text == "2\n"


def test_a_future_import_counts_for_the_cells_of_both_kinds(young: KernelSession) -> None:
    young.run("from __future__ import annotations")
    assert young.run("def f(x: Nowhere): pass\nf.__annotations__").text == "{'x': 'Nowhere'}\n"
    assert young.run("%precision 3\ndef f(x: Nowhere): pass\nf.__annotations__").text == "{'x': 'Nowhere'}\n"


def test_a_recursion_to_its_end_leaves_room_to_import_it(young: KernelSession) -> None:
    code = """
import importlib
def deep():
    try: return deep()
    except RecursionError: return importlib.import_module('IPy' + 'thon.display').HTML.__name__
print(deep())
"""
    assert young.run(code).text == "HTML\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="a directory that is in use cannot be removed there")
def test_a_working_directory_that_is_gone_is_not_in_the_way(young: KernelSession) -> None:
    young.run("import os, tempfile\nwith tempfile.TemporaryDirectory() as place: os.chdir(place)")
    assert young.run("kept = 5\n{3, 1, 2}").text == "{1, 2, 3}\n"
    assert young.run("try: os.getcwd()\nexcept OSError: print('gone', kept)").text == "gone 5\n"


def test_it_is_imported_without_a_word_in_the_agents_log(young: KernelSession) -> None:
    young.run("import logging\nlogging.basicConfig(level=logging.DEBUG)")
    assert young.run("import asyncio\nlogging.debug('mine')").text == "DEBUG:root:mine\n"
    assert young.run("{1}").text == "{1}\n"
    assert young.run("logging.debug('still')").text == "DEBUG:root:still\n"


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no fork")
def test_a_forked_child_runs_event_loops_of_its_own_and_shows_its_last_value_to_nobody(young: KernelSession) -> None:
    code = """
import importlib, os
child = os.fork()
if child == 0:
    asyncio = importlib.import_module('asyn' + 'cio')
    async def main(): return 3
    os._exit(asyncio.run(main()))
os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    assert young.run(code).text == "3\n"
    assert young.run("child = os.fork()\nchild == 0").text == "False\n"
    assert young.run("os.waitpid(child, 0)[1]").text == "0\n"


def test_open_can_be_pickled_by_the_agents_code(young: KernelSession) -> None:
    young.run("import cloudpickle, pickle\ndef read(name): return open(name).read()\nopen('file', 'w').write('text')")
    assert young.run("pickle.loads(cloudpickle.dumps(read))('file')").text == "text\n"


def test_pythons_own_module_is_imported_whatever_lies_in_the_working_directory(young: KernelSession) -> None:
    young.run("for name in ('cmd', 'bdb', 'asyncio'):\n    open(name + '.py', 'w').write('raise ImportError')")
    assert young.run("import cmd, bdb, runpy\ncmd.Cmd.__module__, bdb.Bdb.__module__").text == "('cmd', 'bdb')\n"
    assert young.run("import pdb\npdb.set_trace()").failure is not None
    assert young.run("import asyncio\nasyncio.sleep.__module__").text == "asyncio.tasks\n"


def test_what_the_cell_has_told_ipython_counts_for_its_own_value(young: KernelSession) -> None:
    code = "import importlib\nshell = importlib.import_module('IPy' + 'thon').get_ipython()\n"
    code += "shell.run_line_magic('precision', '2')\n3.14159"
    assert young.run(code).text == "3.14\n"
    code = "hooks = []\nget_ipython().events.register('post_execute', lambda: print('after the cell'))"
    assert young.run(code).text == "after the cell\n"


def test_a_mistake_that_python_warns_of_is_told_once(young: KernelSession) -> None:
    assert young.run("import asyncio\nprint(1 is 1)").text.count("SyntaxWarning") == 1


PRESSED = """
import importlib, os, signal, sys
class Pressing:
    def find_spec(self, name, path, target=None):
        if name == 'traitlets':
            os.kill(os.getpid(), signal.SIGINT)
getattr(sys, 'meta' + '_path').insert(0, Pressing())
importlib.import_module('IPy' + 'thon').version_info
print('not reached')
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="interrupts are no signals there")
def test_an_interrupt_in_the_middle_of_the_import_ends_the_cell_after_it(young: KernelSession) -> None:
    outcome = young.run(PRESSED)
    assert outcome.failure is not None
    assert (outcome.failure.name, outcome.death, outcome.text) == ("KeyboardInterrupt", None, "")
    assert young.run("get_ipython().__class__.__name__").text == "BridgeShell\n"


def test_what_a_thread_has_used_between_two_cells_is_there_for_the_next(young: KernelSession) -> None:
    young.run(
        "import threading\ngo = threading.Event()\n"
        "thread = threading.Thread(target=lambda: (go.wait(), __import__('IPython').version_info))\nthread.start()"
    )
    # The thread begins after the cell that lets it go, and before or in the one that waits for it.
    young.run("threading.Timer(0.01, go.set).start()")
    assert young.run("thread.join()\nawait __import__('asyncio').sleep(0, 'slept')").text == "slept\n"
    assert young.run("__import__('asyncio').get_running_loop().is_running()").text == "True\n"


def test_names_of_ipythons_that_objects_hold_are_kept(young: KernelSession) -> None:
    young.run("def read(name, opener=open): return opener(name).read()\nopener = open")
    death = young.run("import os; os._exit(1)").death
    assert death is not None
    assert set(death.restored) == {"read", "opener"}
    young.run("with open('file', 'w') as file: file.write('text')")
    assert young.run("read('file'), opener is open").text == "('text', True)\n"
    assert not has_it(young)


def test_an_interrupt_right_after_the_import_ends_the_cell() -> None:
    code = "import importlib\nimportlib.import_module('IPy' + 'thon').version_info\nbegun()\nwhile True: pass"
    with KernelSession(confinement="off", limits=Limits(cell_seconds=60)) as session:
        session.tools = {"begun": session.interrupt}
        outcome = session.run(code)
        assert outcome.failure is not None
        assert (outcome.failure.name, outcome.death) == ("KeyboardInterrupt", None)
        session.tools = {}
        assert session.run("get_ipython().__class__.__name__").text == "BridgeShell\n"


def test_a_kernel_that_cannot_import_it_any_more_is_replaced(young: KernelSession) -> None:
    young.run("kept = 41")
    young.run("import sys; getattr(sys, 'mod' + 'ules').update(traitlets=None)")
    death = young.run("%pwd").death
    assert death is not None
    assert "ended itself (ModuleNotFoundError: " in death.reason
    assert death.restored == ("kept", "sys")
    assert young.run("%precision 2\nkept").text == "41\n"


# -- texts of values ---------------------------------------------------------------------------------------------------

_leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=70) | st.binary(max_size=3)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=25)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=30,
)
_FORMATTER: Any = PlainTextFormatter()


@given(_values)
def test_a_text_that_is_made_without_ipython_is_the_text_that_ipython_makes(value: Any) -> None:
    text = plain_text(value)
    if type(value) is str:
        assert text == value
    elif text is not None:
        assert text == _FORMATTER(value)


class _Named(dict[str, int]):
    pass


@pytest.mark.parametrize("value", [{1, 2}, b"1", _Named(a=1), 10**18, [[[[[1]]]]], list(range(21)), {"a": {3}}, 1j])
def test_values_that_ipython_may_show_in_another_way_are_left_to_it(value: Any) -> None:
    assert plain_text(value) is None
