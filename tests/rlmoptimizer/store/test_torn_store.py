"""A run store that was torn, cut or never was one: refused with its reason and left as it is, or read as it was."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_runs import result

from rlmoptimizer.errors import InvalidSetup, StoreCorrupt, StoreInUse
from rlmoptimizer.records import Charge
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

NAME = "runs-0001.sqlite"
Files = dict[str, bytes]
PLACES = st.integers(0, 1 << 24)  # in a file, modulo its length


def kind(read_only: bool) -> type[StoreReader]:
    return StoreReader if read_only else RunStore


def contents(store: StoreReader) -> tuple[Any, ...]:
    """All that a store tells."""
    runs = store.runs()
    return (
        runs,
        [(store.planned_ids(run.run_id), store.examples(run.run_id)) for run in runs],
        (store.charges(), store.spent(), store.prompts(), store.candidates(), store.setup(), store.outcome()),
        (store.iterations(), store.events(), store.lm_usage(), store.evaluated_examples()),
    )


def files_in(directory: Path) -> Files:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


class Whole:
    """The files of a store that was closed, those of one whose process was killed, and what is in both."""

    def __init__(self, closed: Files, killed: Files, kept: tuple[Any, ...]) -> None:
        self.closed = closed
        self.killed = killed
        self.kept = kept

    def __repr__(self) -> str:
        return "Whole(...)"  # else Hypothesis writes all of it out, and warns that it is a megabyte

    def files(self, *, log: bool) -> Files:
        return self.killed if log else self.closed


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    directory = tmp_path_factory.mktemp("whole")
    with RunStore.create_in(directory) as store:
        ids = [str(number) for number in range(30)]
        run_id = store.begin_run("train", {"limit": None}, {"a": "p"}, planned_ids=ids, request={})
        rows = [result(example_id, inputs={"text": example_id * 900}) for example_id in ids]
        store.append(run_id, *rows, charge=Charge(30, "evaluate"))
        store.finish_run(run_id, budget_left=3)
        store.record_setup({"a": 1})
        store.set_prompts({"a": "q"})
        store.record_iteration("why", "code", "output")
        kept = contents(store)
        killed = files_in(directory)
    return Whole(files_in(directory), {name: killed[name] for name in (NAME, f"{NAME}-wal")}, kept)


def opened(directory: Path, *, read_only: bool) -> tuple[Any, ...]:
    with kind(read_only).open_in(directory) as store:
        return contents(store)


def check_left_alone(directory: Path, before: Files, *, read_only: bool) -> None:
    after = files_in(directory)
    # SQLite makes these two anew, empty, to read beside a writer. The first is an index and holds nothing of its own.
    spare = {f"{NAME}-shm"} | ({f"{NAME}-wal"} if read_only and not before.get(f"{NAME}-wal") else set())
    assert after.get(f"{NAME}-wal", b"") == before.get(f"{NAME}-wal", b"")
    assert {name: data for name, data in after.items() if name not in spare} == {
        name: data for name, data in before.items() if name not in spare
    }


def torn(whole: Files, name: str, change: Callable[[bytes], bytes]) -> Files:
    return {**whole, name: change(whole[name])}


def try_it(files: Files, kept: tuple[Any, ...] | None, *, read_only: bool) -> str:
    """Open a store of these files; gives why it was refused, or "". `kept`: what it must hold if it opens."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name).resolve()
        for file, data in files.items():
            (directory / file).write_bytes(data)
        found, refused, writes = None, None, False
        try:
            with kind(read_only).open_in(directory) as store:
                writes = not read_only
                found = contents(store)
        except StoreCorrupt as error:
            refused = error
        if refused is not None:
            assert refused.path == str(directory / NAME)
            if not writes:  # a writer that found the damage only later has moved the log into the file
                check_left_alone(directory, files, read_only=read_only)
            return refused.reason
        assert kept is None or found == kept
        return ""


@settings(max_examples=60, deadline=None)
@given(PLACES, st.booleans(), st.booleans())
def test_a_store_cut_anywhere_is_refused_or_loses_nothing(ended: Whole, place: int, ro: bool, log: bool) -> None:
    whole = ended.files(log=log)
    at = place % len(whole[NAME])
    reason = try_it(torn(whole, NAME, lambda one: one[:at]), ended.kept, read_only=ro)
    assert reason.startswith("it is damaged") or (log and not reason)  # a log may hold all that was cut off


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 99), st.integers(1, 255), st.booleans(), st.booleans())
def test_a_store_with_a_wrong_byte_in_its_head_is_refused_or_loses_nothing(
    ended: Whole, at: int, flip: int, ro: bool, log: bool
) -> None:
    whole = ended.files(log=log)
    changed = torn(whole, NAME, lambda one: one[:at] + bytes([one[at] ^ flip]) + one[at + 1 :])
    try_it(changed, ended.kept, read_only=ro)


@settings(max_examples=60, deadline=None)
@given(PLACES, st.binary(min_size=1, max_size=4096), st.booleans(), st.booleans())
def test_a_store_that_was_overwritten_somewhere_is_refused_with_a_reason_or_opens(
    ended: Whole, place: int, noise: bytes, ro: bool, log: bool
) -> None:
    whole = ended.files(log=log)
    at = place % len(whole[NAME])
    # A letter that was changed within a stored text cannot be noticed.
    try_it(torn(whole, NAME, lambda one: one[:at] + noise + one[at + len(noise) :]), None, read_only=ro)


@settings(max_examples=40, deadline=None)
@given(PLACES, st.booleans())
def test_a_log_cut_anywhere_gives_the_store_as_it_was_at_some_moment(ended: Whole, place: int, ro: bool) -> None:
    killed = ended.killed
    at = place % (len(killed[f"{NAME}-wal"]) + 1)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        for file, content in torn(killed, f"{NAME}-wal", lambda one: one[:at]).items():
            (directory / file).write_bytes(content)
        try:
            with kind(ro).open_in(directory) as store:
                paid, rows = store.spent(), store.evaluated_examples()
        except StoreCorrupt:
            assert at < len(killed[f"{NAME}-wal"])
            return
        assert (paid, rows) in [(0, 0), (30, 30)]  # a result and its price: both or neither


@pytest.mark.parametrize(
    ("version", "reason"),
    [(0, "there never was one"), (-1, "there never was one"), (2, "has version 2, this"), (5, "has version 5, this")],
)
@pytest.mark.parametrize("read_only", [True, False])
def test_a_version_that_is_not_its_own_is_refused(
    ended: Whole, version: int, reason: str, read_only: bool
) -> None:
    number = version.to_bytes(4, "big", signed=True)
    changed = torn(ended.closed, NAME, lambda one: one[:60] + number + one[64:])
    assert reason in try_it(changed, None, read_only=read_only)


def test_the_version_before_this_one_is_read_and_not_written_to(ended: Whole) -> None:
    old = torn(ended.closed, NAME, lambda one: one[:60] + (3).to_bytes(4, "big") + one[64:])
    assert try_it(old, None, read_only=True) == ""
    assert "has version 3, this" in try_it(old, None, read_only=False)


def test_a_database_of_another_program_with_a_log_is_left_as_it_was(tmp_path: Path) -> None:
    source = tmp_path / "source.sqlite"
    with closing(sqlite3.connect(source)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE notes (text)")
        database.execute("PRAGMA user_version = 2")
        database.commit()
        files = {NAME + end: Path(f"{source}{end}").read_bytes() for end in ("", "-wal")}
    for read_only in (True, False):
        assert "another program" in try_it(files, None, read_only=read_only)


def _fifo(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path, _: Path) -> None:
    path.mkdir()


def _dangling(path: Path, elsewhere: Path) -> None:
    path.symlink_to(elsewhere / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX")
@pytest.mark.parametrize("make", [_fifo, _directory, _dangling])
@pytest.mark.parametrize("read_only", [True, False])
def test_what_is_no_file_is_no_store(
    tmp_path: Path, make: Callable[[Path, Path], None], read_only: bool
) -> None:
    directory = tmp_path / "runs"
    directory.mkdir()
    make(directory / NAME, tmp_path)
    what = (directory / NAME).lstat()
    with pytest.raises(InvalidSetup, match="there is no run store at"):
        kind(read_only).open_in(directory)
    assert os.path.samestat((directory / NAME).lstat(), what)
    assert [path.name for path in directory.iterdir()] == [NAME]
    with RunStore.create_in(directory) as store:  # it is not in the way of the next one
        assert store.path.name == "runs-0002.sqlite"


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_a_link_to_a_store_is_that_store_with_its_log_and_its_lock(ended: Whole, tmp_path: Path) -> None:
    killed, kept = ended.killed, ended.kept
    real, linked = tmp_path / "real", tmp_path / "linked"
    for directory in (real, linked):
        directory.mkdir()
    for name, data in killed.items():
        (real / name).write_bytes(data)
    (linked / NAME).symlink_to(real / NAME)
    assert opened(linked, read_only=True) == kept  # most of it is still in the log
    with RunStore.open_in(linked), pytest.raises(StoreInUse):
        RunStore.open_in(real)
    assert opened(linked, read_only=False) == kept
    assert [path.name for path in linked.iterdir()] == [NAME]


def test_a_link_to_something_else_is_refused_and_neither_is_touched(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_bytes(b"not a store, but long enough to be one" * 50)
    directory = tmp_path / "runs"
    directory.mkdir()
    (directory / NAME).symlink_to(target)
    for read_only in (True, False):
        with pytest.raises(StoreCorrupt, match="not a database"):
            kind(read_only).open_in(directory)
    assert target.read_bytes() == b"not a store, but long enough to be one" * 50
    assert (directory / NAME).is_symlink()
    assert [path.name for path in directory.iterdir()] == [NAME]
