"""Runs a command that ends in pytest, and what failed in it once more. Knows pytest's reports, nothing of the project.

    python .ci/rerun.py FLAKY PYTHON COMMAND

COMMAND is run by bash. When tests failed in it, and nothing worse happened, they are run again by PYTHON in the same
directory, one after the other in one process. Those that pass now are added with their first failure to the file
FLAKY, and the exit status is 0 when no others are left. Whatever else goes wrong keeps its exit status: a test run that
was interrupted or found no tests, a test module that cannot be imported, a worker that crashed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

_TESTS_FAILED = 1  # pytest's exit status; others mean that the run itself went wrong
_NO_TEST = re.compile(r"worker '[^']*' crashed|collection failure")  # in what is reported of what was no test
_LONGEST_FAILURE = 5_000  # characters


@dataclass(frozen=True, slots=True)
class Case:
    """One line of pytest's report: a test, or one of its phases."""

    name: str  # of the module and the test
    outcome: str  # "passed", "failed" or "skipped"
    message: str
    text: str


def read_report(path: Path) -> list[Case]:
    """The cases of a report that `--junitxml` wrote. Raises: OSError, ElementTree.ParseError."""
    cases: list[Case] = []
    for element in ElementTree.parse(path).iter("testcase"):
        name = f"{element.get('classname')}::{element.get('name')}"
        problems = [child for child in element if child.tag in ("failure", "error")]
        outcome = "failed" if problems else "skipped" if element.find("skipped") is not None else "passed"
        message = "; ".join(problem.get("message") or "" for problem in problems)
        cases.append(Case(name, outcome, message, "\n".join(problem.text or "" for problem in problems)))
    return cases


def run(command: list[str], report: Path) -> int:
    """The exit status of a command whose pytest writes its report there."""
    options = f"{os.environ.get('PYTEST_ADDOPTS', '')} --junitxml='{report}'"
    return subprocess.run(command, env={**os.environ, "PYTEST_ADDOPTS": options}).returncode


def failed_tests(report: Path) -> dict[str, Case] | None:
    """The tests that failed, by name. None: there is no report, or it tells of more than failed tests."""
    try:
        cases = [case for case in read_report(report) if case.outcome == "failed"]
    except (OSError, ElementTree.ParseError):
        return None
    if not cases or any(_NO_TEST.search(case.message) for case in cases):
        return None
    return {case.name: case for case in reversed(cases)}  # of a test that failed twice, its first failure


def main(flaky: Path, python: str, command: str) -> int:
    with tempfile.TemporaryDirectory() as directory:
        first, second = Path(directory, "first.xml"), Path(directory, "second.xml")
        status = run(["bash", "-euo", "pipefail", "-c", command], first)
        failed = failed_tests(first) if status == _TESTS_FAILED else None
        if failed is None:
            return status
        print(f"\n--- once more, one after the other: {len(failed)} failed tests", flush=True)
        options = ["--last-failed", "--last-failed-no-failures=none", "-n0"]
        status_again = run([python, "-m", "pytest", *options], second)
        try:
            again = read_report(second)
        except (OSError, ElementTree.ParseError):
            again = []
    outcomes = {name: {case.outcome for case in again if case.name == name} for name in failed}
    passed = [case for name, case in failed.items() if outcomes[name] == {"passed"}]
    with flaky.open("a", encoding="utf-8") as file:
        for case in passed:
            file.write(f"{case.name}\n{_indented(case.text or case.message)}\n")
    return status_again if len(passed) == len(failed) else status


def _indented(text: str) -> str:
    if len(text) > _LONGEST_FAILURE:
        text = f"...\n{text[-_LONGEST_FAILURE:]}"
    return "".join(f"    {line}\n" for line in text.splitlines())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
