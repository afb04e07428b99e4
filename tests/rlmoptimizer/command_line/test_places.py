"""Every reading command on every kind of directory: finished, running, died, read-only, foreign, damaged."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from child_process import environment, fresh
from command import Command
from stored_optimization import write_small
from stored_runs import copy_as_killed

READING = (["runs"], ["show", "r3"], ["diff", "r1", "r3"], ["prompts"], ["export"])
STORE = "runs-0001.sqlite"


def answers(command: Command, place: Path) -> dict[str, str]:
    """What each command writes."""
    written = {name: command(name, place, *rest) for name, *rest in READING}
    assert {(one.code, one.err) for one in written.values()} == {(0, "")}
    return {name: one.out for name, one in written.items()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("finished")
    write_small(path).close()
    return path


def test_a_run_that_goes_on_and_one_that_died_are_read_like_a_finished_one(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    expected = answers(command, finished)
    with write_small(tmp_path / "running", ends=False) as store:
        running = answers(command, tmp_path / "running")
        died = answers(command, copy_as_killed(store, tmp_path / "died").parent)
    assert "running, 10 of 34 units" in running["runs"]
    assert "interrupted, to be resumed, 10 of 34 units" in died["runs"]
    assert "the best score on val" in running["prompts"]
    for name in ("show", "diff"):
        assert running[name] == died[name] == expected[name]
    for found in (running, died):
        assert found["runs"].splitlines()[1:] == expected["runs"].splitlines()[1:]
        assert found["export"].count("\n") == expected["export"].count("\n") == 13


def test_reading_leaves_a_directory_as_it_was(command: Command, finished: Path, tmp_path: Path) -> None:
    with write_small(tmp_path / "running", ends=False) as store:
        died = copy_as_killed(store, tmp_path / "died").parent
    shutil.copytree(finished, tmp_path / "copy")
    for place in (tmp_path / "copy", died):
        before = (place / STORE).read_bytes()
        answers(command, place)
        assert (place / STORE).read_bytes() == before
        # SQLite keeps its own files beside a store while it is read.
        assert {path.name for path in place.iterdir()} <= {STORE, f"{STORE}-shm", f"{STORE}-wal"}


AS_SOMEBODY = """
import contextlib, io, os, sys
from rlmoptimizer.command_line.app import run
name, place, other = sys.argv[1:]
with contextlib.redirect_stdout(io.StringIO()):
    run([name, other])  # all is imported before that user comes, who may not be able to read it
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)  # root may write anywhere
raise SystemExit(run([name, place]))
"""


@pytest.mark.skipif(os.name != "posix", reason="modes of files are Unix's")
def test_a_directory_that_cannot_be_written_is_read_and_one_that_cannot_be_read_is_told(
    command: Command, finished: Path, project_root: Path
) -> None:
    expected = answers(command, finished)
    # Below the temporary directory of the tests every user may look.
    place = Path(os.environ["TMPDIR"]) / "read only"
    place.mkdir()
    shutil.copy(finished / STORE, place)
    spare = place.with_name("spare")
    spare.mkdir()
    spare.chmod(0o777)

    def called(*arguments: str) -> tuple[int, str, str]:
        variables = {"TMPDIR": str(spare)}
        with fresh(AS_SOMEBODY, *arguments, str(finished), variables=variables, directory=Path("/")) as child:
            ended = child.ended()
        return ended.status, ended.out, ended.err

    parent = place.parent
    mode = parent.stat().st_mode
    try:
        parent.chmod(0o755)
        (place / STORE).chmod(0o444)
        place.chmod(0o555)
        assert called("runs", str(place)) == (0, expected["runs"], "")
        (place / STORE).chmod(0o000)
        status, out, err = called("runs", str(place))
        assert (status, out, err.count("\n")) == (1, "", 1)
        place.chmod(0o000)
        status, out, err = called("runs", str(place))
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert "Traceback" not in err
    finally:
        place.chmod(0o755)
        parent.chmod(mode)
        shutil.rmtree(place)
        shutil.rmtree(spare)


def is_foreign(place: Path) -> None:
    (place / STORE).unlink()
    with closing(sqlite3.connect(place / STORE)) as database:
        database.execute("CREATE TABLE customers (name TEXT)")
        database.commit()


def is_of_another_version(place: Path) -> None:
    with closing(sqlite3.connect(place / STORE)) as database:
        database.execute("PRAGMA user_version = 99")


def is_torn(place: Path) -> None:
    data = (place / STORE).read_bytes()
    (place / STORE).write_bytes(data[: len(data) // 2 + 100])


def is_text(place: Path) -> None:
    (place / STORE).write_text("hello\n" * 1000, encoding="utf-8")


def is_empty(place: Path) -> None:
    (place / STORE).write_bytes(b"")


def has_none(place: Path) -> None:
    (place / STORE).rename(place / "customers.sqlite")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (is_foreign, "a database of another program"),
        (is_of_another_version, "its format has version 99"),
        (is_torn, "it is damaged"),
        (is_text, "damaged"),
        (is_empty, "too short"),
        (has_none, "there is no run store"),
    ],
)
def test_what_is_no_store_is_told_in_one_line_by_every_command(
    make: Callable[[Path], None], words: str, command: Command, finished: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    shutil.copytree(finished, place)
    make(place)
    for name, *rest in [*READING, ["console"]]:
        assert words in command(name, place, *rest).refused(1)


def test_a_store_that_nobody_has_said_anything_in_yet_is_read(command: Command, tmp_path: Path) -> None:
    from rlmoptimizer.store.run_store import RunStore

    RunStore.create_in(tmp_path).close()
    assert command("runs", tmp_path).lines == [
        f"{STORE}: interrupted, to be resumed, 0 units spent",
        "no evaluation has begun yet",
    ]
    found = command("runs", tmp_path, "--json").json
    assert (found["runs"], found["budget"]) == ([], {"limit": None, "spent": 0, "left": None})
    assert "just begun" in command("prompts", tmp_path).refused(1)
    assert "there are no runs yet" in command("show", tmp_path, "r1").refused(1)
    assert len(command("export", tmp_path).lines) == 1


# in a process of its own


def test_the_command_is_quick_and_ends_quietly_when_its_reader_leaves(finished: Path, tmp_path: Path) -> None:
    import subprocess

    command = [Path(sys.executable).with_name("rlmoptimizer"), "show", finished, "r3"]
    for line in (f"{command[0]} show {finished} r3 | head -1", f"{command[0]} show {finished} r3 >&-"):
        done = subprocess.run(["bash", "-c", f"set -o pipefail; {line}"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout in ("", "run r3 on train: score 66.67 (standard error 21.08)\n")
    ascii_only = environment({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "COLUMNS": "60"})
    shown = subprocess.run([*command[:-1], "r9"], capture_output=True, text=True, env=ascii_only, check=False)
    assert shown.returncode == 1
    assert shown.stderr == "rlmoptimizer: there is no run 'r9'; the runs are r1, r2, r3, r4\n"


def test_the_shell_can_complete_commands_and_options(finished: Path) -> None:
    import subprocess

    def completed(words: str) -> list[str]:
        asked = {"_RLMOPTIMIZER_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        program = Path(sys.executable).with_name("rlmoptimizer")
        return subprocess.run(
            [program], capture_output=True, text=True, env=environment(asked), check=True
        ).stdout.split()

    assert completed("rlmoptimizer sh") == ["show"]
    assert completed("rlmoptimizer show --f") == ["--failed", "--flipped-since"]
    assert completed(f"rlmoptimizer show {finished} r") == ["r1", "r2", "r3", "r4"]
    assert completed("rlmoptimizer show /nowhere r") == []
