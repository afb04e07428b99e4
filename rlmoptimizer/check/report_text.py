"""A check's report in words: for a terminal, and as HTML for a notebook. All texts are foreign."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from kernel_bridge.text import printable, printable_line, shorten_list
from rlmoptimizer.text import PLAIN_HTML, count_text, usd_text

if TYPE_CHECKING:
    from rlmoptimizer.check.report import CheckReport, Estimate, ExampleTried, LMAsked, SplitFound

__all__ = ["as_html", "as_text"]

_WIDTH: Final = 11  # of the column of names
_ERROR_CHARS: Final = 200
_MOST_STEPS: Final = 20
_CELL: Final = "text-align:left;vertical-align:top;padding:2px 12px 2px 0"


def as_text(report: CheckReport) -> str:
    """Lines that any terminal can show."""
    lines = [_head(report)]
    for name, entries in _sections(report):
        for place, entry in enumerate(entries):
            first, *more = printable(entry, None).split("\n")
            lines.append(f"{'' if place else name:<{_WIDTH}} {first}")
            lines += [f"{'':<{_WIDTH}} {line}" for line in more]
    return "\n".join(lines)


def as_html(report: CheckReport) -> str:
    """A table; every text is escaped, and nothing in it is a link."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL}">{_escaped(name)}</th>'
        f'<td style="{_CELL};white-space:pre-wrap">{"<br>".join(map(_escaped, entries))}</td></tr>'
        for name, entries in _sections(report)
    )
    return f'<table class="{PLAIN_HTML}"><caption>{_escaped(_head(report))}</caption>{rows}</table>'


def _escaped(text: str) -> str:
    return html.escape(printable(text, None))


def _head(report: CheckReport) -> str:
    found = [count_text(len(report.problems), "problem"), count_text(len(report.warnings), "warning")]
    return f"Check of {printable_line(report.program)}: {', '.join(found)}"


def _sections(report: CheckReport) -> Iterator[tuple[str, list[str]]]:
    """Names and entries; sections without any are left out."""
    every = {
        "problems": list(report.problems),
        "warnings": list(report.warnings),
        "steps": _steps(report),
        "LMs": [_lm(one) for one in report.lms],
        "examples": [_example(one) for one in report.examples],
        "metric": _metric(report),
        "data": [_split(one) for one in report.splits],
        "budget": _budget(report),
        "estimate": _estimates(report),
        "kernel": [] if report.kernel is None else [report.kernel.summary],
        "this check": [_spent(report.usage)],
    }
    return ((name, entries) for name, entries in every.items() if entries)


def _steps(report: CheckReport) -> list[str]:
    words = [
        f"{step.name} (prompt of {count_text(step.prompt_chars, 'character')}{f', {step.model}' if step.model else ''})"
        for step in report.steps
    ]
    return [shorten_list(words, _MOST_STEPS)] if words else []


def _lm(lm: LMAsked) -> str:
    who = f"{' and '.join(lm.roles)}: {lm.model}"
    if lm.error is not None:
        return f"{who} did not answer: {printable_line(lm.error, _ERROR_CHARS)}"
    price = "price known" if lm.is_priced else "price not known"
    when = "answered in the examples" if lm.seconds is None else f"answered in {lm.seconds:.1f} s"
    return f"{who} {when}, {price}"


def _example(one: ExampleTried) -> str:
    if one.error is not None:
        return f"{one.example_id}: {printable_line(one.error, _ERROR_CHARS)} ({one.seconds:.1f} s)"
    return f"{one.example_id}: score {100 * (one.score or 0):.1f} ({one.seconds:.1f} s)"


def _metric(report: CheckReport) -> list[str]:
    metric = report.metric
    if metric is None:
        return []
    parts = [metric.name]
    if metric.lowest is not None and metric.highest is not None:
        parts.append(f"scores {100 * metric.lowest:.1f} to {100 * metric.highest:.1f}")
        parts.append("feedback" if metric.gives_feedback else "no feedback")
    if metric.compared:
        same = "other scores" if metric.differing else "the same scores"
        parts.append(f"asked twice about {count_text(metric.compared, 'prediction')}: {same}")
    return ["; ".join(parts)]


def _split(split: SplitFound) -> str:
    parts = [f"{split.name}: {count_text(split.examples, 'example')}"]
    if split.repeated_inputs:
        parts.append(f"{split.repeated_inputs} with inputs that stand in it before")
    parts += [f"{count} with inputs that are in {other} too" for other, count in split.shared_inputs.items() if count]
    return ", ".join(parts)


def _budget(report: CheckReport) -> list[str]:
    budget = report.budget
    if budget is None:
        return []
    text = f"{count_text(budget.units, 'unit')}: all of train {count_text(budget.train_runs, 'time')}"
    if budget.val_runs is not None:
        text += f" and val once, or only val, {count_text(budget.val_runs, 'time')}"
    return [text]


def _estimates(report: CheckReport) -> list[str]:
    tried = sum(one.score is not None for one in report.examples)
    named = {"the baseline": report.baseline, "at most, with every unit spent on an example": report.at_most}
    lines = [f"{name}: {_estimate(one)}" for name, one in named.items() if one is not None]
    if lines:
        lines.append(
            f"Estimates from {count_text(tried, 'example')}. The root LM's turns and sub-LM prompts are not in them: "
            "they depend on what the agent does."
        )
    return lines


def _estimate(one: Estimate) -> str:
    parts = [count_text(one.examples, "evaluation")]
    if one.calls is not None:
        parts.append(f"about {count_text(one.calls, 'LM call')}")
    if one.prompt_tokens is not None and one.completion_tokens is not None:
        parts.append(f"{one.prompt_tokens:,} tokens in and {one.completion_tokens:,} out")
    else:
        parts.append("tokens not known")
    parts.append("price not known" if one.cost_usd is None else usd_text(one.cost_usd))
    if one.seconds is not None:
        parts.append(f"{one.seconds:,.0f} s")
    return ", ".join(parts)


def _spent(usage: Mapping[str, Mapping[str, Any]]) -> str:
    calls = sum(one["calls"] for one in usage.values())
    cached = sum(one["cached_calls"] for one in usage.values())
    known = sum(one["known_cost_usd"] for one in usage.values())
    unpriced = sum(one["unpriced_calls"] for one in usage.values())
    tokens = sum((one["prompt_tokens"] or 0) + (one["completion_tokens"] or 0) for one in usage.values())
    text = f"{count_text(calls, 'LM call')} ({cached} from DSPy's cache), {tokens:,} tokens, {usd_text(known)}"
    text += f" and {count_text(unpriced, 'call')} of unknown price" if unpriced else ""
    return f"{text}; no units, and nothing was stored"
