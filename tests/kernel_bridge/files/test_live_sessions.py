"""What hosts that were killed leave behind: removed by the next session beside it, and nothing else is."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from child_process import fresh

from kernel_bridge import KernelSession
from kernel_bridge.files.live_sessions import live_sessions, sweep
from kernel_bridge.files.session_facts import HostToken


@pytest.fixture
def root() -> object:
    """A directory whose path is short enough for sockets below it."""
    import tempfile

    with tempfile.TemporaryDirectory(prefix="kb-", dir="/tmp") as folder:
        yield Path(folder)
    sweep.cache_clear()


Leave = Callable[..., Path]


@pytest.fixture
def leave(root: Path) -> Leave:
    """Makes a session's directory as this process makes one; facts may be others."""

    def make(name: str, **others: Any) -> Path:
        directory = root / name
        (directory / "scratch").mkdir(parents=True)
        here = HostToken.here()
        facts = {"host_pid": here.pid, "host_started": here.started, "host_boot": here.boot}
        facts |= {"host_namespace": here.namespace, "command": "", "started": time.time()}
        (directory / "kernel.json").touch()
        (directory / "session.json").write_text(json.dumps({**facts, **others}))
        return directory

    return make


def test_a_session_removes_what_killed_hosts_left_beside_it_and_nothing_else(root: Path, leave: Leave) -> None:
    with fresh("") as gone:
        gone.wait()
    left = leave("left", host_pid=gone.pid)
    rebooted = leave("rebooted", host_boot="another boot of this machine")
    mine = leave("mine")
    elsewhere = leave("elsewhere", host_namespace="pid:[1]", host_pid=gone.pid)
    unfinished = root / "unfinished"  # by a host that has not said yet who it is
    unfinished.mkdir()
    with KernelSession(confinement="off", runtime_dir=root) as session:
        assert session.run("1").text == "1\n"
    assert not left.exists()
    assert not rebooted.exists()
    assert mine.exists()
    assert elsewhere.exists()
    assert unfinished.exists()


@pytest.mark.parametrize("facts", [None, ""], ids=["empty", "with nothing written"])
def test_a_directory_that_tells_of_no_host_is_removed_once_it_is_old(facts: str | None, root: Path) -> None:
    def make(name: str, *, age: float, holds: str | None = None) -> Path:
        directory = root / name
        directory.mkdir(mode=0o700)
        for file, text in (("session.json", facts), ("holds", holds)):
            if text is not None:
                (directory / file).write_text(text)
        then = time.time() - age
        os.utime(directory, (then, then))
        return directory

    old = make("0123abcd", age=3600)
    young = make("0123abce", age=1)
    full = make("0123abcf", age=3600, holds="something")
    foreign = make("my-files", age=3600)
    (root / "a file").touch()
    assert live_sessions(root) == []
    assert not old.exists()
    assert young.exists()
    assert (full / "holds").exists()
    assert foreign.exists()


@pytest.mark.skipif(os.name != "posix", reason="modes and links as POSIX has them")
def test_a_persons_directory_that_is_named_like_a_sessions_stays(root: Path, tmp_path: Path) -> None:
    then = time.time() - 3600
    dated = root / "20240131"
    dated.mkdir()
    dated.chmod(0o755)
    os.utime(dated, (then, then))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (elsewhere / "session.json").touch()
    os.utime(elsewhere, (then, then))
    (root / "0123abcd").symlink_to(elsewhere)
    os.utime(root / "0123abcd", (then, then), follow_symlinks=False)
    assert live_sessions(root) == []
    assert dated.exists()
    assert (elsewhere / "session.json").exists()


def test_sessions_of_hosts_that_cannot_be_seen_are_not_listed(root: Path, leave: Leave) -> None:
    leave("elsewhere", host_namespace="pid:[1]")
    assert [session.host_pid for session in live_sessions(root)] == []
    leave("here")
    assert [session.id for session in live_sessions(root)] == ["here"]


@pytest.mark.parametrize("path", ["/etc/passwd", "/" + "a" * 5000, "/a\0b"], ids=["another", "too long", "zero byte"])
def test_the_connection_file_is_the_one_in_the_sessions_directory_whatever_its_description_says(
    root: Path, leave: Leave, path: str
) -> None:
    directory = leave("strange", connection_file=path)  # a kernel that nothing confines can write it
    assert [session.connection_file for session in live_sessions(root)] == [directory / "kernel.json"]


def test_a_pid_that_another_process_got_since_is_not_the_host(root: Path, leave: Leave) -> None:
    left = leave("left", host_pid=os.getpid(), host_started="1")
    assert live_sessions(root) == []
    assert not left.exists()


def test_a_host_killed_while_its_kernel_starts_leaves_nothing_that_the_next_session_does_not_remove(
    root: Path, tmp_path: Path
) -> None:
    started, hold = tmp_path / "started", tmp_path / "hold"
    os.mkfifo(started)
    os.mkfifo(hold)
    python = tmp_path / "python"  # an interpreter that does not come up
    python.write_text(f"#!/bin/sh\necho > {started}\nread line < {hold}\n")
    python.chmod(0o755)
    code = f"from kernel_bridge import *; KernelSession(confinement='off', runtime_dir={str(root)!r}, "
    with fresh(f"{code} python={str(python)!r}).start()") as host:
        started.read_text()  # waits until it is written
        host.killed()
    with KernelSession(confinement="off", runtime_dir=root) as session:
        assert session.run("1").text == "1\n"
        assert len(list(root.iterdir())) == 1
    assert list(root.iterdir()) == []
