"""A host in an unusual state gets the same kernel as any other, or one clear error: never a weaker kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kernel_bridge import probe

posix = pytest.mark.skipif(os.name != "posix", reason="signals, descriptors and modes of POSIX")

# Puts itself into a state, then uses a kernel as any host does. What comes of it is written to the file named first.
HOST = """
import json, os, signal, sys
{state}
from kernel_bridge import KernelSession, Limits
from kernel_bridge.errors import BridgeError

found = {{}}
try:
    with KernelSession(limits=Limits(cell_seconds=2)) as session:
        found["tier"] = session.report.tier
        found["text"] = session.run("kept = 41; print(kept)").text
        found["timed_out"] = session.run("while True: pass").timed_out
        found["death"] = session.run("import os; os._exit(7)").death.reason
        found["restored"] = session.run("print(kept)").text
        found["children"] = session.run(
            "import subprocess; print(subprocess.run(['/bin/sh', '-c', 'exit 3']).returncode)").text
except BridgeError as error:
    found["error"] = f"{{type(error).__name__}}: {{error}}"
with open(sys.argv[1], "w") as file:
    json.dump(found, file)
"""


def use(tmp_path: Path, state: str = "", **environment: str | None) -> dict[str, Any]:
    """What a host in this state makes of a kernel. A variable that is None is not set."""
    given = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    env = {name: value for name, value in given.items() if value is not None}
    answer = tmp_path / "answer.json"
    command = [sys.executable, "-c", HOST.format(state=state), str(answer)]
    ran = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, (ran.returncode, ran.stderr[-3000:])
    return json.loads(answer.read_text())


def as_usual() -> dict[str, Any]:
    return {
        "tier": probe().tier,
        "text": "41\n",
        "timed_out": "ran longer than 2 s of its own time",
        "death": "it exited with status 7",
        "restored": "41\n",
        "children": "3\n",
    }


STATES = {
    "SIGPIPE kills it": "signal.signal(signal.SIGPIPE, signal.SIG_DFL)",
    "signals are ignored": (
        "for name in ('SIGCHLD', 'SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGALRM'):\n"
        "    signal.signal(getattr(signal, name), signal.SIG_IGN)"
    ),
    "signals are blocked": "signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())",
    "it reaps every child": (
        "def reap(*_):\n"
        "    try:\n"
        "        while os.waitpid(-1, os.WNOHANG)[0]: pass\n"
        "    except ChildProcessError: pass\n"
        "signal.signal(signal.SIGCHLD, reap)"
    ),
    "no standard descriptors": "for fd in (0, 1, 2): os.close(fd)",
    "umask 777": "os.umask(0o777)",
    "umask 0": "os.umask(0)",
    "no directory": "import tempfile; place = tempfile.mkdtemp(); os.chdir(place); os.rmdir(place)",
}


@posix
@pytest.mark.parametrize("state", STATES)
def test_a_state_of_the_host_changes_nothing(tmp_path: Path, state: str) -> None:
    assert use(tmp_path, STATES[state]) == as_usual()
