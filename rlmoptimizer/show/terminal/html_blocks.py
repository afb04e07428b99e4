"""Blocks as HTML for the output of a notebook cell, readable in light and dark themes. All text is escaped.

Styles stand in the elements: a notebook may show many outputs, and some viewers take style sheets out.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.show.terminal.blocks import TEXT_CHARS, Block, Code, Facts, Grid, Meter, Output, Part, Tone, Words
from rlmoptimizer.text import PLAIN_HTML

__all__ = ["escaped", "escaped_text", "html_block", "html_meter"]

_COLORS: Final[dict[Tone, str]] = {"info": "#3b82c4", "turn": "#a855b5", "good": "#3f9b57", "warning": "#c98a1b"}
_PRE: Final = "margin:4px 0;padding:6px 8px;white-space:pre-wrap;overflow-wrap:anywhere;max-height:30em;overflow:auto;"
_VALUE_CHARS: Final = 1000


def escaped(text: str, limit: int = _VALUE_CHARS) -> str:
    """One line."""
    return html.escape(printable_line(text, limit))


def escaped_text(text: str) -> str:
    """With its lines."""
    return html.escape(printable(text, TEXT_CHARS))


def html_block(block: Block) -> str:
    color = _COLORS[block.tone]
    title = f'<div style="font-weight:bold;color:{color}">{escaped(block.title)}</div>' if block.title else ""
    parts = "".join(map(_part, block.parts))
    return f'<div class="{PLAIN_HTML}" style="border-left:3px solid {color};padding:2px 10px">{title}{parts}</div>'


def html_meter(share: float, width: str = "10em") -> str:
    """A bar that is filled to a share, 0..1."""
    return f'<progress max="1" value="{min(max(share, 0.0), 1.0):.3f}" style="width:{width}"></progress>'


def _part(part: Part) -> str:
    if isinstance(part, Words):
        return f'<div style="white-space:pre-wrap;overflow-wrap:anywhere">{escaped_text(part.text)}</div>'
    if isinstance(part, Code):
        return _code(part.text)
    if isinstance(part, Output):
        return f'<pre style="{_PRE}border:1px solid #8886">{escaped_text(part.text)}</pre>'
    if isinstance(part, Facts):
        rows = (f"{_cell(name, bold=True)}{_cell(value)}" for name, value in part.rows)
        return _table(rows)
    if isinstance(part, Grid):
        head = "".join(_cell(name, bold=True, right=bool(place)) for place, name in enumerate(part.header))
        rows = ("".join(_cell(cell, right=bool(place)) for place, cell in enumerate(row)) for row in part.rows)
        return _table([head, *rows])
    return _meter(part)


def _meter(meter: Meter) -> str:
    return f"<div>{html_meter(meter.left / max(meter.limit, 1))} {escaped(meter.text)}</div>"


def _code(text: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers.python import PythonLexer

    # Dark on every theme: which one there is cannot be known here.
    formatter = HtmlFormatter[str](style="monokai", noclasses=True, nowrap=True)
    marked = highlight(printable(text, TEXT_CHARS), PythonLexer(), formatter)
    return f'<pre style="{_PRE}background:#272822;color:#f8f8f2;border-radius:4px">{marked}</pre>'


def _table(rows: Iterable[str]) -> str:
    lines = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<table style="margin:2px 0;border-collapse:collapse;font-size:inherit">{lines}</table>'


def _cell(text: str, *, bold: bool = False, right: bool = False) -> str:
    style = "text-align:right;" if right else "text-align:left;"
    weight = "font-weight:bold;" if bold else ""
    return f'<td style="{style}{weight}padding:1px 10px 1px 0;overflow-wrap:anywhere">{escaped(text)}</td>'
