"""The interpreters that ours is measured beside, those that run here, and why the others do not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dspy

__all__ = ["NotHere", "RlmsPeer", "deno_interpreter", "rlms_peer"]

_RLMS = ("rlms==0.1.3", "ipykernel", "jupyter_client", "dill")  # it names none of the last three as needed
_SECONDS = 300.0  # for an installation


class NotHere(Exception):
    """A peer cannot run here, and why."""


def deno_interpreter(tools: dict[str, Callable[..., Any]]) -> Any:
    """A `dspy.PythonInterpreter` that works. Raises: NotHere."""
    if shutil.which("deno") is None:
        raise NotHere("deno is not installed")
    interpreter = dspy.PythonInterpreter(tools=tools)
    try:
        interpreter.execute("1 + 1")
    except Exception as error:
        interpreter.shutdown()
        raise NotHere(f"it does not start here ({type(error).__name__}: {error!s:.200})") from error
    return interpreter


class RlmsPeer:
    """The IPythonREPL of rlms in an environment of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def round(self) -> dict[str, float]:
        """One round: name of the figure to seconds. Raises: NotHere."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise NotHere(f"its process ended with exit code {self._process.wait()}")
        return json.loads(line)


@contextmanager
def rlms_peer(cells: int, prints: int) -> Iterator[RlmsPeer]:
    """Install rlms into a temporary environment, which its pins need, and have it measured there. Raises: NotHere."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "-q", *_RLMS]):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
            except (OSError, subprocess.SubprocessError) as error:
                said = str(getattr(error, "stderr", "") or error).strip().splitlines()
                raise NotHere(f"it cannot be installed here ({said[-1] if said else type(error).__name__})") from error
        script = Path(__file__).resolve().parent / "_rlms_rounds.py"
        process = stack.enter_context(
            subprocess.Popen(
                [python, script, str(cells), str(prints)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                cwd=folder,
            )
        )
        yield RlmsPeer(process)
