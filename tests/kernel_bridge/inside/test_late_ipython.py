"""IPython is imported when something first needs it, and nobody sees that it was not there from the beginning."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from IPython.core.formatters import PlainTextFormatter
from jupyter_client.blocking.client import BlockingKernelClient

from kernel_bridge import Cell, KernelInterpreter, KernelSession
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
    "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(2) as pool: print(list(pool.map(f, [1])))",
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
import builtins, importlib, sys, threading

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
