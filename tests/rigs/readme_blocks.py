"""The fenced blocks of a Markdown file, as data. It knows nothing of what is in them.

Run as a script it prints the shell block that follows a marker, so that the checks run the very commands people read:

    python tests/rigs/readme_blocks.py README.md install-and-test
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

_MARKER = re.compile(r"<!-- *([a-z][a-z-]*) *-->")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block."""

    language: str  # the info string of the fence, "" when it has none
    marker: str | None  # the HTML comment on the line above the fence: what the checks call this block
    text: str  # without the fences, ends with a newline
    line: int  # 1-based line of the opening fence


def blocks(markdown: str) -> list[Block]:
    """Every fenced block of `markdown`, in order.

    Raises:
        ValueError: a fence is never closed.
    """
    found: list[Block] = []
    opened: tuple[int, str] | None = None
    lines = markdown.splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.startswith("```"):
            continue
        if opened is None:
            opened = (number, line[3:].strip())
            continue
        start, language = opened
        above = lines[start - 2] if start >= 2 else ""
        marker = _MARKER.fullmatch(above.strip())
        text = "".join(f"{inner}\n" for inner in lines[start : number - 1])
        found.append(Block(language, marker.group(1) if marker else None, text, start))
        opened = None
    if opened is not None:
        raise ValueError(f"the fence that opens on line {opened[0]} is never closed")
    return found


def command(markdown: str, marker: str) -> str:
    """The text of the one `sh` block that `marker` names.

    Raises:
        LookupError: there is not exactly one.
    """
    named = [block for block in blocks(markdown) if block.marker == marker and block.language == "sh"]
    if len(named) != 1:
        raise LookupError(f"{len(named)} sh blocks are marked <!-- {marker} -->; there must be one")
    return named[0].text


if __name__ == "__main__":
    sys.stdout.write(command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
