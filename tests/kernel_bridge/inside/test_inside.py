"""What is in a kernel's process and what is not, and kernels of other environments."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest
from child_process import fresh, output_of
from packaging.requirements import Requirement

import kernel_bridge
from kernel_bridge import Cell, KernelInterpreter, KernelSession, Pickled

INSIDE = Path(kernel_bridge.__file__).parent / "inside"
WIRE = INSIDE.parent / "wire"
ZMTP = INSIDE.parent / "zmtp"
OURS = ("dspy", "rlmoptimizer", "kernel_bridge")


def imports_of(file: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports would hide what is imported"
            found.add(node.module or "")
    return found


@pytest.mark.parametrize("file", sorted(INSIDE.glob("*.py")), ids=lambda file: file.stem)
def test_nothing_inside_names_anything_of_ours_but_the_wire_zmtp_and_inside(file: Path) -> None:
    of_ours = {name for name in imports_of(file) if name.split(".")[0] in OURS} - {"kernel_bridge.wire"}
    below = ("kernel_bridge.inside", "kernel_bridge.zmtp.", "kernel_bridge.wire.jupyter_messages")
    assert all(name.startswith(below) for name in of_ours)


@pytest.mark.parametrize("file", sorted(WIRE.glob("*.py")), ids=lambda file: file.stem)
def test_nothing_of_the_wire_names_anything_of_ours_but_the_wire(file: Path) -> None:
    imported = imports_of(file)
    assert all(name.startswith("kernel_bridge.wire.") for name in imported if name.split(".")[0] in OURS)
    assert not imported & {"socket", "threading", "zmq"}


@pytest.mark.parametrize("file", sorted(ZMTP.glob("*.py")), ids=lambda file: file.stem)
def test_nothing_of_zmtp_names_anything_of_ours_but_zmtp(file: Path) -> None:
    imported = imports_of(file)
    assert all(name.startswith("kernel_bridge.zmtp.") for name in imported if name.split(".")[0] in OURS)


@pytest.mark.smoke
def test_a_live_kernel_has_loaded_nothing_of_ours_but_the_wire_zmtp_and_inside() -> None:
    with KernelSession({"tool": lambda x: x}) as session:
        loaded = session.run("import sys, json\nfirst = sorted(sys.modules)\nprint(json.dumps(first))").text
        session.run("tool(1); help(tool)\nx = [lambda: 1]\n1 / 0")
        later = session.run("print(json.dumps(sorted(sys.modules)))").text
        # IPython 8 imports sqlite3 whatever happens; what costs is a database, and there is none.
        assert session.run("get_ipython().history_manager.enabled").text == "False\n"
    for names in (set(json.loads(loaded)), set(json.loads(later))):
        of_ours = {name for name in names if name.split(".")[0] in OURS}
        known = ("kernel_bridge.inside", "kernel_bridge.wire.", "kernel_bridge.zmtp.")
        assert {name for name in of_ours if not name.startswith(known)} == {
            "kernel_bridge",
            "kernel_bridge.wire",
            "kernel_bridge.zmtp",
        }
        assert names & {"debugpy", "litellm", "pydantic", "jupyter_client.manager"} == set()


def test_a_guardian_loads_nothing_that_is_dear() -> None:
    code = (
        "import sys\n"
        "package = type(sys)('kernel_bridge')\n"
        f"package.__path__ = [{str(Path(kernel_bridge.__file__).parent)!r}]\n"
        "sys.modules['kernel_bridge'] = package\n"
        "import kernel_bridge.inside.guardian\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert "kernel_bridge.inside.guardian" in ran.stdout.split()
    dear = {"collections", "contextlib", "ctypes", "enum", "hashlib", "json", "random", "re", "signal", "subprocess"}
    assert not (dear | {"typing"}) & set(ran.stdout.split())


def test_importing_the_bridge_imports_neither_dspy_nor_zmq() -> None:
    code = "import sys, kernel_bridge; print(sorted({'dspy', 'zmq', 'IPython', 'jupyter_client'} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout == "[]\n"
    for name in kernel_bridge.__all__:
        assert getattr(kernel_bridge, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        kernel_bridge.nonsense  # noqa: B018


def test_a_host_that_runs_cells_needs_neither_zmq_nor_jupyters_client() -> None:
    code = (
        "import sys\n"
        "from kernel_bridge import KernelSession\n"
        "with KernelSession({'double': lambda number: 2 * number}, confinement='off') as session:\n"
        "    print(session.run('double(number=21)').result)\n"
        "print(sorted({'zmq', 'tornado', 'IPython', 'jupyter_client', 'dspy'} & set(sys.modules)))"
    )
    assert output_of(fresh(code)) == "42\n[]\n"


def test_a_kernel_sees_no_variable_and_no_argument_of_its_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("AWS_PROFILE", "secret")
    with KernelSession() as session:
        text = session.run("import os, sys\nprint(dict(os.environ), sys.argv, sys.path[0] == '')").text
        assert "secret" not in text
        assert "PYTEST" not in text
        assert text.endswith(" True\n")
        assert os.fspath(Path.cwd()) != session.run("os.getcwd()").text.strip()


# -- another environment ---------------------------------------------------------------------------------------------


def closure(*names: str) -> set[str]:
    """The distributions that these need, installed here, themselves included."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name.lower() in found:
            continue
        try:
            requires = importlib.metadata.distribution(name).requires or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name.lower())
        needs = [Requirement(text) for text in requires]
        waiting += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def other_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The interpreter of an environment that holds ipykernel and msgspec with what those need, and nothing else."""
    root = tmp_path_factory.mktemp("environment")
    root.chmod(0o755)  # a kernel of a host that is root runs as somebody else, and pytest keeps its folders to itself
    venv.EnvBuilder(with_pip=False, symlinks=os.name == "posix").create(root)
    python = root / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    asked = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip())
    for name in closure("ipykernel", "msgspec"):
        distribution = importlib.metadata.distribution(name)
        for top in {file.parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}:
            source = Path(str(distribution.locate_file(top)))
            if source.is_dir():
                # Copied, not linked: another test looks at how many links these files have.
                shutil.copytree(source, packages / top, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tests"))
            else:
                shutil.copy2(source, packages / top)
    yield python
    shutil.rmtree(root)


@pytest.mark.parametrize("confinement", ["off", "auto"])
def test_a_kernel_of_an_environment_that_has_only_ipykernel_and_msgspec(
    other_python: Path, confinement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)  # it is handed on to kernels, with all that lies there
    interpreter = KernelInterpreter({"add": lambda a, b: a + b}, python=other_python, confinement=confinement)
    with interpreter:
        prefix = interpreter.execute("import sys, os; sys.prefix")
        assert os.path.realpath(prefix) == os.path.realpath(other_python.parents[1])
        for missing in ("dspy", "rlmoptimizer", "numpy", "pydantic", "rich", "pytest"):
            assert interpreter.execute(f"import importlib.util; importlib.util.find_spec('{missing}')") is None
        assert interpreter.execute("add(1, b=2)") == "3"
        assert interpreter.execute("len(text)", {"text": "é" * 100_000}) == "100000"
        interpreter.execute("kept = {'f': lambda: 'from before'}\nclass C:\n    def m(self): return 1\nc = C()")
        with pytest.raises(Exception, match="exited with status 4"):
            interpreter.execute("os._exit(4)")
        assert interpreter.execute("kept['f'](), c.m()") == "('from before', 1)"
        interpreter.output_fields = [{"name": "answer", "type": "str"}]
        assert interpreter.execute("SUBMIT('done')").output == {"answer": "done"}


def test_another_interpreter_does_not_look_for_modules_where_the_hosts_does(
    other_python: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "msgspec.py").write_text("raise SystemExit('the module of another Python')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with KernelSession(python=other_python, confinement="off") as session:
        shown = session.run(Cell("import os, sys\nprint(os.environ.get('PYTHONPATH'))\nprint(given in sys.path)",
                                 {"given": str(tmp_path)})).text  # fmt: skip
    assert shown == "None\nFalse\n"


def test_a_pickled_value_that_the_other_environment_lacks_is_the_cells_failure(other_python: Path) -> None:
    import dspy

    with KernelSession(python=other_python, confinement="off") as session:
        outcome = session.run(Cell("1", {"example": Pickled(dspy.Example(a=1))}))
        assert outcome.failure is not None
        assert outcome.failure.name == "ModuleNotFoundError"
        assert session.run("1").text == "1\n"


def test_an_environment_that_lacks_what_is_needed_is_told_what(tmp_path: Path) -> None:
    venv.EnvBuilder(with_pip=False, symlinks=os.name == "posix").create(tmp_path / "bare")
    python = tmp_path / "bare" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    with pytest.raises(Exception, match=r"needs the packages ipykernel .* and msgspec"):
        KernelInterpreter(python=python, confinement="off").start()
