"""Rows of text in columns, as wide as a terminal. Whatever a cell holds, it is shown in one line and steers nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kernel_bridge.text import printable_line

__all__ = ["Column", "fit", "table_lines", "text_width"]

_GAP = "  "
_CELL_CHARS = 400  # more of a cell is never shown
_MEASURED = 500  # rows
_NARROWEST = 12  # columns that a flexible one keeps


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    right: bool = False  # numbers stand at the right
    flexible: bool = False  # cut where the terminal is too narrow; others are shown whole
    spare: bool = False  # left out where the terminal is too narrow
    always: bool = False  # shown also where no row has text in it


def table_lines(columns: Sequence[Column], rows: Iterable[Sequence[str]], width: int) -> Iterator[str]:
    """A line of titles, then one for each row as it comes.

    The first 500 rows decide how wide the columns are, and which are left out because they hold no text.
    """
    following = ([_shown(cell) for cell in row] for row in rows)
    first = list(itertools.islice(following, _MEASURED))
    kept = [
        place for place, column in enumerate(columns) if column.always or not first or any(row[place] for row in first)
    ]
    kept, widths = _sizes(columns, kept, first, width)
    layout = [(place, size, columns[place].right) for place, size in zip(kept, widths, strict=True)]
    titles = [column.title for column in columns]
    for row in itertools.chain([titles], first, following):
        yield _GAP.join([_cell(row[place], size, right) for place, size, right in layout]).rstrip()


def _sizes(
    columns: Sequence[Column], kept: list[int], rows: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[int]]:
    """The places of the columns that are shown, and how wide each is."""
    widths = [max(text_width(text) for text in (columns[at].title, *(row[at] for row in rows))) for at in kept]
    if _least(widths, [columns[at] for at in kept]) > width:
        pairs = [(at, size) for at, size in zip(kept, widths, strict=True) if not columns[at].spare]
        kept, widths = [at for at, _ in pairs], [size for _, size in pairs]
    _shrink(widths, [columns[at] for at in kept], width - len(_GAP) * (len(kept) - 1))
    return kept, widths


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


def _shown(text: str) -> str:
    # Nearly all are so, and the other way takes ten times as long.
    if len(text) <= _CELL_CHARS and text.isascii() and text.isprintable():
        return text
    return printable_line(text, _CELL_CHARS)


def _cell(text: str, width: int, right: bool) -> str:
    if not text.isascii() or len(text) > width:
        text = fit(text, width)
        padding = " " * (width - text_width(text))
        return padding + text if right else text + padding
    return text.rjust(width) if right else text.ljust(width)


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
