"""The command line and the report of the quality benchmark."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import bench_toy
import dspy
import pytest
import toy
from quality import run as driver
from quality.arms import ARMS
from quality.report import report_rows, summary_rows
from quality.results import Result, read_results
from quality.task import Task, check_task

pytestmark = pytest.mark.usefixtures("plain_repl")


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The driver with the toy task and models in this process; `command.loaded`: the tasks that were bench_toy.made."""
    stand_in = bench_toy.InProcess()

    class Opened:
        def __enter__(self) -> bench_toy.InProcess:
            return stand_in

        def __exit__(self, *_: object) -> None:
            pass

    loaded: list[str] = []

    def load(name: str, seed: int, *, train: int, val: int, test: int) -> Task:
        loaded.append(name)
        return replace(bench_toy.toy_task(rows=train), name=name)

    monkeypatch.setattr(driver, "names", lambda: ["toy", "broken"])
    monkeypatch.setattr(driver, "load", load)
    monkeypatch.setattr(driver, "opened_models", lambda *_, **__: Opened())
    cache = dspy.cache

    def run(*arguments: str) -> int:
        fixed = ["--eval", "offline/eval", "--root", "files:x", "--answered-by", "a person", "--out", str(tmp_path)]
        return driver.main([*fixed, "--train", "12", "--val", "12", "--test", "12", *arguments])

    run.models = stand_in  # type: ignore[attr-defined]
    run.loaded = loaded  # type: ignore[attr-defined]
    yield run
    monkeypatch.setattr(dspy, "cache", cache)


def test_a_command_makes_what_is_not_there_and_shows_it_all(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--tasks", "toy", "--arms", "unchanged,hand", "--budget", "80") == 0
    calls = command.models.calls("test")
    assert calls == 4 * bench_toy.ROWS
    assert command("--tasks", "toy", "--arms", "unchanged,hand,guess", "--budget", "80") == 0
    assert command.models.calls("test") == calls + 2 * bench_toy.ROWS
    assert command.loaded == ["toy"] * 3  # anew for each arm: a metric may keep what it was asked
    shown = capsys.readouterr().out
    assert "programs run by offline/eval; prompts by files:x" in shown
    assert "answered by a person: toy-guess-0" in shown
    for text in ("toy, seed 0, 12 held-out rows", "unchanged", "guess", "hand", "+50.0"):
        assert text in shown
    report = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert report["setup"]["eval"] == "offline/eval"
    assert [row["arm"] for row in report["results"]] == ["unchanged", "guess", "hand"]
    assert report["results"][1] | {"usage": 0, "notes": 0, "seconds": 0} == {
        "task": "toy",
        "seed": 0,
        "arm": "guess",
        "n": 12,
        "score": 100.0,
        "interval": [75.8, 100.0],
        "errors": 0,
        "difference": 50.0,
        "difference_interval": report["results"][1]["difference_interval"],
        "better": 6,
        "worse": 0,
        "p_value": 0.03125,
        "verdict": "gain",
        "budget": 80,
        "metric_calls": 12,
        "feedback_calls": 0,
        "usage": 0,
        "seconds": 0,
        "processes": 1,
        "proposer": "files:x",
        "answered_by": "a person",
        "notes": 0,
    }
    assert driver.main(["--report", str(tmp_path)]) == 0
    assert "guess" in capsys.readouterr().out


def test_results_that_cannot_be_compared_are_kept_apart(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("--tasks", "toy", "--arms", "unchanged", "--budget", "80") == 0
    with pytest.raises(SystemExit):
        command("--tasks", "toy", "--arms", "hand", "--budget", "81")
    assert "budget was 80, is 81. Use another --out" in capsys.readouterr().err


def test_a_run_that_fails_does_not_keep_the_others_from_running(
    command: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--tasks", "toy", "--arms", "ours,hand", "--budget", "3") == 1
    shown = capsys.readouterr()
    assert "failed: toy-ours-0; the same command tries again" in shown.out
    assert "too small for the arm ours" in shown.err
    assert [result.arm for result in read_results(tmp_path)] == ["hand"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--tasks", "nothing"), "no such task: nothing; there are toy, broken"),
        (("--tasks", "toy", "--arms", "mine"), "no such arm: mine; there are unchanged, guess"),
        ((), "--tasks is needed"),
    ],
)
def test_what_is_not_there_is_named(
    command: Any, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], error: str
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments)
    assert error in capsys.readouterr().err


def test_an_empty_directory_has_an_empty_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert driver.main(["--report", str(tmp_path)]) == 0
    assert "there are no results" in capsys.readouterr().out


def test_a_row_of_two_splits_and_a_step_that_is_none_are_refused() -> None:
    task = bench_toy.toy_task()
    check_task(task)
    with pytest.raises(ValueError, match="row 1 of test has the inputs of a row of train"):
        check_task(replace(task, test=[toy.example(999), task.train[0]]))
    with pytest.raises(ValueError, match=r"hand_written names \['other'\]; the steps are \['reply', 'topic'\]"):
        check_task(replace(task, hand_written={"other": ""}))
    with pytest.raises(ValueError, match="val has no rows"):
        check_task(replace(task, val=[]))


@pytest.mark.parametrize(
    ("scores", "verdict"), [([1.0] * 8, "gain"), ([1.0] * 4 + [0.0] * 4, "no proven gain"), ([0.0] * 8, "loss")]
)
def test_a_gain_is_one_that_chance_does_not_explain(scores: list[float], verdict: str) -> None:
    common: dict[str, Any] = {"task": "toy", "seed": 0, "budget": 1, "proposer": None, "answered_by": None}
    common |= {"prompts": {}, "test_errors": 0, "usage": {}, "metric_calls": 0, "feedback_calls": 0}
    common |= {"seconds": 0.0, "processes": 1}
    rows = report_rows(
        [
            Result(arm="ours", test_scores=scores, **common),
            Result(arm="unchanged", test_scores=[0.5] * 8, **common),
        ],
        list(ARMS),
    )
    assert [(row["arm"], row["verdict"]) for row in rows] == [("unchanged", None), ("ours", verdict)]
    summary = {row["arm"]: row for row in summary_rows(rows, list(ARMS))}
    assert (summary["ours"]["gains"], summary["ours"]["losses"]) == (verdict == "gain", verdict == "loss")
    assert summary["unchanged"]["difference"] is None
