"""A process that dies between the agent's end and the result: the next one goes on, and comes to the equal result."""

from __future__ import annotations

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stoppable import SUBMITTED, Ran, Running, finished, killed, lines_of

from rlmoptimizer.store.store_reader import StoreReader

OPTIONS: dict[str, Any] = {"test": 6, "unchecked": True, "plain": True}  # of a kernel nothing is left by then
SPENT = 2 + 6 + 4 + 1 + 1 + 4  # a turn's limit, a candidate on train, val, two prompts, and the final check


def comparable(result: dict[str, Any], *, seconds: bool = False) -> dict[str, Any]:
    """What does not depend on when, where and in how many processes it ran."""
    found = dict(result["optimization_result"])
    for name in ("store_path", "usage", *(() if seconds else ("seconds",))):
        del found[name]
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A result, and where it is kept."""
    directory = tmp_path_factory.mktemp("undisturbed")
    result = finished(directory, **OPTIONS)
    assert result["optimized_dspy_program"]["topic"] == SUBMITTED
    assert result["optimization_result"]["splits"]["test"]["result"] == 100.0
    assert result["optimization_result"]["splits"]["val"]["n"] == 4
    return result, directory


@pytest.mark.parametrize("point", ["final-check", "test", "submitted"])
def test_one_that_is_killed_comes_to_the_equal_result_and_scores_nothing_twice(
    point: str, undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    expected, whole = undisturbed
    killed(tmp_path, point, **OPTIONS)
    with StoreReader.open_in(tmp_path) as store:
        assert store.outcome() is None
        agent_end = store.agent_end()
        assert agent_end is not None
        assert (store.choice() is None) == (point == "final-check")
        turns = len(store.iterations())
    result = finished(tmp_path, **OPTIONS)
    assert comparable(result) == comparable(expected)
    with StoreReader.open_in(tmp_path) as store:
        assert store.spent() == SPENT
        assert len(store.iterations()) == turns  # the agent was not asked again
        assert store.spent("final_check") == 4
        assert store.spent("test") == 0
    assert Counter(lines_of(tmp_path)) == Counter(lines_of(whole))
    assert set(result["optimization_result"]["seconds"]) == {"baseline", "agent", "final_check", "test"}


@pytest.mark.parametrize("point", ["final-check", "test"])
def test_ctrl_c_ends_it_at_once_and_the_next_process_goes_on(
    point: str, undisturbed: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    with Running(tmp_path, point, **OPTIONS) as running:
        running.wait_there()
        running.stop(signal.SIGINT)
        ran: Ran = running.ended()
    assert ran.status == -signal.SIGINT, ran.err
    assert "RLMDocstringOptimizer stopped (KeyboardInterrupt)." in ran.err
    assert not list(tmp_path.glob("*.lock"))
    assert comparable(finished(tmp_path, **OPTIONS)) == comparable(expected)
    with StoreReader.open_in(tmp_path) as store:
        assert store.spent() == SPENT


def test_a_finished_one_gives_the_very_same_again(undisturbed: tuple[dict[str, Any], Path]) -> None:
    first, directory = undisturbed
    assert finished(directory, **OPTIONS) == first
