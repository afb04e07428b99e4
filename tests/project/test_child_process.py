"""The rig of child processes: a fork of the warm process is to a test what a fresh interpreter is."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from child_process import Ended, forked, fresh, output_of

pytestmark = pytest.mark.skipif(not hasattr(os, "waitid"), reason="nothing can fork so")


@pytest.fixture(params=[fresh, forked])
def start(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_it_has_its_arguments_its_directory_and_its_environment(start: Any, tmp_path: Path) -> None:
    code = "import os, sys; print(sys.argv, os.getcwd(), os.environ['GIVEN'], 'HOME' in os.environ, __name__)"
    child = start(code, 1, tmp_path, variables={"GIVEN": "x", "HOME": None}, directory=tmp_path)
    assert output_of(child) == f"['-c', '1', '{tmp_path}'] {tmp_path} x False __main__\n"


@pytest.mark.parametrize(
    ("code", "status", "out", "error"),
    [
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n", ""),
        ("raise SystemExit(3)", 3, "", ""),
        ("1 / 0", 1, "", "ZeroDivisionError"),
        ("import os; os._exit(7)", 7, "", ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT, "", "KeyboardInterrupt"),
    ],
)
def test_how_it_ended_is_told(start: Any, code: str, status: int, out: str, error: str) -> None:
    with start(code) as child:
        ended = child.ended()
    assert (ended.status, ended.out) == (status, out)
    assert error in ended.err


def test_it_is_waited_for_signalled_and_talked_to(start: Any) -> None:
    code = (
        "try:\n    print('ready', flush=True)\n    input()\n"
        "except KeyboardInterrupt: print('caught', flush=True)\nprint(input())"
    )
    with start(code) as child:
        child.wait_for("ready")
        child.send_signal(signal.SIGINT)
        child.wait_for("caught")
        child.stdin.write("a line\n")
        assert child.ended() == Ended(0, "a line\n", "")


def test_leaving_its_block_ends_it(start: Any) -> None:
    with start("print('ready', flush=True); import threading; threading.Event().wait()") as child:
        child.wait_for("ready")
        assert child.runs
        process = psutil.Process(child.pid)
    with contextlib.suppress(psutil.NoSuchProcess):  # it may be gone between these two
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
