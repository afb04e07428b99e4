"""Files that others put beside a run store: nothing of them is followed, emptied or written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from child_process import forked, output_of

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.store.file_lock import FileLock
from rlmoptimizer.store.run_store import RunStore

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and owners of POSIX")
WORDS = "the only copy of my thesis"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "thesis.txt"
    path.write_text(WORDS)
    return path


def to_symlink(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def to_hard_link(place: Path, victim: Path) -> None:
    place.hardlink_to(victim)


def to_nothing(place: Path, victim: Path) -> None:
    place.symlink_to(victim.with_name("made-by-following"))


def to_pipe(place: Path, victim: Path) -> None:
    os.mkfifo(place)


PLANTS = [to_symlink, to_hard_link, to_nothing, to_pipe]


@pytest.mark.parametrize("plant", PLANTS)
def test_what_lies_in_the_place_of_a_lock_is_refused_and_left_alone(
    tmp_path: Path, victim: Path, plant: Callable[[Path, Path], None]
) -> None:
    plant(tmp_path / "lock", victim)
    with pytest.raises(OSError, match="remove it"):
        FileLock(tmp_path / "lock")
    assert victim.read_text() == WORDS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thesis.txt"]


def test_a_lock_that_somebody_replaces_is_not_written_through_its_name(tmp_path: Path, victim: Path) -> None:
    with FileLock(tmp_path / "lock"):
        (tmp_path / "lock").unlink()
        (tmp_path / "lock").symlink_to(victim)
    assert victim.read_text() == WORDS


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can make another user's file")
def test_a_lock_of_another_user_is_refused_but_not_one_of_the_directorys_owner(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    os.chown(tmp_path / "lock", 54321, 54321)
    with pytest.raises(OSError, match="belongs to another user"):
        FileLock(tmp_path / "lock")
    os.chown(tmp_path, 54321, 54321)
    with FileLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


@pytest.mark.parametrize("suffix", [".lock", "-wal", "-shm", "-journal", ".new", ".new-wal"])
@pytest.mark.parametrize("plant", [to_symlink, to_hard_link])
def test_a_new_store_touches_nothing_that_lies_beside_it(
    tmp_path: Path, victim: Path, plant: Callable[[Path, Path], None], suffix: str
) -> None:
    path = tmp_path / "runs-0001.sqlite"
    plant(path.with_name(path.name + suffix), victim)
    if suffix == ".lock":
        with pytest.raises(InvalidSetup, match=r"no run store can be kept at .* remove it"):
            RunStore.create(path)
    else:
        with RunStore.create(path) as store:
            store.record_setup({})
    assert victim.read_text() == WORDS


@pytest.mark.parametrize("suffix", [".lock", "-wal", "-shm", "-journal"])
@pytest.mark.parametrize("plant", [to_symlink, to_hard_link])
def test_a_store_is_not_gone_on_with_beside_a_planted_file(
    tmp_path: Path, victim: Path, plant: Callable[[Path, Path], None], suffix: str
) -> None:
    path = tmp_path / "runs-0001.sqlite"
    RunStore.create(path).close()
    plant(path.with_name(path.name + suffix), victim)
    with pytest.raises(InvalidSetup, match="remove it"):
        RunStore.open(path)
    assert victim.read_text() == WORDS
    path.with_name(path.name + suffix).unlink()
    RunStore.open(path).close()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root can make another user's link")
def test_a_link_to_a_store_is_followed_only_if_it_is_ones_own(tmp_path: Path) -> None:
    RunStore.create(tmp_path / "mine" / "runs-0001.sqlite").close()
    link = tmp_path / "runs-0007.sqlite"
    link.symlink_to(tmp_path / "mine" / "runs-0001.sqlite")
    RunStore.open_in(tmp_path).close()
    os.lchown(link, 54321, 54321)
    with pytest.raises(InvalidSetup, match=r"another user .* has made; it is not followed"):
        RunStore.open_in(tmp_path)


UNDER_A_MASK = """
import os, sys
os.umask(0o777)
from pathlib import Path
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.temporary_directory import temporary_directory
with RunStore.create(Path(sys.argv[1])) as store:
    store.record_setup({})
    print(*(oct(os.stat(sys.argv[1] + suffix).st_mode & 0o777) for suffix in ("", "-wal", ".lock")))
with temporary_directory() as directory:
    print(oct(directory.stat().st_mode & 0o777))
"""


def test_a_mask_that_keeps_a_files_own_owner_out_changes_nothing(tmp_path: Path) -> None:
    found = output_of(forked(UNDER_A_MASK, tmp_path / "runs.sqlite"))
    assert found.split() == ["0o600", "0o600", "0o644", "0o700"]
