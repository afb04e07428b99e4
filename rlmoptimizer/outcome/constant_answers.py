"""Whether a program answers nearly everything the same, seen in the rows of its runs. Imports no DSPy."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, cast

from kernel_bridge.text import shorten
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.text import brief

__all__ = ["constant_answers"]

_LEAST_EXAMPLES: Final = 5  # fewer prove nothing
_MOSTLY: Final = 0.8  # the share of answers with one value that is told
_TOO_MANY: Final = 0.25  # so much more of all answers have it than should
_SHOWN_CHARS: Final = 50  # of a name or a value
_KEPT_CHARS: Final = 200  # of a longer answer only a digest is kept: there may be many


@dataclass(frozen=True, slots=True)
class _Answer:
    """One output in one row."""

    example_id: str
    shown: str  # the value as it is told, short
    compared: str  # the value as it is compared
    expected: str  # what it should be, likewise
    passed: bool

    def should_be(self, compared: str) -> bool:
        return self.expected == compared or (self.passed and self.compared == compared)


def constant_answers(results: Iterable[ExampleResult]) -> list[str]:
    """A sentence for each output that has the same value in nearly all rows, and should have others.

    Outputs are compared with the fields of the same name in `expected`, in any case; in a row that passed all are
    right. Values that are no text, number or bool are left out.
    """
    answers: dict[str, list[_Answer]] = {}  # by output
    for result in results:
        for name, answer in _answers(result):
            answers.setdefault(name, []).append(answer)
    return [said for name, own in answers.items() if (said := _said(name, own)) is not None]


def _answers(result: ExampleResult) -> Iterator[tuple[str, _Answer]]:
    predictions = result.predicted
    outputs = cast("dict[str, Any]", predictions) if isinstance(predictions, dict) else {}
    for name, expected in result.expected.items():
        value = outputs.get(name)
        if isinstance(value, (str, int, float)) and isinstance(expected, (str, int, float)):
            yield (
                name,
                _Answer(
                    result.example_id, brief(value, _SHOWN_CHARS), _compared(value), _compared(expected), result.passed
                ),
            )


def _compared(value: str | float) -> str:
    text = (value if isinstance(value, str) else brief(value)).strip().casefold()
    if len(text) <= _KEPT_CHARS:
        return text
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _said(name: str, answers: list[_Answer]) -> str | None:
    ((common, count),) = Counter(answer.compared for answer in answers).most_common(1)
    right = sum(answer.should_be(common) for answer in answers)
    if count < _MOSTLY * len(answers) or count - right < _TOO_MANY * len(answers):
        return None
    if len({answer.example_id for answer in answers}) < _LEAST_EXAMPLES:
        return None
    shown = next(answer.shown for answer in answers if answer.compared == common)
    return f"{shorten(name, _SHOWN_CHARS)} is {shown} in {count} of {len(answers)} answers, and {right} should be"
