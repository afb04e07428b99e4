"""The folders are the architecture: each imports only what stands below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

# From the top down. A part imports only parts that come after it, so there can be no circle.
PARTS = {
    "rlmoptimizer": [
        "__init__", "__main__", "command_line", "optimizer", "check", "compilation", "agent", "evaluation", "task",
        "show", "steering", "outcome", "store", "settings", "lms", "spending", "mlflow_runs", "event_delivery",
        "events", "other_optimizers", "prompts", "records", "comparison", "errors", "text",
    ],
    "kernel_bridge": [
        "__init__", "__main__", "console", "interpreter", "with_dspy", "interpreter_factory", "session", "sub_agents",
        "agent_text", "live", "process", "options", "confine", "files", "threads", "inside", "cells", "wire", "zmtp",
        "errors", "text",
    ],
}  # fmt: skip


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, with the names taken from them."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("package", PARTS)
def test_each_part_imports_only_what_stands_below_it(package: str, project_root: Path) -> None:
    order = PARTS[package]
    found: set[str] = set()
    for path in (project_root / package).rglob("*.py"):
        part = path.relative_to(project_root / package).parts[0].removesuffix(".py")
        found.add(part)
        for name in imports(path):
            top, _, rest = name.partition(".")
            below = rest.partition(".")[0]
            if top == package and below != part and below in order:
                assert order.index(part) < order.index(below), f"{path} imports {name}"
    assert found == set(order)


def test_the_kernels_package_knows_nothing_of_the_optimizer(project_root: Path) -> None:
    for path in (project_root / "kernel_bridge").rglob("*.py"):
        assert [name for name in imports(path) if name.startswith("rlmoptimizer")] == [], path


def test_of_the_kernels_package_only_the_interpreter_and_one_folder_import_dspy(project_root: Path) -> None:
    package = project_root / "kernel_bridge"
    with_dspy = [path for path in package.rglob("*.py") if any(name.split(".")[0] == "dspy" for name in imports(path))]
    assert {path.relative_to(package).parts[0] for path in with_dspy} == {"interpreter.py", "with_dspy"}
