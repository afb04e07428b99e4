"""A session's directory that its remover was killed over is found again and removed, at whatever moment that was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from child_process import forked, output_of

from kernel_bridge.inside.tree_removal import remove_tree

# In one process after the other, which ends without a word at the next step of the removal each time.
KILLED_AT_EVERY_STEP = """
import os, sys
from pathlib import Path
from kernel_bridge.files.live_sessions import live_sessions
from kernel_bridge.files.session_directory import SessionDirectory

root = Path(sys.argv[1])

def make_and_remove(steps):
    directory = SessionDirectory(root)
    layout = directory.next_layout()
    scratch = layout.scratch
    for path in (layout.keep / "checkpoint", scratch / "a" / "b" / "c", scratch / "d", directory.connection_file):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    done = 0

    def step(event, arguments):
        nonlocal done
        if event in ("os.remove", "os.rmdir", "os.rename"):
            done += 1
            if done > steps:
                os._exit(7)

    sys.addaudithook(step)
    directory.remove()
    os._exit(0)

steps = 0
while True:
    child = os.fork()
    if child == 0:
        make_and_remove(steps)
    _, status = os.waitpid(child, 0)
    assert live_sessions(root) == []
    for left in root.iterdir():  # an empty directory may be one that somebody is just making
        assert list(left.iterdir()) == [], (steps, sorted(root.rglob("*")))
        left.rmdir()
    if os.waitstatus_to_exitcode(status) == 0:
        break
    steps += 1
print(steps)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_removal_that_is_killed_at_any_step_is_finished_by_whoever_looks_next() -> None:
    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as short:  # sockets would have to fit below it
        steps = output_of(forked(KILLED_AT_EVERY_STEP, short))
    assert int(steps) > 10


def test_the_last_file_may_be_anything_or_not_there(tmp_path: Path) -> None:
    for make in (Path.mkdir, Path.touch, lambda path: None):
        directory = tmp_path / "session"
        (directory / "deep" / "deeper").mkdir(parents=True)
        make(directory / "last")
        remove_tree(directory, last="last")
        assert not directory.exists()
