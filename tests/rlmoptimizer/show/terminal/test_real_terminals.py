"""What a compile writes on real terminals, pipes and streams that are gone. Processes of their own, without DSPy."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import run_in_terminal

pytestmark = pytest.mark.skipif(os.name == "nt", reason="there are no such terminals on Windows")
RIGS = Path(__file__).parents[3] / "rigs"
STORY = [sys.executable, "-W", "error", str(RIGS / "story_events.py")]
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m")


def lines_of(shown: str) -> list[str]:
    return [line for line in re.split("[\r\n]+", ESCAPES.sub("", shown)) if line]


@pytest.mark.parametrize("columns", [60, 200])
def test_every_line_fits_the_terminal_and_the_cursor_is_there_at_the_end(columns: int) -> None:
    shown, code = run_in_terminal([*STORY, "verbose"], columns)
    lines = lines_of(shown)
    assert code == 0
    assert max(map(len, lines)) <= columns
    assert lines[-1] == "the program goes on"
    assert COLOR.search(shown)
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_without_colors_there_are_none() -> None:
    shown, _ = run_in_terminal([*STORY, "verbose"], 80, NO_COLOR="1")
    assert not COLOR.search(shown)
    assert "Turn 1/9" in shown


def test_a_dumb_terminal_gets_plain_lines() -> None:
    shown, _ = run_in_terminal([*STORY, "verbose"], 80, TERM="dumb")
    assert "\x1b" not in shown
    assert "r3 val 2/2 score 100.0% (2 passed), 12 budget units left" in lines_of(shown)


def test_ctrl_c_in_a_live_bar_gives_the_cursor_back() -> None:
    shown, code = run_in_terminal([*STORY, "hang"], 80, interrupt_at="r1 baseline train")
    assert code == -signal.SIGINT
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("'$@' verbose 2>&1 | head -3", ""),
        ("'$@' verbose 2>&1 >/dev/null | cat", "gain on val"),
        ("'$@' verbose >&- 2>&-; echo code $?", "code 0"),
        ("'$@' 2>&-", "the program goes on"),
        ("nohup '$@' 2>/dev/null", "the program goes on"),
    ],
)
def test_pipes_and_closed_streams_disturb_nothing(shell: str, said: str, tmp_path: Path) -> None:
    command = ["bash", "-c", shell.replace("'$@'", '"$@"'), "bash", *STORY]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert said in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    assert "\x1b" not in done.stdout


def test_where_the_reader_is_gone_the_work_comes_to_its_end(tmp_path: Path) -> None:
    script = "import sys, pathlib, story_events; story_events.main('verbose'); pathlib.Path('ended').touch()"
    command = ["bash", "-c", '"$@" 2>&1 >/dev/null | head -1', "bash", sys.executable, "-c", script]
    subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(RIGS)}, capture_output=True, timeout=60
    )
    assert (tmp_path / "ended").exists()
