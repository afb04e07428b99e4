"""Modules that run when they are first used: in a block of their own, and in a started kernel."""

from __future__ import annotations

import importlib
import inspect
import json
import pickle
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import cloudpickle
import pytest

from kernel_bridge import KernelSession
from kernel_bridge.inside.deferred_imports import deferred, slow_modules

MODULE = """
import sys
sys.runs_of_late.append(__name__)
import late_other
__all__ = ["value", "double"]
value = 21
def double(x):
    "Twice as much."
    return 2 * x
class Thing: pass
"""


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The modules that have run; `late`, `late_other`, `late_broken` and the package `late_package` can be imported."""
    (tmp_path / "late.py").write_text(MODULE)
    (tmp_path / "late_other.py").write_text("import late\nsys = __import__('sys')\nsys.runs_of_late.append(__name__)\n")
    (tmp_path / "late_broken.py").write_text("raise ImportError('no such library')")
    (tmp_path / "late_package").mkdir()
    (tmp_path / "late_package" / "__init__.py").write_text("__import__('sys').runs_of_late.append('all')\nname = 1\n")
    (tmp_path / "late_package" / "part.py").write_text("number = 7\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found: list[str] = []
    monkeypatch.setattr(sys, "runs_of_late", found, raising=False)
    yield found
    for name in [name for name in sys.modules if name.startswith("late")]:
        del sys.modules[name]


def import_late() -> Any:
    with deferred({"late": {"double": "late"}}):
        return importlib.import_module("late")


def test_an_import_runs_nothing_and_the_first_use_runs_the_module_once(runs: list[str]) -> None:
    late = import_late()
    assert sys.modules["late"] is late
    assert (late.__name__, late.__spec__.name, Path(late.__file__).name) == ("late", "late", "late.py")
    assert runs == []
    assert late.value == 21
    assert runs == ["late", "late_other"]
    assert late.double(4) == 8
    assert runs == ["late", "late_other"]
    assert type(late) is ModuleType


USES: dict[str, Callable[[Any], bool]] = {
    "vars": lambda late: vars(late)["value"] == 21,
    "dir": lambda late: "value" in dir(late),
    "the source": lambda late: "value = 21" in inspect.getsource(late),
    "the members": lambda late: dict(inspect.getmembers(late))["value"] == 21,
    "a new attribute": lambda late: (setattr(late, "value", 5), late.value == 5)[1],
    "a deleted attribute": lambda late: (delattr(late, "value"), not hasattr(late, "value"))[1],
    "a reload": lambda late: bool(importlib.reload(late).value == 21),
    "a missing name": lambda late: not hasattr(late, "nothing_of_this_name"),
}


@pytest.mark.parametrize("use", USES.values(), ids=list(USES))
def test_every_use_sees_a_module_that_has_run(runs: list[str], use: Callable[[Any], bool]) -> None:
    late = import_late()
    assert use(late)
    assert runs[:2] == ["late", "late_other"]
    assert late.Thing.__module__ == "late"


@pytest.mark.parametrize("statement", ["from late import value", "from late import *", "from late import double"])
def test_later_code_that_imports_a_name_gets_the_real_one(runs: list[str], statement: str) -> None:
    late = import_late()
    names: dict[str, Any] = {}
    exec(statement, names)
    assert runs == ["late", "late_other"]
    assert all(names[name] is getattr(late, name) for name in names if name in ("value", "double"))
    assert "value" in names or "double" in names


def test_a_function_that_is_imported_in_the_block_runs_its_module_when_it_is_called(runs: list[str]) -> None:
    with deferred({"late": {"double": "late"}}):
        from late import double  # pyright: ignore[reportMissingImports, reportUnknownVariableType]
    assert runs == []
    assert double(3) == 6
    assert runs == ["late", "late_other"]


def test_threads_that_use_a_module_at_once_all_see_the_whole_of_it(runs: list[str]) -> None:
    late, begin = import_late(), threading.Barrier(8)

    def use(_: int) -> int:
        begin.wait(30)
        return late.Thing is not None and late.double(late.value)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(use, range(8))) == [42] * 8
    assert runs == ["late", "late_other"]


def test_a_module_that_cannot_be_run_says_so_at_each_use(runs: list[str]) -> None:
    with deferred({"late_broken": {}}):
        broken = importlib.import_module("late_broken")
    for _ in range(2):
        with pytest.raises(ImportError, match="no such library"):
            _ = broken.anything


def test_a_package_does_not_run_for_the_import_of_its_part(runs: list[str]) -> None:
    with deferred({"late_package": {}}):
        part = importlib.import_module("late_package.part")
    assert part.number == 7
    assert runs == []
    package = sys.modules["late_package"]
    assert package.part is part
    assert package.name == 1
    assert package.part is part


def test_after_the_block_the_same_module_runs_at_its_import(runs: list[str]) -> None:
    with deferred({"late": {}}):
        pass
    importlib.import_module("late")
    assert runs == ["late", "late_other"]
    with deferred({"no_such_module": {}}), pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module")


def test_a_module_that_has_not_run_is_pickled_by_its_name(runs: list[str]) -> None:
    late = import_late()
    assert isinstance(late, ModuleType)
    assert late.__class__ is ModuleType
    assert not isinstance(late, int)
    dumped: bytes = cloudpickle.dumps({"late": late})  # pyright: ignore[reportUnknownMemberType]
    assert pickle.loads(dumped)["late"] is late
    assert runs == []
    assert pickle.loads(pickle.dumps(late.double)) is late.double


# -- a started kernel --------------------------------------------------------------------------------------------------

_LOADED = """
import sys, types, json
json.dumps([name for name, module in sys.modules.items() if type(module) is types.ModuleType])
"""
HEAVY = (
    "IPython.terminal.embed", "debugpy", "dspy", "email", "http", "jedi", "jupyter_client.manager",
    "matplotlib", "numpy", "packaging.version", "parso", "pexpect", "prompt_toolkit", "psutil", "sqlite3",
    "tornado.httputil", "tornado.iostream", "unittest", "xml",
)  # fmt: skip
def test_a_started_kernel_has_run_none_of_the_modules_that_it_does_not_use() -> None:
    with KernelSession({}) as session:
        run = set(json.loads(session.run(_LOADED).text))
    assert run & slow_modules().keys() == set()
    assert run & set(HEAVY) == set()
    assert "IPython.core.interactiveshell" in run


_USE_ALL = """
import html, ssl, gettext, glob, tempfile, curses, logging, logging.config, asyncio, asyncio.sslproto
import platformdirs, jupyter_client, dateutil.parser, dateutil.tz
from html import escape
from IPython.core import completer, page
from ipykernel import eventloops
import pickle
with tempfile.TemporaryDirectory() as folder:
    found = glob.glob(folder)
logging.config.dictConfig({"version": 1})
print(
    escape("<") == html.escape("<") == "&lt;" and pickle.loads(pickle.dumps(escape)) is html.escape,
    ssl.create_default_context().check_hostname, issubclass(ssl.SSLError, OSError),
    gettext.gettext("text"), len(found), callable(curses.wrapper),
    asyncio.sslproto.SSLProtocol.__name__, jupyter_client.KernelManager.__name__,
    dateutil.parser.parse("2020-01-02").year, dateutil.tz.tzutc().utcoffset(None).seconds,
    completer.IPCompleter.__name__, callable(page.page), sorted(eventloops.loop_map, key=str)[0],
    platformdirs.user_data_dir("x").endswith("x"),
)
"""
_USED = "True True True text 1 True SSLProtocol KernelManager 2020 0 IPCompleter True None True"


def test_each_module_that_was_left_out_works_when_the_agents_code_asks_for_it() -> None:
    with KernelSession({}) as session:
        assert session.run("import html, ssl, glob").failure is None  # untouched: the checkpoint keeps them so
        died = session.run("import os; os.kill(os.getpid(), 9)").death
        assert died is not None
        assert died.restored == ("glob", "html", "ssl")
        assert session.run("html.escape('<'), callable(ssl.create_default_context), callable(glob.glob)").text == (
            "('&lt;', True, True)\n"
        )
        assert session.run(_USE_ALL).text == _USED + "\n"


def test_threads_of_the_agents_code_see_whole_modules() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
def use(number):
    import html, ssl, gettext
    return html.unescape("&lt;"), ssl.SSLContext.__name__, gettext.gettext("a")
with ThreadPoolExecutor(8) as pool:
    found = set(pool.map(use, range(64)))
found
"""
    with KernelSession({}) as session:
        assert session.run(code).text == "{('<', 'SSLContext', 'a')}\n"
