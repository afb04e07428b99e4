"""The error families: what they are instances of, what they say, and that they survive a process border."""

from __future__ import annotations

import pickle

import pytest

from rlmoptimizer import errors
from rlmoptimizer.errors import (
    AgentError,
    BudgetExceededError,
    InvalidSetup,
    InvalidSetupType,
    MetricFailed,
    OptimizerError,
    PromptUpdateError,
    SelectionError,
    StoreCorrupt,
    SubmissionError,
    UnknownRunError,
    WorkersLost,
)

ONE_OF_EACH = [
    InvalidSetup("x must be positive"),
    InvalidSetupType("x must be an int"),
    MetricFailed("Traceback ...", failed=3),
    StoreCorrupt("/runs/a.sqlite", "not a database"),
    BudgetExceededError(40, 12),
    PromptUpdateError("answer", "it is empty"),
    UnknownRunError("r9", ["r1", "r2"]),
    SelectionError("no such id"),
    SubmissionError("missing: answer"),
    WorkersLost("its workers die", is_broken=True),
]


@pytest.mark.parametrize("error", ONE_OF_EACH, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_with_its_facts(error: OptimizerError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__


def test_every_public_error_is_an_optimizer_error() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(errors, name), OptimizerError)


def test_what_the_agent_can_mend_is_an_agent_error_and_nothing_else_is() -> None:
    mendable = {type(error) for error in ONE_OF_EACH if isinstance(error, AgentError)}
    assert mendable == {BudgetExceededError, PromptUpdateError, UnknownRunError, SelectionError, SubmissionError}


def test_a_wrong_type_is_an_invalid_setup_a_value_error_and_a_type_error() -> None:
    assert issubclass(InvalidSetupType, InvalidSetup)
    assert issubclass(InvalidSetupType, TypeError)
    assert issubclass(InvalidSetupType, ValueError)


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (BudgetExceededError(40, 12), "asked for 40 units, 12 left; pass fewer ids or a limit of 12"),
        (BudgetExceededError(5, 1, "llm_query"), "asked for 5 units, 1 left; send at most 1 prompt"),
        (
            BudgetExceededError(1, 0),
            "asked for 1 unit, 0 left; nothing more can be evaluated or asked, but you can go on thinking and submit",
        ),
        (UnknownRunError("r9", ["r1", "r2"]), "there is no run 'r9'; the runs are r1, r2"),
        (UnknownRunError("r9", []), "there is no run 'r9'; there are no runs yet"),
    ],
)
def test_a_message_ends_with_the_next_step(error: AgentError, advice: str) -> None:
    assert str(error) == advice


def test_a_long_list_of_runs_is_cut_to_the_latest() -> None:
    message = str(UnknownRunError("x", [f"r{number}" for number in range(1, 101)]))
    assert "r100" in message
    assert "r1," not in message
    assert "100 runs" in message


def test_a_failed_metric_shows_its_traceback_in_the_message() -> None:
    error = MetricFailed("Traceback: boom", failed=2)
    assert error.traceback_text == "Traceback: boom"
    assert "boom" in str(error)
    assert "all 2 examples" in str(error)
