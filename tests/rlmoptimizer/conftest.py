"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import Command, Written


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Calls `rlmoptimizer` in this process."""
    from rlmoptimizer.command_line.app import run

    def call(*arguments: str | Path, columns: int = 100) -> Written:
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Written(code, *capsys.readouterr())

    return call
