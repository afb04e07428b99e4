"""What a worker answers, as bytes: an executor may break where an answer of another kind does not unpickle."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlmoptimizer.evaluation.row_runner import RowOutcome
from rlmoptimizer.evaluation.workers.portable_errors import PortableError
from rlmoptimizer.spending.call_meter import HeardCall

__all__ = ["Loaded", "Missing", "NotRun", "Reply", "RowRaised", "RowRun", "UnreadableAnswer", "packed", "unpacked"]


class UnreadableAnswer(Exception):
    """What has come back from a worker is no answer."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The worker does not have these parts, so it has done nothing."""

    digests: frozenset[str]


@dataclass(frozen=True, slots=True)
class NotRun:
    """The worker cannot load what it was sent."""

    why: str


@dataclass(frozen=True, slots=True)
class RowRun:
    """What came of a row, and the LM calls that the worker made and has not told of yet."""

    outcome: RowOutcome  # without the LM's failure
    lm_failure: PortableError | None
    calls: tuple[HeardCall, ...]


@dataclass(frozen=True, slots=True)
class RowRaised:
    """Program or metric raised what is meant to end a process, such as KeyboardInterrupt."""

    error: PortableError
    calls: tuple[HeardCall, ...]


@dataclass(frozen=True, slots=True)
class Loaded:
    """The worker can work with the base. What else there is to say of it."""

    versions: dict[str, str]  # of Python and of the packages that matter
    problem: str | None  # why it cannot work all the same


Reply: TypeAlias = "Missing | NotRun | RowRun | RowRaised | Loaded"


def packed(reply: Reply) -> bytes:
    return pickle.dumps(reply, pickle.HIGHEST_PROTOCOL)


def unpacked(answer: Any, *expected: type[Any]) -> Any:
    """A worker's answer, one of the classes `expected`. Raises `UnreadableAnswer` for anything else."""
    if not isinstance(answer, bytes):
        raise UnreadableAnswer(f"the worker's answer is a {type(answer).__name__}")
    try:
        reply = pickle.loads(answer)
    except Exception as error:
        raise UnreadableAnswer(f"the worker's answer does not unpickle: {type(error).__name__}: {error}") from error
    if not isinstance(reply, expected):
        raise UnreadableAnswer(f"the worker's answer is a {type(reply).__name__}")
    return reply
