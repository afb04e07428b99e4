"""The portable branches of the bridge pass its contract tests on Linux, as on a macOS and as on a Windows.

That shows that these branches work together and use nothing that we hide. It does not show that macOS and Windows do
what their documentation says: no test runs there.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from portable_rig import make_system
from selection import CONTRACT

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="hides what Linux has"),
    pytest.mark.skipif("PORTABLE" not in os.environ, reason="takes a minute: .ci/run does it, and PORTABLE=all pytest"),
]
_MOST_SECONDS = 900  # half a minute on a machine that has nothing else to do


@pytest.mark.timeout(2 * _MOST_SECONDS)
@pytest.mark.parametrize("system", ["macos", "windows"])
def test_the_contract_tests_pass_without_what_a_system_lacks(system: str, tmp_path: Path) -> None:
    options = ["-q", "-p", "selection", "-p", "no:cacheprovider", "--timeout", "60"]
    files = [f"tests/kernel_bridge/{name}" for name in CONTRACT]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=make_system(system, tmp_path),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=_MOST_SECONDS,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-8000:] + ran.stderr[-2000:]
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    assert int(passed[1]) > 100
