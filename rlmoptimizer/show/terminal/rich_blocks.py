"""Blocks as rich draws them on a terminal or in a log. Foreign text goes in as `Text`, never as markup."""

from __future__ import annotations

import io
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.rule import Rule
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from kernel_bridge.text import printable, printable_line
from rlmoptimizer.show.terminal.blocks import TEXT_CHARS, Block, Code, Facts, Grid, Meter, Output, Part, Tone, Words

__all__ = ["plain_block", "rich_block"]

_COLORS: Final[dict[Tone, str]] = {"info": "cyan", "turn": "magenta", "good": "green", "warning": "yellow"}
_VALUE_CHARS: Final = 1000
_METER_CELLS: Final = 20
_WIDE: Final = 76  # columns
_GAP: Final = Text("")


def rich_block(block: Block) -> RenderableType:
    """A turn and the result under a rule, which takes no width from what they hold; all else in a panel."""
    color = _COLORS[block.tone]
    parts = [_part(part, block.tone) for part in block.parts]
    if not block.title:
        return Group(*parts)
    title = Text(printable_line(block.title))
    rule = Rule(title, align="left", style=color)
    if block.tone == "turn":
        return Group(_GAP, rule, *parts)
    if any(isinstance(part, Grid) for part in block.parts):
        return Group(_GAP, rule, *(line for part in parts for line in (part, _GAP)))
    return Panel(Group(*parts), title=title, title_align="left", border_style=color)


def plain_block(block: Block) -> str:
    """Without colors, for 80 columns."""
    console = Console(file=io.StringIO(), width=80, color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(rich_block(block))
    return captured.get()


def _part(part: Part, tone: Tone) -> RenderableType:
    if isinstance(part, Words):
        return Text(printable(part.text, TEXT_CHARS), style="yellow" if tone == "warning" else "")
    if isinstance(part, Code):
        code = Syntax(printable(part.text, TEXT_CHARS), "python", word_wrap=True, background_color="default")
        return Panel(code, title="code", title_align="left", border_style="blue")
    if isinstance(part, Output):
        text = Text(printable(part.text, TEXT_CHARS))
        return Panel(text, title="output", title_align="left", border_style="bright_black")
    if isinstance(part, Facts):
        return _facts(part)
    if isinstance(part, Grid):
        return _Columns(part)
    return _Bar(part)


def _facts(facts: Facts) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.rows:
        table.add_row(Text(printable_line(name)), Text(printable_line(value, _VALUE_CHARS)))
    return table


class _Columns:
    """A grid, with less room between its columns on a narrow terminal."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = 2 if options.max_width >= _WIDE else 1
        table = Table(box=None, padding=(0, room, 0, 0), pad_edge=False, header_style="bold")
        for number, name in enumerate(self._grid.header):
            table.add_column(Text(printable_line(name)), justify="right" if number else "left", overflow="fold")
        for row in self._grid.rows:
            table.add_row(*(Text(printable_line(cell)) for cell in row))
        yield table


class _Bar:
    """A meter, in characters that the console's encoding has."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full, empty = "#-" if options.ascii_only else "█░"
        left, limit = self._meter.left, max(self._meter.limit, 1)
        cells = min(_METER_CELLS, max(options.max_width // 6, 4))
        filled = round(cells * min(max(left / limit, 0), 1))
        color = "green" if 2 * left > limit else "yellow" if 5 * left > limit else "red"
        yield Text.assemble(
            (full * filled, color), (empty * (cells - filled), "bright_black"), " ", printable_line(self._meter.text)
        )
