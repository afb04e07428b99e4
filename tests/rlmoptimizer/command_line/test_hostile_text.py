"""Texts of a data set, an LM or an agent: nothing in them steers a terminal, and none is read as markup."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st
from stored_optimization import add_run, setup_of
from stored_runs import result

from rlmoptimizer.command_line.output import json_text
from rlmoptimizer.command_line.table import Column, table_lines, text_width
from rlmoptimizer.records import StepTrace
from rlmoptimizer.store.run_store import RunStore

EVIL = "\x1b[2J\x1b]0;title\x07[red]bold[/red] \u202eabc \ud800 \x9b31m\r\nsecond \u65e5\u672c"
UNSHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\ud800-\udfff]")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every text that comes from outside is `EVIL`, and one has 5 MB."""
    path = tmp_path_factory.mktemp("hostile")
    steps = {EVIL: EVIL, "reply": "Answer."}
    traced = (
        StepTrace(0, EVIL, EVIL, {EVIL: EVIL}, {"x": [EVIL, b"\x1b"]}, error=EVIL, completion=EVIL, feedback=EVIL),
    )
    evil = result(
        "0[bold]\x1b[1m", 0.0, source_example_id=EVIL, inputs={"q": EVIL, "long": "y" * 5_000_000},
        expected={EVIL: EVIL}, predicted=EVIL, error=EVIL, error_kind="program", feedback=EVIL, steps=traced,
        objectives={EVIL: 1.0},
    )  # fmt: skip
    with RunStore.create_in(path) as store:
        store.record_setup(setup_of(2, 2, steps=steps))
        add_run(store, "train", [evil, result("1", 1.0)], steps, baseline=True)
        add_run(store, "train", [result("0[bold]\x1b[1m", 1.0), result("1", 0.0)], {**steps, "reply": EVIL})
    return path


CALLS = (
    ["runs"], ["show", "r1"], ["show", "r1", "--steps"], ["show", "r2", "--flipped-since", "r1"], ["diff", "r1", "r2"],
    ["prompts"], ["prompts", "--run", "r2"], ["show", "r1", "--id", EVIL], ["show", EVIL], ["prompts", "--run", EVIL],
    ["runs", f"--{EVIL}"], ["export", "--format", "jsonl"],
)  # fmt: skip


@pytest.mark.parametrize("columns", [60, 200])
@pytest.mark.parametrize("call", CALLS, ids=lambda call: " ".join(call)[:20].encode("ascii", "replace").decode())
def test_no_text_reaches_a_terminal_as_it_is(call: list[str], columns: int, command: Command, hostile: Path) -> None:
    name, *rest = call
    written = command(name, hostile, *rest, columns=columns)
    assert not UNSHOWN.search(written.out + written.err)
    if name == "prompts":
        assert written.code == 1 or "[red]bold[/red]" in written.out


def test_on_a_terminal_only_colours_of_ours_are_escapes(
    command: Command, hostile: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = command("show", hostile, "r1", "--steps", columns=60).out
    assert "\x1b[" in shown
    assert not UNSHOWN.search(re.sub("\x1b\\[[0-9;]*m", "", shown))
    exported = command("export", hostile).out
    assert not UNSHOWN.search(exported.replace("\r\n", "\n"))
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in command("show", hostile, "r1", "--steps", columns=60).out


def test_long_texts_are_cut_for_people_and_whole_for_programs(command: Command, hostile: Path) -> None:
    shown = command("show", hostile, "r1", "--steps").out
    assert "4,992,000 characters left out" in shown
    assert len(shown) < 50_000
    (first, _) = command("show", hostile, "r1", "--json").json["examples"]
    assert len(first["inputs"]["long"]) == 5_000_000
    assert first["inputs"]["q"] == first["error"] == EVIL
    assert first["steps"][0]["outputs"]["x"] == [EVIL, {"$bytes": "Gw=="}]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=8,
    )
)
def test_json_is_ascii_that_every_parser_reads(value: object) -> None:
    text = json_text(value)
    assert text.isascii()

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    json.loads(text, parse_constant=refuse)


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8") | st.just("\x1b")), min_size=3, max_size=3), max_size=5),
    st.integers(30, 200),
)
def test_a_table_fits_its_width_and_keeps_a_line_for_each_row(rows: list[list[str]], width: int) -> None:
    columns = [Column("a", flexible=True), Column("b", right=True, flexible=True), Column("c", spare=True)]
    lines = list(table_lines(columns, [[*row[:2], row[2][:3]] for row in rows], width))
    assert len(lines) == len(rows) + 1
    for line in lines:
        assert "\n" not in line
        assert not UNSHOWN.search(line)
    # Two flexible columns of twelve each and gaps fit into thirty.
    assert all(text_width(line) <= width for line in lines) or any(len(row[2]) for row in rows)
