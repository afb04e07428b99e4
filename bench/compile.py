"""A whole optimization without any LM time: `example.py --quiet`, from the start of its process to its end.

Its agent takes 9 turns, crashes its kernel in one of them, and makes 6 runs. "theirs" is a process that only imports
DSPy, which every program of DSPy pays.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from _rows import compared, seconds

ROUNDS = 5
_TOP = Path(__file__).resolve().parent.parent


def _process(*arguments: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, *arguments], check=True, cwd=_TOP, capture_output=True))


def run() -> list[dict[str, Any]]:
    """The rows that `bench/run.py` shows."""
    rounds = [(_process("example.py", "--quiet"), _process("-c", "import dspy")) for _ in range(ROUNDS + 1)]
    ours, theirs = zip(*rounds[1:], strict=True)
    name = "compile() of 9 turns and a crash, from process start"
    return [compared(name, ours, theirs, whose="import dspy", target=2.0, key=True)]
