"""The two files of a checkpoint: whatever happens while one is written, the other one is there."""

from __future__ import annotations

import os
import signal
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kernel_bridge.confine.guarantees import Confinement
from kernel_bridge.confine.launch_plan import rlimits
from kernel_bridge.files.layout import CHECKPOINT
from kernel_bridge.files.session_directory import SessionDirectory
from kernel_bridge.inside.checkpoint_slots import Slot, SlotWriter, mark_slot, newest, read_slot, slot_paths


@pytest.fixture
def path(tmp_path: Path) -> str:
    for slot in slot_paths(str(tmp_path / "c")):
        Path(slot).touch()
    return str(tmp_path / "c")


def write_slot(path: str, data: bytes, pieces: int = 1) -> Slot:
    step = max(1, len(data) // pieces)
    with SlotWriter(path) as file:
        for start in range(0, len(data), step):
            file.write(data[start : start + step])
        return file.finish(b"what it is")


def kept(path: str) -> bytes | None:
    slot = newest(path)
    if slot is None:
        return None
    data, description = read_slot(slot)
    assert description == b"what it is"
    return data


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
        whole = Path(slot.path).read_bytes()
        Path(slot.path).write_bytes(replace(slot, turn=turn).packed() + whole[len(slot.packed()) :])
        for number in range(3):
            written = write_slot(path, b"next %d\n" % number)
            assert newest(path) == written, (other, number)


def test_one_that_is_cut_anywhere_leaves_the_one_before(path: str) -> None:
    first, second = b"first\n" * 50, b"second\n" * 60
    write_slot(path, first)
    written = write_slot(path, second)
    whole = Path(written.path).read_bytes()
    head = len(written.packed())
    for length in (0, 1, head - 1, head, head + 1, len(whole) - 1):
        Path(written.path).write_bytes(whole[:length])
        assert kept(path) == first
    Path(written.path).write_bytes(bytes(head) + whole[head:])  # its head comes last
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


def test_what_is_the_same_as_the_newest_is_not_written_again(path: str) -> None:
    first = write_slot(path, bytes(range(256)) * 9000, 7)
    assert mark_slot(first, aside=True).aside
    assert write_slot(path, bytes(range(256)) * 9000, 3) == first
    assert newest(path) == first
    assert Path(slot_paths(path)[1]).stat().st_size == 0


@given(data=st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_written_last_is_there_whatever_was_there_before(path: str, data: st.DataObject) -> None:
    unit = st.binary(max_size=20)
    for _ in range(data.draw(st.integers(1, 6))):
        whole = b"".join(data.draw(st.lists(unit, max_size=4))) * data.draw(st.sampled_from([1, 2, 2**18]))
        with SlotWriter(path) as file:
            if data.draw(st.booleans()):  # a name that cannot be pickled
                file.write(whole[: data.draw(st.integers(0, 40))])
                file.write(data.draw(unit))
                file.restart()
            file.write(whole)
            written = file.finish(b"what it is")
        assert newest(path) == written
        assert kept(path) == whole


def test_one_that_is_given_up_leaves_the_one_before(path: str) -> None:
    write_slot(path, b"first" * 1000)
    with SlotWriter(path) as file:
        file.write(b"first" * 500)
        file.write(b"other")
    assert kept(path) == b"first" * 1000


@pytest.mark.skipif(os.name != "posix", reason="a limit that stands for a full disk")
def test_a_full_disk_leaves_the_one_before_and_is_told_apart_from_errors_of_others(path: str) -> None:
    resource = pytest.importorskip("resource")
    write_slot(path, b"first")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with SlotWriter(path) as file:
            with pytest.raises(OSError, match="too large"):
                file.write(bytes(20_000))
            assert isinstance(file.failure, OSError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, before)
    assert kept(path) == b"first"


@pytest.mark.parametrize("end", [b"", b"x", b"\xff" * 8, bytes(7) + b"\x09"])
def test_one_whose_end_is_damaged_cannot_be_read(path: str, end: bytes) -> None:
    slot = write_slot(path, b"")
    damaged = replace(slot, size=len(end))
    Path(slot.path).write_bytes(damaged.packed() + end)
    with pytest.raises(ValueError, match="end is damaged"):
        read_slot(damaged)


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
