"""Ctrl-C: everything stops at once, nothing that had finished is lost, and a line says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import toy
from offline import ScriptedRootLM, field_lm, text_lm
from responses_server import ResponsesServer, turn
from stoppable import Ran, Running, finished, lines_of

from rlmoptimizer import MetricFailed, StoreCorrupt
from rlmoptimizer.store.run_store import RunStore
from rlmoptimizer.store.store_reader import StoreReader

SUBMIT = "SUBMIT(optimized_dspy_program=optimization_status()['current_prompts'])"
STOPPED = "RLMDocstringOptimizer stopped (KeyboardInterrupt)."


class Held:
    """A server on loopback that answers nobody until the test is over."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self._over = threading.Event()

    def _answer(self, context: object) -> str:
        self.asked.set()
        self._over.wait(100)
        return turn("late", "pass")

    @contextmanager
    def serving(self) -> Iterator[str]:
        with ResponsesServer(self._answer) as server:
            try:
                yield server.url
            finally:
                self._over.set()


def interrupted(running: Running, *, times: int = 1) -> Ran:
    """Press Ctrl-C and wait for the end of the process and of all that it had started."""
    started = psutil.Process(running.process.pid).children(recursive=True)
    for _ in range(times):
        running.stop(signal.SIGINT)
    ran = running.ended()
    _, left = psutil.wait_procs(started, timeout=60)
    assert left == []
    return ran


def check_stopped(ran: Ran, directory: Path) -> None:
    assert ran.status == -signal.SIGINT, ran.err
    assert ran.result is None
    assert ran.err.count(STOPPED) == 1
    assert f"compile(..., resume=True) and run_storage_dir={str(directory)!r}." in ran.err
    *_, raised, last = ["", *ran.err.splitlines()]
    if sys.version_info >= (3, 11):  # where exceptions carry notes
        assert last == f"To go on: compile(..., resume=True) and run_storage_dir={str(directory)!r}"
        last = raised
    assert last == "KeyboardInterrupt"
    assert not list(directory.glob("*.lock"))


def check_goes_on(directory: Path, *, again: int = 0) -> None:
    """It comes to the undisturbed result; `again` units were paid for what had begun and was not finished."""
    result = finished(directory, plain=True)
    assert result["optimized_dspy_program"]["topic"] == toy.FIX
    assert result["best_score"] == 100.0
    with StoreReader.open_in(directory) as store:
        assert store.spent() == 2 + 6 + 4 + 1 + 1 + again
    # Every example of the baselines, the first turn, the candidate and the checkpoint, once.
    assert sum(Counter(lines_of(directory)).values()) == 10 + 2 + 6 + 4


@pytest.mark.parametrize(
    ("point", "again"),
    [("baseline", 0), ("evaluation", 0), ("cell", 1), ("sub-lm", 1), ("thinking", 0), ("shutdown", 0)],
)
def test_an_interrupt_stops_everything_at_once_and_says_how_to_go_on(point: str, again: int, tmp_path: Path) -> None:
    with Running(tmp_path, point) as running:
        running.wait_there()
        ran = interrupted(running)
    check_stopped(ran, tmp_path)
    check_goes_on(tmp_path, again=again)


@pytest.mark.parametrize("role", ["root_lm", "sub_lm"])
def test_an_interrupt_does_not_wait_for_an_lm_that_has_not_answered(role: str, tmp_path: Path) -> None:
    held = Held()
    with held.serving() as address, Running(tmp_path, **{role: address}) as running:
        assert held.asked.wait(100)
        ran = interrupted(running)
        check_stopped(ran, tmp_path)
    with RunStore.open_in(tmp_path) as store:
        assert [run.state for run in store.runs()][:2] == ["finished", "finished"]


@pytest.mark.parametrize("points", ["cell,shutdown", "evaluation,shutdown", "thinking,shutdown", "shutdown,shutdown"])
def test_a_second_interrupt_while_everything_is_being_stopped_still_ends_it_and_loses_nothing(
    points: str, tmp_path: Path
) -> None:
    with Running(tmp_path, points) as running:
        started = psutil.Process(running.process.pid)
        running.wait_there()
        kernels = started.children(recursive=True)
        running.stop(signal.SIGINT)
        running.wait_there()
        ran = interrupted(running)
        assert psutil.wait_procs(kernels, timeout=60)[1] == []
    check_stopped(ran, tmp_path)
    check_goes_on(tmp_path, again=int(points.startswith("cell")))


@pytest.mark.parametrize("point", ["baseline", "evaluation", "cell"])
def test_many_interrupts_in_a_row_end_it_and_leave_the_store_whole(point: str, tmp_path: Path) -> None:
    with Running(tmp_path, point) as running:
        running.wait_there()
        ran = interrupted(running, times=20)
    assert ran.status != 0
    check_goes_on(tmp_path, again=int(point == "cell"))


# within a process that goes on


def test_nothing_runs_on_in_a_process_that_outlives_the_interrupt(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], wait_until: Callable[..., None]
) -> None:
    before = set(threading.enumerate())
    release = threading.Event()
    running = threading.Semaphore(0)

    def respond(question: Any) -> dict[str, object]:
        if "one word" in question.instructions:
            running.release()
            assert release.wait(60)
        return toy.respond(question)

    def press(prompt: str) -> str:
        for _ in range(4):
            assert running.acquire(timeout=60)
        os.kill(os.getpid(), signal.SIGINT)  # as Ctrl-C does
        return "pressed"

    code = f"""
import threading
threading.Thread(target=evaluate_program, kwargs=dict(prompts={{"topic": {toy.FIX!r}}})).start()
llm_query("press when four examples run")
import time; time.sleep(100)
"""
    root = ScriptedRootLM([code])
    optimizer = toy.optimizer(
        root, eval_lm=field_lm(respond, "eval"), sub_lm=text_lm(press, "sub"), run_storage_dir=tmp_path
    )
    arguments: dict[str, Any] = {"trainset": toy.trainset(), "valset": toy.valset(), "metric": toy.metric}
    with pytest.raises(KeyboardInterrupt):
        optimizer.compile(toy.Triage(), **arguments)
    assert STOPPED in capfd.readouterr().err
    release.set()
    wait_until(lambda: set(threading.enumerate()) <= before, "the threads of the compile are gone")
    with RunStore.open_in(tmp_path) as store:
        assert store.spent() == 1  # the prompt; no example of the run had finished
        (cut,) = [run for run in store.runs() if not run.baseline]
        assert (cut.state, cut.evaluated_count) == ("cancelled", 0)


def test_an_interrupted_compile_without_a_directory_has_nothing_to_go_on_with(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(KeyboardInterrupt):
        toy.compiled(["pass", KeyboardInterrupt()])
    assert "RLMDocstringOptimizer stopped" not in capfd.readouterr().err


# other ends


def test_a_root_lm_a_metric_or_a_disk_that_fails_says_how_to_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(gold: Any, prediction: Any, trace: Any = None) -> float:
        raise RuntimeError("out of order")

    def spoil(prompt: str) -> str:
        (path,) = (tmp_path / "disk").glob("*.sqlite")
        with contextlib.closing(sqlite3.connect(path)) as database:
            database.execute("DROP TABLE results")
        return "spoilt"

    with pytest.raises(Exception, match="no key"):
        toy.compiled([RuntimeError("no key")], run_storage_dir=tmp_path / "lm")
    with pytest.raises(MetricFailed):
        toy.compiled([SUBMIT], metric=broken, run_storage_dir=tmp_path / "metric")
    with pytest.raises(StoreCorrupt):
        toy.compiled(
            ["llm_query('spoil')\nevaluate_program()"], sub_lm=text_lm(spoil), run_storage_dir=tmp_path / "disk"
        )
    lines = [line for line in capfd.readouterr().err.splitlines() if "RLMDocstringOptimizer stopped" in line]
    assert [line.partition("(")[2].partition(")")[0] for line in lines] == [
        "LMUnexpectedError",
        "MetricFailed",
        "StoreCorrupt",
    ]
    assert all("resume=True" in line for line in lines)
