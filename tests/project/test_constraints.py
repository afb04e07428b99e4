"""The constraints file: one version of every dependency for each supported Python, within the ranges of the project."""

from __future__ import annotations

import re
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from readme_blocks import command

PYTHONS = [f"3.{minor}" for minor in range(10, 16)]


def pins(project_root: Path) -> list[Requirement]:
    lines = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def needed(extra: str, python: str) -> list[Requirement]:
    """What the project asks for on a Python on Linux, with one of its extras."""
    environment = {**default_environment(), "sys_platform": "linux", "extra": extra,
                   "python_version": python, "python_full_version": f"{python}.0"}  # fmt: skip
    asked = map(Requirement, metadata("rlmoptimizer").get_all("Requires-Dist") or [])
    return [one for one in asked if one.marker is None or one.marker.evaluate(environment)]


def test_the_pythons_are_those_that_the_project_supports() -> None:
    supported = SpecifierSet(metadata("rlmoptimizer")["Requires-Python"])
    assert [minor for minor in range(30) if f"3.{minor}.0" in supported] == [int(python[2:]) for python in PYTHONS]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_version_on_each_python_and_the_project_admits_it(
    python: str, project_root: Path
) -> None:
    environment = {**default_environment(), "sys_platform": "linux", "platform_machine": "x86_64",
                   "python_version": python, "python_full_version": f"{python}.0"}  # fmt: skip
    versions: dict[str, str] = {}
    for pin in pins(project_root):
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), pin
        assert not pin.extras, f"pip takes no extras in constraints: {pin}"
        assert pin.url is None
        if pin.marker is None or pin.marker.evaluate(environment):
            assert canonicalize_name(pin.name) not in versions, f"two versions of {pin.name}"
            versions[canonicalize_name(pin.name)] = str(pin.specifier).removeprefix("==")
    extras = metadata("rlmoptimizer").get_all("Provides-Extra") or []
    assert len(extras) >= 4
    for one in [requirement for extra in extras for requirement in needed(extra, python)]:
        assert versions[canonicalize_name(one.name)] in one.specifier, one


def test_what_makes_the_file_anew_is_in_its_header_and_what_installs_uses_it(project_root: Path) -> None:
    head = (project_root / "constraints.txt").read_text(encoding="utf-8").splitlines()[:2]
    assert head[1].strip("# ") == ".ci/pin"
    assert (project_root / ".ci" / "pin").exists()
    assert "://" not in (project_root / "constraints.txt").read_text(encoding="utf-8")
    readme = (project_root / "README.md").read_text(encoding="utf-8")
    for marker in ("install-and-run", "install-and-test"):
        assert " -c constraints.txt " in command(readme, marker)
