"""The contract tests that run as on another system, and those of them that it cannot pass, each with its reason.

A plugin of the pytest that runs them. Of tests that run under several confinements one is enough: there is only one.
"""

from __future__ import annotations

import os

import pytest

CONTRACT = (
    "test_conformance.py",
    "test_interpreter.py",
    "test_session.py",
    "live/test_host_tools.py",
    "live/test_sent_variables.py",
    "live/test_submit.py",
    "inside/test_output.py",
)

_NOT_CAPTURED = "what subprocesses and C code print is not captured there"
# Parts of names of tests, with what Windows lacks for them.
WITHOUT_POSIX = {
    "test_a_runtime_directory_of_ones_own": "only the path of a unix socket must be short",
    "code16-done 400/400": _NOT_CAPTURED,
    "code24-": _NOT_CAPTURED,
    "!echo shell": _NOT_CAPTURED,
    "test_a_flood_costs_a_fixed_buffer[import os": _NOT_CAPTURED,
    "test_a_flood_costs_a_fixed_buffer[import subprocess": _NOT_CAPTURED,
    "test_a_bar_takes_no_room": _NOT_CAPTURED,
    "test_what_a_forked_child_prints_is_there": "there is no fork",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [item for item in items if "[off" in item.name or "[plain kernel" in item.name]
    if os.environ["PORTABLE_SYSTEM"] == "windows":
        left_out += [item for item in items if any(part in item.name for part in WITHOUT_POSIX)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
