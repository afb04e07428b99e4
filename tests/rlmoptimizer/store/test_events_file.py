"""The events file beside a store, without a compile."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from rlmoptimizer.events import AgentSubmitted, BudgetCharged, CompileFinished, Event, ExamplesScored, PromptUpdated
from rlmoptimizer.store.events_file import EventsFile, events_path


def written(path: Path, *events: Event, new: bool = True) -> list[dict[str, Any]]:
    file = EventsFile(path, new=new, clock=lambda: 12.5)
    for event in events:
        file(event)
    file.close()
    return lines(path)


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text("ascii")
    assert text == "" or text.endswith("\n")

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_an_event_is_one_line_with_its_time_its_kind_and_its_fields(tmp_path: Path) -> None:
    scored = ExamplesScored("r1", "train", 1, 6, 0.5)
    assert written(tmp_path / "e", BudgetCharged(2, left=7), scored, AgentSubmitted({"topic": "a\nb"})) == [
        {"at": 12.5, "kind": "BudgetCharged", "units": 2, "left": 7},
        {"at": 12.5, "kind": "ExamplesScored", **asdict(scored)},
        {"at": 12.5, "kind": "AgentSubmitted", "prompts": {"topic": "a\nb"}},
    ]


def test_text_that_no_terminal_should_see_and_numbers_that_json_has_not_are_written_as_json(tmp_path: Path) -> None:
    evil = "\x1b[2J\x9b \ud800 \u202e\u2028\n line"
    found = written(tmp_path / "e", PromptUpdated("topic", evil, ""), CompileFinished(math.nan, math.inf, 0, 0))
    assert len(found) == 2
    assert found[0]["before"] == evil
    assert (found[1]["baseline_score"], found[1]["best_score"]) == (None, None)
    assert all(32 <= byte < 127 or byte == 10 for byte in (tmp_path / "e").read_bytes())


def test_the_progress_of_runs_on_val_and_test_is_left_out(tmp_path: Path) -> None:
    assert written(tmp_path / "e", *(ExamplesScored("r1", split, 1, 2, 1.0) for split in ("val", "test"))) == []


def test_the_file_is_for_its_owner_only_and_lies_beside_the_store(tmp_path: Path) -> None:
    path = events_path(tmp_path / "runs-0001.sqlite")
    path.touch(0o666)
    written(path, BudgetCharged(1, left=0))
    assert path == tmp_path / "runs-0001.events.jsonl"
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("length", [1, 70_000, 140_000])
@pytest.mark.parametrize("before", [0, 2])
def test_a_line_that_a_kill_has_torn_is_cut_off_when_the_work_is_resumed(
    length: int, before: int, tmp_path: Path
) -> None:
    whole = written(tmp_path / "e", *[BudgetCharged(1, left=0)] * before)
    with (tmp_path / "e").open("a") as file:
        file.write("{" + "x" * length)
    assert written(tmp_path / "e", BudgetCharged(2, left=0), new=False)[:-1] == whole
    assert lines(tmp_path / "e")[-1]["units"] == 2


def test_a_new_optimization_begins_with_an_empty_file(tmp_path: Path) -> None:
    written(tmp_path / "e", BudgetCharged(1, left=0))
    assert len(written(tmp_path / "e", BudgetCharged(2, left=0))) == 1


@pytest.mark.skipif(os.name != "posix", reason="Windows has no such links")
@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo"])
def test_what_is_no_plain_file_is_refused_and_left_alone(kind: str, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    {"symlink": os.symlink, "hardlink": os.link, "fifo": lambda _, path: os.mkfifo(path)}[kind](
        precious, tmp_path / "e"
    )
    with pytest.raises(OSError, match=r"."):
        EventsFile(tmp_path / "e", new=True)
    assert precious.read_text() == "mine"


def test_where_the_disk_is_full_the_file_ends_with_a_whole_line_and_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = EventsFile(tmp_path / "e", new=True)
    file(BudgetCharged(1, left=0))
    write = os.write
    room = [10, 0]  # bytes that the next writes take

    def full(fd: int, data: memoryview) -> int:
        if not (space := room.pop(0)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[:space])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            file(BudgetCharged(2, left=0))
    file(BudgetCharged(3, left=0))
    file.close()
    file(BudgetCharged(4, left=0))
    assert [line["units"] for line in lines(tmp_path / "e")] == [1, 3]
