"""One example of a run for a terminal: a row of a table, or all that is known of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

from kernel_bridge.text import printable_line
from rlmoptimizer.command_line.run_table import score_text
from rlmoptimizer.command_line.spans import Line, Style, labelled
from rlmoptimizer.command_line.table import Column
from rlmoptimizer.records import ExampleResult, StepTrace
from rlmoptimizer.show.report.json_values import as_json
from rlmoptimizer.text import brief, media_named

__all__ = ["EXAMPLE_COLUMNS", "example_block", "example_row", "verdict_of"]

_HEAD_CHARS = 300
_LINE_CHARS = 100

EXAMPLE_COLUMNS = (
    Column("example", flexible=True),
    Column("id", flexible=True, spare=True),
    Column("score", right=True),
    Column("was", right=True),
    Column("verdict"),
    Column("inputs", flexible=True),
    Column("error or feedback", flexible=True, always=True),
)


def example_row(example: ExampleResult, was: float | None = None) -> list[str]:
    """The cells for `EXAMPLE_COLUMNS`. `was`: its score in the run that it is compared with."""
    return [
        example.example_id,
        (example.source_example_id or "")[:_HEAD_CHARS],
        score_text(example.score if example.has_verdict else None),
        "" if was is None else score_text(was),
        verdict_of(example),
        _head(example.inputs),
        (example.error or example.feedback or "")[:_HEAD_CHARS],
    ]


def verdict_of(example: ExampleResult) -> str:
    """In a word or two."""
    if not example.has_verdict:
        return "no verdict"  # an LM could not be reached
    return "passed" if example.passed else "failed" if example.error is None else "error"


def example_block(example: ExampleResult, *, steps: bool, was: float | None = None) -> Iterator[Line]:
    """Lines with all that is known of an example, the steps only where asked for."""
    verdict = verdict_of(example)
    style: Style = "green" if verdict == "passed" else "yellow" if verdict == "no verdict" else "red"
    name = f"example {printable_line(example.example_id)}"
    if example.source_example_id is not None:
        name += f" ({printable_line(example.source_example_id)})"
    score = score_text(example.score if example.has_verdict else None)
    facts = f"  score {score}" + ("" if was is None else f", was {score_text(was)}") + f"  {example.seconds:.2f} s"
    if len(example.scores) > 1:
        facts += f"  mean of {len(example.scores)}: {', '.join(map(score_text, example.scores))}"
    yield [("bold", name), ("", "  "), (style, verdict), ("dim", facts)]
    if example.objectives:
        objectives = ", ".join(f"{name} {value:g}" for name, value in example.objectives.items())
        yield from labelled("objectives", objectives, "  ")
    yield from _values("inputs", example.inputs)
    yield from _values("expected", example.expected)
    yield from _values("predicted", example.predicted)
    for label, text in (("error", example.error), ("feedback", example.feedback)):
        if text is not None:
            yield from labelled(label, text, "  ")
    for step in example.steps if steps else ():
        yield from _step(step)


def _step(step: StepTrace) -> Iterator[Line]:
    title = f"step {step.step_index + 1}: {printable_line(step.step_name)} ({printable_line(step.signature_name)})"
    yield [("", "  "), ("bold", title), ("yellow", "  cut at its limit of tokens" if step.truncated else "")]
    yield from _values("in", step.inputs, "    ")
    yield from _values("out", step.outputs, "    ")
    more = {
        "error": step.error,
        "feedback": step.feedback,
        "first completion": step.first_completion,
        "completion": step.completion,
    }
    for label, text in more.items():
        if text is not None:
            yield from labelled(label, text, "    ")


def _values(label: str, value: Any, indent: str = "  ") -> Iterator[Line]:
    if not isinstance(value, Mapping):
        yield from labelled(label, _text(value), indent)
        return
    fields = cast("Mapping[str, Any]", value)
    yield [("", indent), ("dim", f"{label}:" if fields else f"{label}: nothing")]
    for name, item in fields.items():
        yield from labelled(name, _text(item), indent + "  ")


def _text(value: Any) -> str:
    """A text as it is, lists and maps as JSON: in a line if they are short, else one entry a line."""
    if isinstance(value, str):
        return media_named(value)
    if not isinstance(value, list | tuple | dict):
        return brief(value)
    plain = as_json(value)
    line = media_named(json.dumps(plain, ensure_ascii=False))
    return line if len(line) <= _LINE_CHARS else media_named(json.dumps(plain, ensure_ascii=False, indent=2))


def _head(fields: Mapping[str, Any]) -> str:
    """The beginning of the inputs, in one line."""
    if len(fields) == 1:
        (value,) = fields.values()
        return _beginning(value, _HEAD_CHARS)
    share = max(_HEAD_CHARS // max(len(fields), 1), 40)
    return "; ".join(f"{name[:_HEAD_CHARS]}: {_beginning(value, share)}" for name, value in fields.items())


def _beginning(value: Any, limit: int) -> str:
    # A medium may begin the value: what names it is longer than the room of a field among many.
    text = value[:_HEAD_CHARS] if isinstance(value, str) else brief(value, _HEAD_CHARS)
    return media_named(text)[:limit]
