"""The commands that steer, on a running, a paused, a died, a finished and a foreign directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from command import Command
from stored_optimization import AFTER, add_run, write_small

from rlmoptimizer.outcome.ending import AgentOutcome
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

COMMANDS = [("note", "Look at the dentists."), ("pause",), ("unpause",), ("stop",)]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[RunStore]:
    """An optimization in its agent's second turn, in this process."""
    with write_small(tmp_path, ends=False) as store:
        store.record_event("CompileStarted", {})
        store.record_event("PhaseStarted", {"phase": "agent"})
        yield store


def test_a_running_optimization_is_paused_noted_and_stopped(command: Command, running: RunStore) -> None:
    directory, requests = running.path.parent, Requests(running.path)
    assert command("note", directory, "Look at the dentists.").lines == ["note left: the agent reads it in its turn 3"]
    assert requests.take_notes() == ["Look at the dentists."]
    assert command("pause", directory).lines == ["pause asked for: the agent waits before its turn 3"]
    assert requests.pausing
    running.record_iteration("", "", "")
    running.record_event("WorkPaused", {"before_turn": 3})
    assert command("pause", directory).lines == ["it is paused, before turn 3 of its agent"]
    assert command("note", directory, "Hello").lines == ["note left: the agent reads it in its turn 3"]
    assert command("unpause", directory).lines == ["the pause is over: the agent goes on with its turn 3"]
    assert not requests.pausing
    assert "no pause is asked of" in command("unpause", directory).refused(1)
    assert command("stop", directory).lines == [
        "stop asked for: the agent's work ends now, and the best prompts so far are the result"
    ]
    assert requests.stopping


def test_before_the_agent_has_begun_its_first_turn_is_the_next(command: Command, tmp_path: Path) -> None:
    with write_small(tmp_path, ends=False) as store:
        store.record_event("CompileStarted", {})
        store.record_event("PhaseStarted", {"phase": "baseline"})
        assert command("pause", tmp_path).lines == ["pause asked for: the agent waits before its turn 2"]


def test_what_is_asked_of_one_that_died_waits_for_its_resume(command: Command, tmp_path: Path) -> None:
    write_small(tmp_path, ends=False).close()
    resumed = f"when it is resumed, with compile(..., resume=True) and run_storage_dir={str(tmp_path)!r}"
    assert command("note", tmp_path, "Hello").lines == [f"note left: the agent reads it {resumed}"]
    assert command("pause", tmp_path).lines == [f"pause asked for: the agent waits {resumed}"]
    assert command("unpause", tmp_path).lines == [f"the pause is over: the agent goes on {resumed}"]
    assert resumed in command("stop", tmp_path).lines[0]


@pytest.mark.parametrize("arguments", COMMANDS, ids=lambda arguments: arguments[0])
def test_a_finished_one_can_only_be_branched(command: Command, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    write_small(tmp_path).close()
    name, *rest = arguments
    refused = command(name, tmp_path, *rest).refused(1)
    assert refused.startswith(f"the optimization in {tmp_path / 'runs-0001.sqlite'} has finished; ")
    assert "rlmoptimizer branch DIR RUN" in refused
    assert not Requests(tmp_path / "runs-0001.sqlite").directory.exists()


def test_an_agent_that_has_ended_is_not_paused(command: Command, running: RunStore) -> None:
    AgentOutcome(AFTER, None, "", "submitted").record(running)
    assert "only its result is being measured" in command("pause", running.path.parent).refused(1)


@pytest.mark.parametrize("arguments", [*COMMANDS, ("branch", "r1")], ids=lambda arguments: arguments[0])
def test_a_directory_without_an_optimization_is_refused_and_left_alone(
    command: Command, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    name, *rest = arguments
    assert "there is no run store in" in command(name, tmp_path, *rest).refused(1)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_note_is_refused_in_one_line(command: Command, running: RunStore) -> None:
    assert command("note", running.path.parent, " ").refused(1) == "the note is empty; say what the agent should know"
    assert "8,000" in command("note", running.path.parent, "x" * 9000).refused(1)


def test_a_branch_of_a_finished_one_waits_for_a_resume(command: Command, tmp_path: Path) -> None:
    write_small(tmp_path).close()
    assert command("branch", tmp_path, "r3", "--units", "12", "--note", "Shorter.").lines == [
        "branch runs-0002.sqlite is made, with the prompts of run r3: begin it with compile(..., resume=True) and "
        f"run_storage_dir={str(tmp_path)!r}"
    ]
    assert Requests(tmp_path / "runs-0002.sqlite").take_notes() == ["Shorter."]
    assert command("runs", tmp_path, "--json").json["runs"][-1]["run_id"] == "r4"
    assert "has not begun; begin it" in command("branch", tmp_path, "r3").refused(1)
    parent = ("branch", tmp_path, "--number", "1")
    assert "there is no run 'r9'" in command(*parent, "r9").refused(1)
    assert "units must be from 1" in command(*parent, "r3", "--units", "0").refused(1)
    assert command(*parent, "r3", "--units", "many").refused(2)


def test_a_branch_of_a_running_one_is_gone_on_with(command: Command, running: RunStore) -> None:
    run_id = add_run(running, "train", [1, 0], AFTER, turn=2)
    (line,) = command("branch", running.path.parent, run_id).lines
    assert line.endswith("the optimization that runs ends, and its compile goes on with the branch")
    assert Requests(running.path).branching
    with StoreReader.open_in(running.path.parent) as branch:
        assert (branch.path.name, branch.prompts()) == ("runs-0002.sqlite", AFTER)
