"""A result as a piece of HTML for a notebook: its figures, the curve of the best score, what changed in the prompts.

It holds no script, asks for nothing, and has its styles in its own elements. Colours are those of the text around it,
with transparent shades, so that it reads on light and dark grounds. All texts are escaped.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from kernel_bridge.text import printable
from rlmoptimizer.outcome.best_so_far import Checkpoint
from rlmoptimizer.outcome.split_result import SplitResult
from rlmoptimizer.outcome.word_diff import Change, word_diff
from rlmoptimizer.prompts import changed_steps
from rlmoptimizer.text import PLAIN_HTML, count_text, usd_text

if TYPE_CHECKING:
    from rlmoptimizer.outcome.optimization_result import OptimizationResult

__all__ = ["result_html"]

_LINE_CHARS: Final = 1000
_PROMPT_CHARS: Final = 20_000  # of a prompt's difference that is shown
_OPEN: Final = 3  # prompts that are unfolded at first
_GROUND: Final = {"removed": "rgba(218,54,51,.22)", "added": "rgba(46,160,67,.25)"}
_TAG: Final = {"removed": "del", "added": "ins"}
_COLOUR: Final = {"gain": "#2ea043", "loss": "#da3633", "no proven gain": "currentColor"}
_CELL: Final = (
    "white-space:nowrap;padding:.25em .9em .25em 0;text-align:right;border:0;border-top:1px solid rgba(128,128,128,.35)"
)
_QUIET: Final = "opacity:.75"
_WARNING: Final = "border-left:3px solid #d29922;padding-left:.6em"
_WIDTH, _HEIGHT = 560, 150  # of the curve, in its own units
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 12, 10, 26  # its margins


def result_html(result: OptimizationResult) -> str:
    """One element that holds the whole of it."""
    parts = [
        _heading(result),
        _table(result.splits),
        _facts(result),
        curve_svg(result.best_so_far, result.budget["spent"], result.scored_split),
        *_prompts(result.prompts_before, result.prompts_after),
        *(_line(f"Warning: {warning}", _WARNING) for warning in result.warnings),
    ]
    return f'<div class="{PLAIN_HTML}" style="max-width:60em;line-height:1.45">{"".join(parts)}</div>'


def _heading(result: OptimizationResult) -> str:
    verdict, rest = result.verdict, result.heading.removeprefix(result.verdict)
    mark = f'<strong style="font-size:1.25em;color:{_COLOUR[verdict]}">{_escaped(verdict.capitalize())}</strong>'
    return f'<p style="margin:.4em 0">{mark}{_escaped(rest)}</p>'


def _table(splits: Mapping[str, SplitResult]) -> str:
    titles = ("", "before", "after", "difference", "95% interval", "better", "worse", "same", "examples", "p")
    head = "".join(f'<th scope="col" style="{_CELL};border-top:0;font-weight:600">{title}</th>' for title in titles)
    rows = "".join(f"<tr>{''.join(_cells(split, found))}</tr>" for split, found in splits.items())
    table = f'<table style="border-collapse:collapse;margin:.4em 0;width:auto"><tr>{head}</tr>{rows}</table>'
    return f'<div style="overflow-x:auto">{table}</div>'


def _cells(split: str, found: SplitResult) -> Iterator[str]:
    yield f'<th scope="row" style="{_CELL};text-align:left;font-weight:600">{split}</th>'
    low, high = found.interval or (None, None)
    interval = "" if low is None or high is None else f"{low:+.1f} to {high:+.1f}"
    texts = (
        *("" if score is None else f"{score:.1f}" for score in (found.baseline, found.result)),
        "not compared" if found.difference is None else f"{found.difference:+.1f}",
        interval,
        *(f"{count:,}" for count in (found.better, found.worse, found.same, found.n)),
        f"{found.p_value:.2g}" if found.n else "",
    )
    yield from (f'<td style="{_CELL}">{text}</td>' for text in texts)


def _facts(result: OptimizationResult) -> str:
    changed = changed_steps(result.prompts_after, result.prompts_before)
    spent, limit = result.budget["spent"], result.budget["limit"]
    facts = [
        f"{len(changed)} of {len(result.prompts_after)} prompts changed",
        f"{spent:,} of {limit:,} units in {count_text(result.turns, 'turn')}",
        _duration(sum(result.seconds.values())),
        *(_usage(role, used) for role, used in result.usage.items() if used.get("calls")),
    ]
    if result.cost_usd is not None:
        facts.append(f"{usd_text(result.cost_usd)} in all")
    return _line("; ".join(facts), _QUIET) + _line(f"Returned: {result.returned_because}", _QUIET)


def _usage(role: str, used: Mapping[str, Any]) -> str:
    tokens = [used.get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = [count for count in tokens if count is not None]
    text = f"{role} {used['calls']:,} calls" + (f", {sum(known):,} tokens" if known else "")
    return text + (f", {usd_text(used['cost_usd'])}" if used.get("cost_usd") is not None else "")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def curve_svg(checkpoints: Sequence[Checkpoint], spent: int, split: str) -> str:
    """The best score so far against the units spent as a line, each checkpoint as a dot; "" below two checkpoints."""
    if len(checkpoints) < 2:
        return ""
    scores = [score for one in checkpoints for score in (one.score, one.best)]
    low, high = max(0.0, min(scores) // 10 * 10), min(100.0, -(-max(scores) // 10) * 10)
    low, high = (low, high) if high > low else (max(0.0, low - 10), high) if low else (0.0, 10.0)
    most = max(spent, checkpoints[-1].spent, 1)

    def x(units: int) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * units / most

    def y(score: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - score) / (high - low)

    steps = f"M{x(checkpoints[0].spent):.1f} {y(checkpoints[0].best):.1f}"
    steps += "".join(f"H{x(one.spent):.1f}V{y(one.best):.1f}" for one in checkpoints[1:]) + f"H{x(most):.1f}"
    dots = "".join(f'<circle cx="{x(one.spent):.1f}" cy="{y(one.score):.1f}" r="3"/>' for one in checkpoints)
    lines = "".join(
        f'<path d="M{_LEFT} {y(score):.1f}H{_WIDTH - _RIGHT}" stroke="currentColor" stroke-opacity=".2"/>'
        f'<text x="{_LEFT - 6}" y="{y(score) + 4:.1f}" text-anchor="end">{score:g}</text>'
        for score in (low, (low + high) / 2, high)
    )
    base = _HEIGHT - 8
    units = (
        f'<text x="{_LEFT}" y="{base}">0</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{base}" text-anchor="end">{most:,} units</text>'
    )
    first, last = checkpoints[0].best, checkpoints[-1].best
    name = f"Best score on {split} so far against the units spent: {first:.1f} to {last:.1f}"
    return (
        f'<svg role="img" aria-label="{name}" viewBox="0 0 {_WIDTH} {_HEIGHT}" fill="currentColor" font-size="11" '
        f'style="max-width:{_WIDTH}px;width:100%;height:auto;display:block;margin:.4em 0">{lines}{units}'
        f'<path d="{steps}" fill="none" stroke="#388bfd" stroke-width="2"/><g fill="#388bfd">{dots}</g></svg>'
        + _line(f"Best score on {split} so far; a dot is a run on all of it.", f"{_QUIET};font-size:.9em")
    )


def _prompts(before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[str]:
    """The difference of each prompt that changed."""
    for place, step in enumerate(changed_steps(after, before)):
        difference = "".join(_marked(word_diff(before.get(step, ""), after[step])))
        body = (
            '<div style="white-space:pre-wrap;overflow-wrap:anywhere;max-height:26em;overflow:auto;padding:.5em .7em;'
            f'border:1px solid rgba(128,128,128,.35);border-radius:4px;margin:.3em 0">{difference}</div>'
        )
        summary = f'<summary style="cursor:pointer">New prompt of step <code>{_escaped(step)}</code></summary>'
        yield f'<details{" open" if place < _OPEN else ""} style="margin:.4em 0">{summary}{body}</details>'


def _marked(changes: Iterable[Change]) -> Iterator[str]:
    room = _PROMPT_CHARS
    for kind, text in changes:
        if room <= 0:
            yield f'<span style="{_QUIET}"> ... (the rest is in prompts_after)</span>'
            return
        shown = _escaped(text[:room], None)
        room -= len(text)
        if kind == "same":
            yield shown
        else:
            yield f'<{_TAG[kind]} style="background:{_GROUND[kind]};color:inherit">{shown}</{_TAG[kind]}>'


def _line(text: str, style: str) -> str:
    return f'<p style="margin:.3em 0;{style}">{_escaped(text)}</p>'


def _escaped(text: str, limit: int | None = _LINE_CHARS) -> str:
    return html.escape(printable(text, limit))
