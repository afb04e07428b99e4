"""What fails in the checks is run once more: only tests that failed and then pass are forgiven, and they are named."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

FLAKY = """
import os, pathlib, pytest
def first_time(name):
    mark = pathlib.Path("been-here-" + name)
    return not (mark.exists() or mark.touch())
"""
FAILS_ONCE = "def test_once():\n    assert not first_time('once'), 'the first failure'\n"
FAILS_TWICE = "def test_twice():\n    raise ValueError(first_time('twice'))\n"
PASSES = "def test_fine():\n    assert first_time('fine'), 'what passed is not run again'\n"


@dataclass(frozen=True)
class Ended:
    status: int
    flaky: str  # the file
    said: str


@pytest.fixture
def check(tmp_path: Path, project_root: Path):
    """`check(tests, options="", conftest="", before="")`: a project with these tests goes through the script."""

    def check(tests: str, options: str = "", conftest: str = "", before: str = "") -> Ended:
        project = tmp_path / "project"
        project.mkdir()
        (project / "pytest.ini").write_text("[pytest]\n")
        (project / "conftest.py").write_text(FLAKY + conftest)
        (project / "test_it.py").write_text(FLAKY + tests)
        flaky = tmp_path / "flaky"
        command = f"{before} '{sys.executable}' -m pytest -q {options}"
        # Without the plug-ins that are not needed, whose imports take longer than these tests.
        environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p xdist.plugin"}
        ended = subprocess.run(
            [sys.executable, str(project_root / ".ci" / "rerun.py"), str(flaky), sys.executable, command],
            cwd=project, env=environment, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        return Ended(ended.returncode, flaky.read_text() if flaky.exists() else "", ended.stdout + ended.stderr)

    return check


def test_what_passes_at_the_first_time_is_not_run_again(check) -> None:
    ended = check(PASSES)
    assert (ended.status, ended.flaky) == (0, ""), ended.said
    assert "once more" not in ended.said


def test_a_test_that_passes_at_the_second_time_is_named_with_its_first_failure(check) -> None:
    ended = check(PASSES + FAILS_ONCE, "-n 2")
    assert ended.status == 0, ended.said
    assert ended.flaky.startswith("test_it::test_once\n    ")
    assert "the first failure" in ended.flaky
    assert "test_fine" not in ended.flaky


def test_a_test_that_fails_twice_fails_the_run_and_is_not_called_flaky(check) -> None:
    ended = check(FAILS_ONCE + FAILS_TWICE)
    assert ended.status == 1, ended.said
    assert "test_once" in ended.flaky
    assert "test_twice" not in ended.flaky


def test_a_failure_of_a_fixture_is_one_of_its_test(check) -> None:
    fixture = "@pytest.fixture\ndef thing():\n    yield\n    assert not first_time('thing'), 'left behind'\n"
    ended = check(fixture + "@pytest.mark.parametrize('x', ['<a b>\\n\\x00\"&'])\ndef test_it(thing, x): pass\n")
    assert ended.status == 0, ended.said
    assert "left behind" in ended.flaky


ONLY_ONCE = {
    "a worker that crashes": (f"{FAILS_ONCE}def test_crash():\n    if first_time('crash'): os._exit(3)\n", "-n 1", ""),
    "a module that cannot be imported": (f"if first_time('import'): raise ValueError\n{FAILS_ONCE}", "", ""),
    "an internal error": (FAILS_ONCE, "", "def pytest_runtestloop():\n    if first_time('loop'): raise ValueError\n"),
    "an interruption": (f"{FAILS_ONCE}def test_end():\n    if first_time('end'): raise KeyboardInterrupt\n", "", ""),
    "a process that ends": (f"{FAILS_ONCE}def test_end():\n    if first_time('end'): os._exit(1)\n", "", ""),
    "no tests": ("", "", ""),
    "an unknown option": (FAILS_ONCE, "--no-such-option", ""),
}


@pytest.mark.parametrize("what", ONLY_ONCE)
def test_whatever_else_goes_wrong_fails_the_run_at_once(what: str, check) -> None:
    ended = check(*ONLY_ONCE[what])
    assert ended.status != 0, ended.said
    assert ended.flaky == ""


def test_a_command_that_fails_before_its_tests_fails_the_run(check) -> None:
    ended = check(PASSES, before="false &&")
    assert (ended.status, ended.flaky) == (1, "")


@pytest.mark.parametrize(
    "second",
    ["pytest.skip('not now')", "os._exit(0)", "pytest.exit('enough', 0)", "raise KeyboardInterrupt"],
)
def test_what_does_not_come_to_its_end_at_the_second_time_has_not_passed(second: str, check) -> None:
    ended = check(f"def test_it():\n    if first_time('it'): raise ValueError\n    {second}\n")
    assert ended.status != 0, ended.said
    assert ended.flaky == ""
