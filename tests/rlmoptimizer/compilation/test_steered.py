"""A person steers a compile that runs: pauses, notes, a stop."""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dspy
import pytest
import toy
from desk import desk
from offline import Asked, ScriptedRootLM

from rlmoptimizer.agent import person_requests
from rlmoptimizer.agent.person_requests import PersonRequests
from rlmoptimizer.agent.stopping import StoppingLimits
from rlmoptimizer.events import Emitter, Event, NoteGiven
from rlmoptimizer.lms.person_notes import NOTES_FIELD
from rlmoptimizer.outcome.state import state_of
from rlmoptimizer.steering.requests import Requests
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

pytestmark = pytest.mark.usefixtures("plain_repl")
KERNEL = toy.KERNEL  # of the tests in which it has a part
SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
NOTE = "The customers are dentists."


def store_in(directory: Path) -> Path:
    return directory / "runs-0001.sqlite"


def asking(act: Callable[[Requests], object], directory: Path, code: str) -> Callable[[Asked], str]:
    """A turn of the agent in which, while the root LM thinks, a person asks something."""

    def answer(question: Asked) -> str:
        act(Requests(store_in(directory)))
        return code

    return answer


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    with StoreReader.open(store_in(directory)) as store:
        return [record.data for record in store.events(kind)]


def test_a_note_is_in_the_next_request_and_in_all_after_it_also_of_another_process(tmp_path: Path) -> None:
    turns = [asking(lambda asked: asked.note(NOTE), tmp_path, "pass"), "pass", dspy.LMError("the provider is down")]
    root = ScriptedRootLM(turns)
    optimizer = toy.optimizer(root, run_storage_dir=tmp_path)
    with pytest.raises(dspy.LMError):
        optimizer.compile(toy.Triage(), **toy.arguments())
    first, second, third = root.seen
    told = [{"before_turn": 2, "text": NOTE}]
    assert NOTES_FIELD not in first.text
    assert json.loads(second.inputs[NOTES_FIELD]) == told
    assert json.loads(third.inputs[NOTES_FIELD]) == told
    assert events(tmp_path, "NoteGiven") == told
    Requests(store_in(tmp_path)).note("And go on.")  # while no process has it

    again = ScriptedRootLM([SUBMIT])
    toy.optimizer(again, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments(), resume=True)
    assert json.loads(again.seen[0].inputs[NOTES_FIELD]) == [*told, {"before_turn": 3, "text": "And go on."}]
    assert not Requests(store_in(tmp_path)).directory.exists()


@contextmanager
def when_paused(directory: Path, act: Callable[[], object], times: int = 1) -> Iterator[None]:
    """A person who does something once the optimization in a directory is seen to be paused for the n-th time."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.02):
            if store_in(directory).exists():
                with StoreReader.open(store_in(directory)) as store:
                    if state_of(store) == "paused" and len(store.events("WorkPaused")) == times:
                        act()
                        return

    person = threading.Thread(target=watch)
    person.start()
    try:
        yield
    finally:
        over.set()
        person.join()


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C of POSIX")
def test_ctrl_c_ends_a_pause_and_a_resumed_optimization_starts_paused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = ScriptedRootLM([asking(Requests.pause, tmp_path, "pass")])
    with (
        when_paused(tmp_path, lambda: os.kill(os.getpid(), signal.SIGINT)),
        pytest.raises(KeyboardInterrupt),
    ):
        toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments())
    assert root.engine.calls == 1
    assert f"rlmoptimizer unpause {tmp_path}" in capfd.readouterr().err

    again, calls = ScriptedRootLM([SUBMIT]), list[int]()

    def go_on() -> None:
        calls.append(again.engine.calls)
        Requests(store_in(tmp_path)).unpause()

    with when_paused(tmp_path, go_on, times=2):
        toy.optimizer(again, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments(), resume=True)
    assert calls == [0]
    assert events(tmp_path, "WorkPaused") == [{"before_turn": 2}] * 2
    (unpaused,) = events(tmp_path, "WorkUnpaused")
    assert unpaused["before_turn"] == 2


def test_a_stop_ends_a_pause_and_takes_the_best(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tried = f"evaluate_program('val', prompts={{'topic': {toy.FIX!r}}})"
    root = ScriptedRootLM([asking(Requests.pause, tmp_path, tried), SUBMIT])
    with when_paused(tmp_path, Requests(store_in(tmp_path)).stop), caplog.at_level(logging.WARNING, "rlmoptimizer"):
        program = toy.optimizer(root, run_storage_dir=tmp_path).compile(toy.Triage(), **toy.arguments())
    assert root.engine.calls == 1
    assert program.optimized_dspy_program["topic"] == toy.FIX
    assert program.optimization_result.stop_reason == "stopped_by_person"
    assert events(tmp_path, "StopRequested") == [{"turn": 1}]
    assert "The work ended before a submission" in caplog.text
    assert not Requests(store_in(tmp_path)).directory.exists()


def test_a_stop_interrupts_the_cell_under_way(tmp_path: Path) -> None:
    # It is asked from the cell, which nothing confines here, so the cell is surely under way.
    waiting = f"""
import pathlib, time
place = pathlib.Path({str(Requests(store_in(tmp_path)).directory)!r})
place.mkdir(mode=0o700)
(place / "stop").touch()
for _ in range(600): time.sleep(0.1)
"""
    root = ScriptedRootLM([waiting, SUBMIT])
    program = toy.optimizer(root, run_storage_dir=tmp_path, kernel=KERNEL).compile(toy.Triage(), **toy.arguments())
    assert program.optimization_result.stop_reason == "stopped_by_person"
    assert root.engine.calls == 1
    (turn,) = program.agent_trajectory
    assert "KeyboardInterrupt" in turn["output"]


def test_a_death_of_the_kernel_is_an_event_and_so_is_its_successor(tmp_path: Path) -> None:
    root = ScriptedRootLM(["import os; os._exit(7)", SUBMIT])
    toy.optimizer(root, run_storage_dir=tmp_path, kernel=KERNEL).compile(toy.Triage(), **toy.arguments())
    (died,) = events(tmp_path, "KernelDied")
    assert (died["turn"], "status 7" in died["reason"]) == (1, True)
    first, second = events(tmp_path, "KernelStarted")
    assert first["connection_file"].endswith(".json")
    assert second["connection_file"].endswith(".json")


def test_time_paused_does_not_count_for_the_deadline(tmp_path: Path) -> None:
    now = [1000.0]
    with desk(tmp_path, limits=StoppingLimits(max_seconds=60), clock=lambda: now[0]) as at:
        stop = at.bench.stop
        now[0] += 20
        with stop.clock_stopped():
            now[0] += 500
            assert stop.seconds_left == 40
            assert stop.look() is None
        assert stop.seconds_left == 40
        now[0] += 41
        assert stop.look() is not None


def test_time_paused_is_no_work_of_any_process(tmp_path: Path) -> None:
    now = [0.0]
    with RunStore.create(tmp_path / "runs-0001.sqlite", clock=lambda: now[0]) as store:

        def at(second: float, kind: str) -> None:
            now[0] = second
            store.record_event(kind, {})

        at(100, "CompileStarted")
        at(110, "WorkPaused")
        at(115, "EvaluationFinished")  # which was under way
        at(210, "WorkUnpaused")
        at(220, "WorkPaused")
        at(230, "EvaluationFinished")  # the last thing before the process ended
        assert store.worked_seconds() == 20
        at(1000, "CompileStarted")
        at(1001, "WorkPaused")
        assert store.worked_seconds() == 21
        at(2001, "WorkUnpaused")
        at(2004, "TurnFinished")
        assert store.worked_seconds() == 24


def test_more_notes_than_an_agent_can_heed_are_dropped_and_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(person_requests, "_MOST_NOTES", 3)
    with RunStore.create_in(tmp_path) as store:
        requests, seen = Requests(store.path), list[Event]()
        person = PersonRequests(requests, store, Emitter([seen.append]))
        for number in range(5):
            requests.note(f"note {number}")
        person.begin_turn(1, 0)
        requests.note("one more")
        person.begin_turn(2, 1)
        assert seen == [NoteGiven(1, f"note {number}") for number in range(3)]
        assert [note.text for note in person.notes] == ["note 0", "note 1", "note 2"]
        assert requests.take_notes() == []
    assert caplog.text.count("A note is not given to the agent") == 1


def test_without_a_persons_requests_nothing_is_left_beside_the_store(tmp_path: Path) -> None:
    toy.compiled([SUBMIT], run_storage_dir=tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".sqlite", ".jsonl"}
