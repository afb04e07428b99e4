"""Lines with styles: coloured and wrapped between words on a terminal, plain anywhere else."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, TypeAlias

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.command_line.output import is_terminal, terminal_width, write_lines

__all__ = ["Line", "Span", "Style", "labelled", "plain", "text_lines", "write_spans"]

Style: TypeAlias = Literal["", "bold", "dim", "green", "red", "yellow"]
Span: TypeAlias = tuple[Style, str]  # a text without newlines, printable
Line: TypeAlias = Sequence[Span]


def write_spans(lines: Iterable[Line]) -> None:
    """Write lines to stdout, each as it comes. On a terminal a wrapped line is indented as its beginning is."""
    if is_terminal():
        write_lines(_drawn(lines))
    else:
        write_lines("".join(text for _, text in line).rstrip() for line in lines)


def plain(text: str) -> Line:
    """A printable line without a style."""
    return [("", text)]


def text_lines(text: str, indent: str = "", style: Style = "", limit: int | None = 8000) -> Iterator[Line]:
    """A text of any kind as printable lines; of one longer than `limit` the middle is left out."""
    for line in printable(text, limit).split("\n"):
        yield [("", indent), (style, line)]


def labelled(label: str, text: str, indent: str = "") -> Iterator[Line]:
    """The same, the first line behind a label; if there are several, they stand below it."""
    label = printable_line(label)
    lines = list(text_lines(text, indent + "  "))
    if len(lines) == 1:
        yield [("", indent), ("dim", f"{label}: "), *lines[0][1:]]
    else:
        yield [("", indent), ("dim", f"{label}:")]
        yield from lines


def _drawn(lines: Iterable[Line]) -> Iterator[str]:
    from rich.console import Console  # 0.05 s that what is piped does not take
    from rich.text import Text

    width = terminal_width()
    terminal = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False, legacy_windows=False)
    colours = terminal.is_terminal and not terminal.no_color and os.environ.get("TERM") != "dumb"
    for line in lines:
        whole = "".join(text for _, text in line)
        indent = min(len(whole) - len(whole.lstrip(" ")), width // 2)
        text = Text()
        for style, part in line:
            text.append(part, style)
        rest = text[indent:]
        for drawn in rest.wrap(terminal, width - indent, tab_size=4) or [rest]:
            with terminal.capture() as captured:
                terminal.print(drawn, end="", soft_wrap=True)
            yield " " * indent + (captured.get() if colours else drawn.plain)
