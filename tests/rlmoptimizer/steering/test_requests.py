"""Requests of people: what is asked is found, and what others put in its place does no harm."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlmoptimizer.errors import InvalidSetup
from rlmoptimizer.steering.requests import MOST_NOTE_CHARS, Requests, checked_note
from rlmoptimizer.store.run_store import RunStore

posix = pytest.mark.skipif(os.name != "posix", reason="links and owners of POSIX")
NAME = "note-{:020}-0123abcd.json"


@pytest.fixture
def requests(tmp_path: Path) -> Requests:
    with RunStore.create_in(tmp_path) as store:
        return Requests(store.path)


def planted(requests: Requests, number: int = 1) -> Path:
    """A place for a note that somebody else makes."""
    requests.directory.mkdir(mode=0o700, exist_ok=True)
    return requests.directory / NAME.format(number)


def test_nothing_is_asked_of_an_optimization_without_requests(requests: Requests) -> None:
    assert [requests.pausing, requests.stopping, requests.branching] == [False] * 3
    assert requests.take_notes() == []
    requests.clear()
    assert not requests.directory.exists()


def test_a_pause_lasts_until_it_is_taken_back(requests: Requests) -> None:
    requests.pause()
    requests.pause()
    assert requests.pausing
    requests.unpause()
    assert not requests.pausing
    with pytest.raises(InvalidSetup, match="no pause is asked"):
        requests.unpause()
    requests.stop()
    requests.branch()
    assert requests.stopping
    assert requests.branching


def test_a_pause_that_is_asked_again_is_never_over_in_between(requests: Requests) -> None:
    requests.pause()
    before = (requests.directory / "pause").stat()
    requests.pause()
    assert os.path.samestat(before, (requests.directory / "pause").stat())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: pytest.fail("the pause was over"))
        requests.pause()


def test_notes_are_taken_once_and_in_the_order_in_which_they_came(requests: Requests) -> None:
    requests.note("  first, with\na second line ")
    requests.note("then \u00e4\u4e16\U0001f600")
    assert [note.text for note in requests.notes()] == ["first, with\na second line", "then \u00e4\u4e16\U0001f600"]
    assert requests.take_notes() == ["first, with\na second line", "then \u00e4\u4e16\U0001f600"]
    assert requests.take_notes() == []


def test_the_end_leaves_nothing_but_what_is_not_ours(requests: Requests) -> None:
    requests.pause()
    requests.note("too late")
    requests.clear()
    assert not requests.directory.exists()
    requests.stop()
    (requests.directory / "mine.txt").write_text("kept")
    requests.clear()
    assert [path.name for path in requests.directory.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize("text", ["", " \n", "x" * (MOST_NOTE_CHARS + 1), "\udcff"])
def test_a_note_that_cannot_be_told_is_refused(requests: Requests, text: str) -> None:
    with pytest.raises(InvalidSetup, match="note"):
        requests.note(text)
    assert requests.take_notes() == []


@given(st.text(max_size=50))
def test_any_text_is_told_as_it_is_or_refused(text: str) -> None:
    try:
        assert checked_note(text) == text.strip()
    except InvalidSetup:
        assert not text.strip()


def test_a_flood_of_notes_is_refused_where_it_comes_from(requests: Requests) -> None:
    for number in range(20):
        requests.note(f"note {number}")
    with pytest.raises(InvalidSetup, match="20 notes wait"):
        requests.note("one more")
    assert len(requests.take_notes()) == 20
    requests.note("one more")
    assert requests.take_notes() == ["one more"]


def to_symlink(place: Path, victim: Path) -> None:
    place.symlink_to(victim)


def to_hard_link(place: Path, victim: Path) -> None:
    place.hardlink_to(victim)


def to_pipe(place: Path, victim: Path) -> None:
    os.mkfifo(place)


def to_directory(place: Path, victim: Path) -> None:
    place.mkdir()


def to_huge_file(place: Path, victim: Path) -> None:
    with place.open("wb") as file:
        file.truncate(10**9)


def to_bad_utf8(place: Path, victim: Path) -> None:
    place.write_bytes(b'{"text": "\xff"}')


def to_surrogate(place: Path, victim: Path) -> None:
    place.write_text(r'{"text": "\ud800"}')


def to_deep_json(place: Path, victim: Path) -> None:
    place.write_text("[" * 40_000)


def to_other_json(place: Path, victim: Path) -> None:
    place.write_text('{"text": {"text": "no"}}')


PLANTS = [
    to_symlink, to_hard_link, to_pipe, to_directory, to_huge_file, to_bad_utf8, to_surrogate, to_deep_json,
    to_other_json,
]  # fmt: skip


@posix
@pytest.mark.parametrize("plant", PLANTS)
def test_what_is_no_note_is_passed_over_and_said_once(
    requests: Requests, tmp_path: Path, plant: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text(json.dumps({"text": "my secret"}))
    for number in range(30):
        plant(planted(requests, number), victim)
    requests.directory.joinpath(NAME.format(99)).write_text('{"text": "the true one"}')
    with caplog.at_level(logging.WARNING):
        assert requests.take_notes() == ["the true one"]
        assert requests.take_notes() == []
    assert caplog.text.count("is no note") == 1
    assert json.loads(victim.read_text()) == {"text": "my secret"}


@posix
@pytest.mark.parametrize("plant", [to_symlink, to_hard_link, to_pipe, to_directory])
def test_what_lies_in_the_place_of_a_pause_is_none(
    requests: Requests, tmp_path: Path, plant: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    victim = tmp_path / "thesis.txt"
    victim.write_text("")
    requests.directory.mkdir()
    plant(requests.directory / "pause", victim)
    assert [requests.pausing, requests.pausing] == [False, False]
    assert caplog.text.count("pause is passed over") == 1


@posix
def test_a_link_in_the_place_of_the_directory_is_not_followed(
    requests: Requests, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "stop").touch()
    requests.directory.symlink_to(elsewhere)
    assert [requests.stopping, requests.stopping, *requests.take_notes()] == [False, False]
    with pytest.raises(InvalidSetup, match="is no directory"):
        requests.note("hello")
    requests.clear()
    assert [path.name for path in elsewhere.iterdir()] == ["stop"]
    assert caplog.text.count("is heeded") == 1


@posix
@pytest.mark.skipif(os.name == "posix" and os.geteuid() != 0, reason="only root can give files to others")
def test_another_user_can_neither_ask_nor_be_heard(requests: Requests, caplog: pytest.LogCaptureFixture) -> None:
    requests.stop()
    os.chown(requests.directory / "stop", 12345, 12345)
    assert not requests.stopping
    requests.stop()
    os.chown(requests.directory, 12345, 12345)
    assert not requests.stopping
    assert caplog.text.count("belongs to another user (number 12345)") == 2
    os.chown(requests.directory, 0, 0)
    os.chown(requests.directory.with_suffix(".sqlite"), 12345, 12345)
    with pytest.raises(InvalidSetup, match=r"belongs to another user \(number 12345\), who alone can steer it"):
        requests.pause()


def test_where_nothing_can_be_written_one_error_says_so(requests: Requests, tmp_path: Path) -> None:
    requests.directory.write_text("a file in its place")
    with pytest.raises(InvalidSetup, match="no directory"):
        requests.pause()
    with pytest.raises(InvalidSetup, match=r"nothing can be asked of the optimization in .*gone"):
        Requests(tmp_path / "gone.sqlite").pause()
