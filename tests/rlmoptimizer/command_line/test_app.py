"""The frame of the command line: exit codes, errors, and which optimization a command is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from child_process import fresh, output_of
from command import Command
from stored_optimization import AFTER, add_run, finish, write_small
from stored_runs import copy_as_killed

from rlmoptimizer.outcome.run_totals import objective_names, run_log
from rlmoptimizer.steering.branches import begin_branch
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kept")
    write_small(path).close()
    return path


def test_runs_are_a_table(command: Command, directory: Path) -> None:
    assert command("runs", directory).lines == [
        "runs-0001.sqlite: finished, 10 of 34 units spent",
        "run  split  examples   score  passed  units  left  prompts changed",
        "r1   train         6   50.00       3   free   100  none (baseline)",
        "r2   val           4   50.00       2   free   100  none (baseline)",
        "r3   train         6   66.67       4      6    94  topic",
        "r4   val           4  100.00       4      4    90  topic",
    ]


def test_runs_as_json_are_the_trial_logs_with_the_state_and_the_budget(command: Command, directory: Path) -> None:
    with StoreReader.open_in(directory) as store:
        records = store.runs()
        logs = [run_log(record, objective_names(records)) for record in records]
    more = [(0, []), (0, []), (6, ["topic"]), (4, ["topic"])]
    assert command("runs", directory, "--json").json == {
        "store": str(directory / "runs-0001.sqlite"),
        "state": "finished",
        "budget": {"limit": 34, "spent": 10, "left": 24},
        "pause_asked": False,
        "branch": None,
        "runs": [
            {**json.loads(json.dumps(log)), "units": units, "prompts_changed": changed}
            for log, (units, changed) in zip(logs, more, strict=True)
        ],
    }


def test_a_run_that_was_cut_is_told_as_such(command: Command, tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as store:
        run_id = add_run(store, "train", [1, 0], AFTER, planned=6, turn=3, ends=False)
        assert [line.split()[-2:] for line in command("runs", tmp_path).lines[-1:]] == [["running", "topic"]]
        died = copy_as_killed(store, tmp_path / "died").parent
        store.finish_run(run_id, cancelled=True)
        assert command("runs", tmp_path).lines[-1].split()[-2:] == ["cut", "topic"]
    lines = command("runs", died).lines
    assert lines[0] == "runs-0001.sqlite: interrupted, to be resumed, 12 of 34 units spent"
    assert lines[-1].split()[:3] + lines[-1].split()[-2:] == ["r5", "train", "2/6", "cut", "topic"]
    assert command("show", died, run_id).lines[0].startswith("run r5 on train, cut: ")
    found = command("runs", died, "--json").json
    assert (found["state"], found["runs"][-1]["state"], found["runs"][-1]["units"]) == ("interrupted", "running", 2)


def test_a_pause_that_is_asked_for_is_told(command: Command, tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False):
        command("pause", tmp_path)
        assert ": running, to be paused after this turn, 10 of" in command("runs", tmp_path).lines[0]
    assert ": interrupted, to be resumed and then paused, 10 of" in command("runs", tmp_path).lines[0]
    assert command("runs", tmp_path, "--json").json["pause_asked"] is True


def test_a_branch_says_of_what_it_is_one(command: Command, tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as parent:
        command("branch", tmp_path, "r3", "--units", "12")
        lines = command("runs", tmp_path).lines
        assert lines[:2] == [
            "runs-0002.sqlite: begins once runs-0001.sqlite has ended, 0 of 12 units spent",
            "a branch from run r3 (train, 66.67) of runs-0001.sqlite; prompts changed: topic",
        ]
        finish(parent)
    assert command("runs", tmp_path).lines[0] == "runs-0002.sqlite: not begun, to be resumed, 0 of 12 units spent"
    branch = {"store": "runs-0001.sqlite", "run_id": "r3", "begun": False}
    assert command("runs", tmp_path, "--json").json["branch"] == branch
    with RunStore.open(tmp_path / "runs-0002.sqlite") as begun:
        begin_branch(begun)
        assert command("runs", tmp_path).lines[0] == "runs-0002.sqlite: running, 0 of 12 units spent"
    command("branch", tmp_path, "r1", "--number", "1")
    assert command("runs", tmp_path).lines[1] == (
        "a branch from run r1 (train, 50.00) of runs-0001.sqlite; prompts changed: none"
    )


def test_the_newest_optimization_is_meant_unless_another_is_named(
    command: Command, directory: Path, tmp_path: Path
) -> None:
    for _ in range(2):
        write_small(tmp_path).close()
    write_small(tmp_path, ends=False).close()
    newest = tmp_path / "runs-0003.sqlite"
    newest.unlink()
    assert command("runs", tmp_path, "--number", "1").lines[1:] == command("runs", tmp_path).lines[1:]
    assert command("runs", tmp_path / "runs-0002.sqlite").lines == command("runs", tmp_path).lines
    assert "has 2, 1" in command("runs", tmp_path, "--number", "3").refused(1)
    assert "leave it out" in command("runs", tmp_path / "runs-0002.sqlite", "--number", "2").refused(2)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["runs"], 2, "DIR"),
        (["runs", ".", "--colour"], 2, "--colour"),
        (["runs", ".", "--number", "0"], 2, "--number"),
        (["run", "."], 2, "run"),
        (["runs", "no such place"], 1, "nothing at no such place"),
        (["runs", "."], 1, "no run store"),
    ],
)
def test_an_error_is_one_line_and_says_which_kind(
    arguments: list[str],
    code: int,
    words: str,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in command(*arguments).refused(code)


def test_a_reading_command_loads_nothing_heavy(directory: Path, project_root: Path) -> None:
    code = (
        "import sys; from rlmoptimizer.command_line.app import run; run(['runs', sys.argv[1]]);"
        "heavy = {'dspy', 'litellm', 'numpy', 'rich', 'jinja2', 'nbformat', 'starlette', 'zmq', 'IPython', 'asyncio'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert output_of(fresh(code, str(directory), directory=project_root)).splitlines()[-1] == "[]"
