"""The frame of the command line: exit codes, errors, and which optimization a command is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from child_process import fresh, output_of
from command import Command
from stored_optimization import write_small

from rlmoptimizer.outcome.run_totals import objective_names, run_log
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


def test_runs_as_json_are_the_trial_logs(command: Command, directory: Path) -> None:
    with StoreReader.open_in(directory) as store:
        records = store.runs()
        logs = [run_log(record, objective_names(records)) for record in records]
    found = command("runs", directory, "--json").json
    assert found.pop("runs") == json.loads(json.dumps(logs))
    assert found.keys() == {"store", "state", "budget"}
    assert (found["state"], found["budget"].keys()) == ("finished", {"limit", "spent"})


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
