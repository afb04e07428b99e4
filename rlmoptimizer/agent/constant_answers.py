"""Whether a program answers nearly everything the same, seen in the rows of its runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from kernel_bridge.text import shorten
from rlmoptimizer.records import ExampleResult
from rlmoptimizer.text import brief

__all__ = ["constant_answers"]

_LEAST_ROWS: Final = 5  # fewer prove nothing
_MOSTLY: Final = 0.8  # the share of rows with one value that is told
_TOO_MANY: Final = 0.25  # so much more of all rows have it than want it
_SHOWN_CHARS: Final = 50  # of a name or a value


def constant_answers(results: Iterable[ExampleResult]) -> list[str]:
    """A sentence for each output that has the same value in nearly all rows, and is wanted to have others.

    Outputs are compared with the fields of the same name in `expected`. Values that are no text, number or bool are
    left out.
    """
    pairs: dict[str, list[tuple[Any, Any]]] = {}  # output -> predicted and expected
    for result in results:
        for name, predicted, expected in _scalars(result):
            pairs.setdefault(name, []).append((predicted, expected))
    return [said for name, both in pairs.items() if (said := _said(name, both)) is not None]


def _scalars(result: ExampleResult) -> Iterator[tuple[str, Any, Any]]:
    predictions = result.predicted
    outputs = cast("dict[str, Any]", predictions) if isinstance(predictions, dict) else {}
    for name, expected in result.expected.items():
        predicted = outputs.get(name)
        if isinstance(predicted, (str, int, float)) and isinstance(expected, (str, int, float)):
            yield name, predicted, expected


def _said(name: str, both: list[tuple[Any, Any]]) -> str | None:
    ((value, count),) = Counter(predicted for predicted, _ in both).most_common(1)
    wanted = sum(expected == value for _, expected in both)
    if len(both) < _LEAST_ROWS or count < _MOSTLY * len(both) or count - wanted < _TOO_MANY * len(both):
        return None
    shown = brief(value, _SHOWN_CHARS)
    return f"{shorten(name, _SHOWN_CHARS)} is {shown} in {count} of {len(both)} answers, and {wanted} should be"
