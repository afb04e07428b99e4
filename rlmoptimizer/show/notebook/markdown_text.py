"""Foreign text as Markdown that shows it as it was written: nothing in it is a mark, a link, an image or HTML.

What could be one is written as a character reference, from which Markdown reads no structure. What begins mathematics
is also an element of its own: notebooks look for it once more in the page that Markdown has become. A reference is its
character again there, but no formula goes across an element.
"""

from __future__ import annotations

import re
from typing import Final

from kernel_bridge.text import printable

__all__ = ["as_written"]

# Emphasis, code, HTML, references, links, images, tables, strikethrough, mathematics, templates, mail addresses.
_ANYWHERE: Final = re.compile(r"[&<>\\`*\[\]{}|~$^@]|(?<![^\W_])_|_(?![^\W_])")
_MATHEMATICS: Final = "$\\"
_ADDRESS: Final = re.compile(r"(?<=\w):(?=//)|(?<=[wW]{3})\.")  # of what is made a link without any mark
# Headings, lists, quotations, rules and underlines at the beginning of a line.
_AT_BEGIN: Final = re.compile(r"(?m)^(\d+)([.)])|^([#+=:-])")
_INDENT: Final = re.compile(r"(?m)^[ \t]+")


def as_written(text: str) -> str:
    """Markdown that is shown as `text`, line by line; characters that steer or hide are made visible."""
    text = _ANYWHERE.sub(_references, printable(text, None))
    text = _ADDRESS.sub(_references, text)
    text = _AT_BEGIN.sub(lambda found: (found[1] or "") + _reference(found[2] or found[3]), text)
    text = _INDENT.sub(lambda found: "&nbsp;" * len(found[0].expandtabs(4)), text)
    # A single line break would be a space.
    return re.sub(r"(?<!\n)\n(?!\n)", "  \n", text.strip("\n"))


def _references(found: re.Match[str]) -> str:
    return "".join(map(_reference, found[0]))


def _reference(character: str) -> str:
    reference = f"&#{ord(character)};"
    return f"<span>{reference}</span>" if character in _MATHEMATICS else reference
