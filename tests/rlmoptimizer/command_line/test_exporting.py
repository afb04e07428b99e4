"""Results for other programs: `export`."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from stored_optimization import BEFORE, add_run, setup_of, write_small
from stored_runs import result

from rlmoptimizer.command_line.exported_rows import csv_text, exported_runs
from rlmoptimizer.store.run_store import RunStore


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small")
    write_small(path).close()
    return path


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_every_result_on_train_is_a_row_and_none_of_val_is(command: Command, small: Path) -> None:
    rows = rows_of(command("export", small).out)
    assert [(row["run_id"], row["example_id"]) for row in rows] == [
        (run, str(number)) for run in ("r1", "r3") for number in range(6)
    ]
    assert list(rows[0]) == [
        "run_id", "turn", "baseline", "candidate", "example_id", "source_example_id", "rollout", "score", "passed",
        "reused", "error_kind", "error", "feedback", "seconds", "inputs.question", "expected.answer",
        "predicted.answer",
    ]  # fmt: skip
    assert rows[1] == {
        **rows[0], "score": "0.0", "passed": "false", "example_id": "1", "inputs.question": "q1", "baseline": "true",
    }  # fmt: skip
    lines = command("export", small, "--format", "jsonl").lines
    assert [json.loads(line)["example_id"] for line in lines] == [row["example_id"] for row in rows]
    assert json.loads(lines[0])["inputs"] == {"question": "q0"}


def test_runs_can_be_chosen_and_steps_added(command: Command, small: Path) -> None:
    assert {row["run_id"] for row in rows_of(command("export", small, "--run", "r3").out)} == {"r3"}
    steps = json.loads(rows_of(command("export", small, "--run", "r3", "--steps").out)[0]["steps"])
    assert steps[0]["step_name"] == "answer"
    assert "steps" in json.loads(command("export", small, "--format", "jsonl", "--steps").lines[0])
    assert "never exported" in command("export", small, "--run", "r2").refused(2)
    assert "no run 'r9'" in command("export", small, "--run", "r9").refused(1)


def test_a_file_is_written_whole_or_not_at_all(command: Command, small: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("old", encoding="utf-8")
    assert command("export", small, "-o", file).lines == []
    with file.open(encoding="utf-8", newline="") as opened:
        assert opened.read() == command("export", small).out
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]
    assert "no export can be written" in command("export", small, "-o", tmp_path / "none" / "rows.csv").refused(1)
    assert "is a directory" in command("export", small, "-o", tmp_path).refused(1)
    assert "the run store itself" in command("export", small, "-o", small / "runs-0001.sqlite").refused(1)


@pytest.mark.skipif(os.name != "posix", reason="other files than plain ones, and modes, are POSIX's")
@pytest.mark.parametrize("call", [["export"], ["report"], ["notebook"]])
def test_only_a_plain_file_is_replaced_and_what_is_made_is_its_owners(
    call: list[str], command: Command, small: Path, tmp_path: Path
) -> None:
    pipe, link, file = tmp_path / "pipe", tmp_path / "link", tmp_path / "file"
    os.mkfifo(pipe)
    link.symlink_to(os.devnull)  # as /dev/stdout is a link; root could replace a device itself too
    for place in (pipe, link):
        before = place.lstat()
        assert "is not replaced" in command(*call, small, "-o", place).refused(1)
        assert os.path.samestat(before, place.lstat())
    assert command(*call, small, "-o", file).code == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_cell_is_text_that_no_spreadsheet_takes_for_a_formula(command: Command, tmp_path: Path) -> None:
    said = {
        "formula": "=1+1", "wide": "\uff1dHYPERLINK(1)", "minus": "-2", "at": "@SUM(1)", "tab": "\t=1",
        "lines": "a\r\nb\n", "quotes": 'say "x", y', "none": None, "number": -2, "list": [1, "=2"],
        "bytes": b"\x00", "plain": "x = 1",
    }  # fmt: skip
    with RunStore.create_in(tmp_path) as store:
        store.record_setup(setup_of(1, 0))
        add_run(store, "train", [result("0", inputs=said, predicted="=2", feedback="+1")], BEFORE)
        add_run(store, "train", [result("0", predicted={"=a": "1"})], BEFORE)
    first, second = rows_of(command("export", tmp_path).out)
    assert {name: first[f"inputs.{name}"] for name in said} == {
        "formula": "'=1+1", "wide": "'\uff1dHYPERLINK(1)", "minus": "'-2", "at": "'@SUM(1)", "tab": "'\t=1",
        "lines": "a\r\nb\n", "quotes": 'say "x", y', "none": "", "number": "-2", "list": '[1, "=2"]',
        "bytes": '{"$bytes": "AA=="}', "plain": "x = 1",
    }  # fmt: skip
    assert (first["predicted"], first["feedback"]) == ("'=2", "'+1")
    assert (second["inputs.question"], second["predicted.=a"], second["inputs.formula"]) == ("q0", "1", "")


@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.text(), st.none(), st.integers())), max_size=4))
def test_any_texts_come_back_as_they_are_and_none_begins_a_formula(
    tmp_path_factory: pytest.TempPathFactory, fields: list[dict[str, Any]]
) -> None:
    with RunStore.create_in(tmp_path_factory.mktemp("any")) as store:
        store.record_setup(setup_of(9, 0))
        add_run(store, "train", [result(str(n), inputs=inputs) for n, inputs in enumerate(fields)], BEFORE)
        text = "".join(csv_text(store, exported_runs(store, ()), steps=False))
    # An empty name makes a column that the header of `DictReader` keeps too: "inputs.".
    names, *rows = csv.reader(io.StringIO(text, newline=""))
    for row, inputs in zip(rows, fields, strict=True):
        cells = dict(zip(names, row, strict=True))
        assert not any(cell[:1] in tuple("=+@\t\r\n") for cell in row)
        for name, value in inputs.items():
            if isinstance(value, str):
                assert cells[f"inputs.{name}"].removeprefix("'" * (not value.startswith("'"))) == value
