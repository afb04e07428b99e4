"""Seconds by phase, over all the processes that worked on an optimization."""

from __future__ import annotations

from rlmoptimizer.outcome.phases import phase_seconds
from rlmoptimizer.records import EventRecord


def events(*told: tuple[float, str, dict[str, object]]) -> list[EventRecord]:
    return [EventRecord(number, kind, data, at) for number, (at, kind, data) in enumerate(told, start=1)]


def test_a_phase_takes_what_its_end_says_and_one_that_was_cut_lasts_to_the_last_event_of_its_process() -> None:
    told = events(
        (0.0, "CompileStarted", {}),
        (1.0, "PhaseStarted", {"phase": "baseline"}),
        (9.0, "PhaseFinished", {"phase": "baseline", "seconds": 7.5}),
        (10.0, "PhaseStarted", {"phase": "agent"}),
        (14.0, "EvaluationFinished", {}),  # then it was killed
        (100.0, "CompileStarted", {}),
        (101.0, "PhaseStarted", {"phase": "agent"}),
        (111.0, "PhaseFinished", {"phase": "agent", "seconds": 10.25}),
        (112.0, "PhaseStarted", {"phase": "test"}),
        (115.0, "EvaluationFinished", {}),
    )
    assert phase_seconds(told) == {"baseline": 7.5, "agent": 4.0 + 10.25, "test": 3.0}


def test_a_clock_that_is_set_back_takes_nothing_away() -> None:
    told = events(
        (5.0, "PhaseStarted", {"phase": "agent"}),
        (3.0, "EvaluationFinished", {}),
        (9.0, "CompileStarted", {}),
    )
    assert phase_seconds(told) == {"agent": 0.0}
    assert phase_seconds([]) == {}
