"""The two files of a checkpoint: whatever happens while one is written, the other one is there."""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import rlimits
from kernel_bridge.files.layout import CHECKPOINT
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.checkpoint_slots import mark_slot, newest, read_slot, slot_paths, write_slot


@pytest.fixture
def path(tmp_path: Path) -> str:
    for slot in slot_paths(str(tmp_path / "c")):
        Path(slot).touch()
    return str(tmp_path / "c")


def kept(path: str) -> bytes | None:
    slot = newest(path)
    return None if slot is None else b"".join(read_slot(slot))


def test_each_is_written_beside_the_one_before(path: str) -> None:
    assert kept(path) is None
    for number in range(5):
        data = b"head\n" + bytes([number]) * (number + 1) * 1000
        slot = write_slot(path, data)
        assert slot.turn == number + 1
        assert kept(path) == data
        assert newest(path) == slot


@pytest.mark.parametrize("turn", [0, 2**63 - 1, 2**63, 2**64 - 1])
def test_whatever_turn_a_kernel_has_written_the_next_one_is_the_newest(path: str, turn: int) -> None:
    for other in (False, True):
        slot = write_slot(path, b"planted\n")
        Path(slot.path).write_bytes(replace(slot, turn=turn).packed() + b"planted\n")
        for number in range(3):
            written = write_slot(path, b"next %d\n" % number)
            assert newest(path) == written, (other, number)


def test_one_that_is_cut_anywhere_leaves_the_one_before(path: str) -> None:
    first, second = b"first\n" * 50, b"second\n" * 60
    write_slot(path, first)
    written = write_slot(path, second)
    whole = Path(written.path).read_bytes()
    for length in (0, 1, 64, 65, 66, len(whole) - 1):
        Path(written.path).write_bytes(whole[:length])
        assert kept(path) == first
    Path(written.path).write_bytes(bytes(65) + whole[65:])  # its head comes last
    assert kept(path) == first
    Path(written.path).write_bytes(whole)
    assert kept(path) == second


def test_what_is_set_aside_says_so_and_stays(path: str) -> None:
    slot = write_slot(path, b"x\ny")
    assert mark_slot(slot, aside=True).aside
    found = newest(path)
    assert found is not None
    assert found.aside
    assert kept(path) == b"x\ny"


@pytest.mark.parametrize("other", ["link", "second name", "directory", "fifo", "nothing"])
def test_what_is_no_file_of_its_own_is_none(path: str, tmp_path: Path, other: str) -> None:
    write_slot(path, b"kept\n")
    last = write_slot(path, b"lost\n")
    secret = tmp_path / "secret"
    os.rename(last.path, secret)
    if other == "link":
        os.symlink(secret, last.path)
    elif other == "second name":
        os.link(secret, last.path)
    elif other == "directory":
        os.mkdir(last.path)
    elif other == "fifo":
        os.mkfifo(last.path)
    assert kept(path) == b"kept\n"


def test_what_a_kernel_has_blown_up_is_not_there_for_the_next() -> None:
    with tempfile.TemporaryDirectory() as root:
        directory = SessionDirectory(Path(root))
        base = str(directory.keep / CHECKPOINT)
        write_slot(base, b"kept\n")
        large = write_slot(base, bytes(2**20))
        (directory.keep / "planted").write_bytes(b"x")
        directory.next_layout()
        directory.drop_checkpoint_above(2**21)
        assert newest(base) == large
        directory.drop_checkpoint_above(2**19)
        assert kept(base) == b"kept\n"
        directory.next_layout()
        assert sorted(os.listdir(directory.keep)) == sorted(os.path.basename(slot) for slot in slot_paths(base))
        directory.remove()


def test_what_is_counted_for_the_user_is_limited_with_the_processes() -> None:
    limits = rlimits(Confinement(), count_processes=False)
    assert limits["RLIMIT_RTPRIO"] == limits["RLIMIT_NICE"] == (0, 0)
    assert limits["RLIMIT_SIGPENDING"] == (4096, 4096)
    unlimited = Confinement(memory_bytes=None, processes=None, scratch_bytes=None, open_files=None)
    assert set(rlimits(unlimited, count_processes=False)) == {"RLIMIT_CORE"}
