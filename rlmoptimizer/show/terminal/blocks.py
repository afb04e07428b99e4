"""What is shown of a compile, as data: blocks of words, code, tables and meters. No terminal, no HTML.

Texts are as they came, so whoever shows them must make them printable and escape them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

__all__ = ["TEXT_CHARS", "Block", "Code", "Facts", "Grid", "Meter", "Output", "Part", "Tone", "Words"]

TEXT_CHARS: Final = 4000  # of one text; of a longer one, head and tail are shown

Tone: TypeAlias = Literal["info", "turn", "good", "warning"]


@dataclass(frozen=True, slots=True)
class Words:
    text: str


@dataclass(frozen=True, slots=True)
class Code:
    """Python."""

    text: str


@dataclass(frozen=True, slots=True)
class Output:
    """What a cell of the agent wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class Facts:
    rows: tuple[tuple[str, str], ...]  # (what, its value)


@dataclass(frozen=True, slots=True)
class Grid:
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]  # the first column is words, the others are figures


@dataclass(frozen=True, slots=True)
class Meter:
    """How much is left of something, as a bar, with words after it."""

    left: int
    limit: int
    text: str


Part: TypeAlias = Words | Code | Output | Facts | Grid | Meter


@dataclass(frozen=True, slots=True)
class Block:
    """Parts under a title; "": it goes on with the block before."""

    title: str
    parts: tuple[Part, ...]
    tone: Tone = "info"
