"""The state of an optimization: read from its store and from the lock of the process that has it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rlmoptimizer.errors import StoreInUse
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.store.file_lock import holder, lock_path
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


def seen(path: Path) -> str:
    with StoreReader.open(path) as reader:
        return state_of(reader)


def test_it_runs_waits_and_ends_and_may_be_interrupted(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        store.record_setup({})
        assert seen(store.path) == "running"
        for kind, state in [
            ("CompileStarted", "running"),
            ("WorkPaused", "paused"),
            ("NoteGiven", "paused"),
            ("WorkUnpaused", "running"),
            ("WorkPaused", "paused"),
            ("CompileStarted", "running"),  # of the process that goes on
            ("WorkPaused", "paused"),
        ]:
            store.record_event(kind, {})
            assert seen(store.path) == state
    assert seen(store.path) == "interrupted"
    with RunStore.open(store.path) as store:
        store.record_outcome({})
        assert seen(store.path) == "finished"
    assert seen(store.path) == "finished"


def test_a_killed_process_holds_no_store(tmp_path: Path) -> None:
    code = (
        "import sys; from rlmoptimizer.store.run_store import RunStore\n"
        "store = RunStore.create_in(sys.argv[1]); print(store.path, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        path = Path(child.stdout.readline().strip())
        assert holder(path) == child.pid
        child.kill()
    assert lock_path(path).exists()
    assert holder(path) is None


def test_looking_for_the_holder_never_keeps_a_process_from_its_store(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        path = store.path
    lock_path(path).touch()  # as a killed process leaves it
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            holder(path)

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(100):
            RunStore.open(path).close()
    finally:
        over.set()
        for looker in lookers:
            looker.join()
    with RunStore.open(path), pytest.raises(StoreInUse, match=str(os.getpid())):
        RunStore.open(path)


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
@pytest.mark.parametrize("plant", ["link", "pipe", "directory"])
def test_what_lies_in_the_place_of_a_lock_is_no_holder(tmp_path: Path, plant: str) -> None:
    path = tmp_path / "runs-0001.sqlite"
    if plant == "link":
        lock_path(path).symlink_to(tmp_path / "nothing")
    elif plant == "pipe":
        os.mkfifo(lock_path(path))
    else:
        lock_path(path).mkdir()
    assert holder(path) is None


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_holder_is_seen_in_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    with RunStore.create_in(tmp_path) as store:
        tmp_path.chmod(0o500)
        with contextlib.ExitStack() as stack:
            stack.callback(tmp_path.chmod, 0o700)
            assert holder(store.path) == os.getpid()
            assert seen(store.path) == "running"
