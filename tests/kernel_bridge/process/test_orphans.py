"""No kernel outlives its host, however the host ends, and neither does anything that the kernel started."""

from __future__ import annotations

import json
import marshal
import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from child_process import forked

from kernel_bridge.confine.launch_plan import PACKAGE, spawn_command
from kernel_bridge.inside.launch_config import GuardianConfig, SpawnConfig

HOST = """
import os, sys
from kernel_bridge import KernelInterpreter

interpreter = KernelInterpreter(confinement=sys.argv[1], runtime_dir=sys.argv[2])
interpreter.start()
interpreter.execute(f'''
import os, subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)", "{sys.argv[3]}"]
subprocess.Popen(sleeper)
if os.fork() == 0:  # a daemon: a session of its own, and a parent that is gone
    os.setsid()
    if os.fork() == 0:
        os.execv(sleeper[0], sleeper)
    os._exit(0)
os.wait()
''')
print("ready", flush=True)
if sys.argv[4] == "killed":
    sys.stdin.read()
elif sys.argv[4] == "os._exit":
    os._exit(0)
"""


def marked(mark: str) -> list[int]:
    return [p.pid for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]


@pytest.mark.parametrize("confinement", ["off", "auto"])
@pytest.mark.parametrize("end", ["killed", "os._exit", "without a shutdown"])
def test_nothing_outlives_the_host(
    confinement: str, end: str, wait_until: Callable[[Callable[[], object], str], object], short_dir: Path
) -> None:
    mark = f"orphan-{uuid.uuid4().hex}"
    with forked(HOST, confinement, short_dir, mark, end) as host:
        host.wait_for("ready")
        if end == "killed":
            # The daemon may not have become what it is to be when its parent is gone and the host is ready.
            wait_until(lambda: len(marked(mark)) >= 2, "a child and a daemon")
            host.killed()
        host.wait()
    wait_until(lambda: not marked(mark), "the end of all that the kernel started")
    wait_until(lambda: not list(short_dir.iterdir()), "the removal of the session's directory")


def test_a_guardian_whose_host_is_gone_before_it_reports_ends_what_was_begun(
    wait_until: Callable[[Callable[[], object], str], object], tmp_path: Path
) -> None:
    mark = f"orphan-{uuid.uuid4().hex}"
    argv = [sys.executable, "-c", "import time; time.sleep(600)", mark]
    guardian = GuardianConfig(os.getpid(), str(tmp_path / "none"), layers=0)
    (tmp_path / "spawn").write_bytes(marshal.dumps(asdict(SpawnConfig(guardian, argv, None, ""))))
    report, unread = os.pipe()
    os.close(report)  # nobody reads the guardian's report
    command = spawn_command(str(tmp_path / "spawn"))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=unread) as process:
        os.close(unread)
        assert process.stdin is not None
        process.stdin.close()  # nor holds its lifeline
        process.wait(60)
    wait_until(lambda: not marked(mark), "the end of what the guardian had begun")


@pytest.fixture
def short_dir() -> object:
    """A directory whose path is short enough for sockets below it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.mark.skipif(os.name != "posix", reason="there is no guardian")
def test_a_kernel_whose_guardian_has_ended_before_it_was_sealed_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(json.dumps({"seal": None, "working_directory": str(tmp_path)}))
    launch = str(PACKAGE / "inside" / "launch.py")
    ended = subprocess.run(
        [sys.executable, launch, str(tmp_path / "config"), str(os.getppid())], stderr=subprocess.PIPE, text=True
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("its guardian ended before it could end with it")
