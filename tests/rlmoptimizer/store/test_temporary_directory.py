"""What a killed process leaves of its temporary directories, and who removes it."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import toy
from child_process import Child, forked

from rlmoptimizer.store.temporary_directory import temporary_directory

pytestmark = pytest.mark.usefixtures("plain_repl")

HOLDS_ONE = """
import sys
from rlmoptimizer.store.temporary_directory import temporary_directory
with temporary_directory() as directory:
    (directory / "examples").write_text("private")
    print(directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # where it keeps what it found before
    return tmp_path


@contextmanager
def holder() -> Generator[tuple[Child, Path]]:
    """A process that has such a directory until it is told to end."""
    with forked(HOLDS_ONE) as process:
        yield process, Path(process.line())


def killed() -> Path:
    with holder() as (process, directory):
        process.killed()
    return directory


def test_it_is_gone_at_the_end_of_the_block(place: Path) -> None:
    with temporary_directory() as directory:
        assert directory.parent == place
        assert directory.stat().st_mode & 0o777 == 0o700
    assert list(place.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_a_live_one_has_is_not(place: Path) -> None:
    left = killed()
    assert (left / "examples").exists()
    with holder() as (process, held):  # its own beginning removes what was left
        assert not left.exists()
        with temporary_directory():
            pass
        assert (held / "examples").read_text() == "private"
        assert process.ended().status == 0
    assert list(place.iterdir()) == []


def test_directories_that_are_not_made_so_stay(place: Path) -> None:
    unlocked = place / "rlmoptimizer-unlocked"  # by a process that has not come so far
    unlocked.mkdir(mode=0o700)
    shared = place / "rlmoptimizer-shared"
    shared.mkdir()
    shared.chmod(0o755)
    (shared / "in-use.lock").touch()
    (place / "elsewhere").mkdir(mode=0o700)
    (place / "elsewhere" / "in-use.lock").touch()
    (place / "rlmoptimizer-link").symlink_to(place / "elsewhere")
    (place / "rlmoptimizer-file").touch()
    before = sorted(place.iterdir())
    with temporary_directory():
        pass
    assert sorted(place.iterdir()) == before
    assert (place / "elsewhere" / "in-use.lock").exists()


def test_a_compile_that_keeps_nothing_leaves_nothing_and_removes_what_was_left(place: Path) -> None:
    left = killed()
    toy.compiled(["SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"])
    assert not left.exists()
    assert [path.name for path in place.iterdir() if path.name.startswith("rlmoptimizer-")] == []
