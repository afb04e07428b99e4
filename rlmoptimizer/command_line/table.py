"""Rows of text in columns, as wide as a terminal. Whatever a cell holds, it is shown in one line and steers nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernel_bridge.text import printable_line

__all__ = ["Column", "fit", "table_lines", "text_width"]

_GAP = "  "
_CELL_CHARS = 400  # more of a cell is never shown
_NARROWEST = 16  # columns that a flexible one keeps


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    right: bool = False  # numbers stand at the right
    flexible: bool = False  # cut where the terminal is too narrow; others are shown whole
    spare: bool = False  # left out where the terminal is too narrow


def table_lines(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Iterator[str]:
    """A line of titles, then one for each row. Columns that hold no text in any row are left out."""
    shown = [[printable_line(cell, _CELL_CHARS) for cell in row] for row in rows]
    kept = [place for place, _ in enumerate(columns) if not rows or any(row[place] for row in shown)]
    columns = [columns[place] for place in kept]
    shown = [[column.title for column in columns], *([row[place] for place in kept] for row in shown)]
    widths = [max(text_width(row[place]) for row in shown) for place, _ in enumerate(columns)]
    if _least(widths, columns) > width:
        kept = [place for place, column in enumerate(columns) if not column.spare]
        columns = [columns[place] for place in kept]
        shown = [[row[place] for place in kept] for row in shown]
        widths = [widths[place] for place in kept]
    _shrink(widths, columns, width - len(_GAP) * (len(columns) - 1))
    for row in shown:
        cells = (_cell(text, size, column.right) for text, size, column in zip(row, widths, columns, strict=True))
        yield _GAP.join(cells).rstrip()


def fit(text: str, width: int) -> str:
    """A printable line in at most `width` columns of the terminal; a longer one ends with an ellipsis."""
    if text_width(text) <= width:
        return text
    from rich.cells import set_cell_size  # here, because most lines are ASCII and short

    return set_cell_size(text, max(width - 1, 0)).rstrip() + "\u2026"


def text_width(text: str) -> int:
    """The columns that a printable line takes on a terminal."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def _cell(text: str, width: int, right: bool) -> str:
    text = fit(text, width)
    padding = " " * (width - text_width(text))
    return padding + text if right else text + padding


def _least(widths: list[int], columns: Sequence[Column]) -> int:
    """The width of the whole table when its flexible columns are as narrow as they may be."""
    sizes = (min(size, _NARROWEST) if column.flexible else size for size, column in zip(widths, columns, strict=True))
    return sum(sizes) + len(_GAP) * (len(columns) - 1)


def _shrink(widths: list[int], columns: Sequence[Column], room: int) -> None:
    """Make the widest of the flexible columns narrower, until all fit or each is as narrow as it may be."""
    while sum(widths) > room:
        places = [place for place, column in enumerate(columns) if column.flexible and widths[place] > _NARROWEST]
        if not places:
            return
        widest = max(places, key=widths.__getitem__)
        others = [widths[place] for place in places if place != widest]
        excess = sum(widths) - room
        step = widths[widest] - max([*others, _NARROWEST])
        widths[widest] -= max(min(excess, step), 1)
