"""Texts and lists shortened, and made safe to show to a person. No terminal, no kernel.

What the agent reads and what is stored keeps its characters; only what people see goes through `printable`.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import Any, cast

__all__ = [
    "cut_middle",
    "error_text",
    "make_showable",
    "printable",
    "printable_line",
    "shorten",
    "shorten_list",
    "traceback_shown",
]

_TEXT_CHARS = 8000
_LINE_CHARS = 300
_CONTEXT_KEPT = 100  # exceptions that one came from; a chain can be longer than anybody reads


# Characters that steer a terminal, turn the reading direction, cannot be seen or cannot be encoded. The joiners U+200C
# and U+200D are not among them: words of some languages and many emoji need them.
_UNSHOWN = ((0x00, 0x1F), (0x7F, 0x9F), (0xAD, 0xAD), (0x61C, 0x61C), (0x70F, 0x70F), (0x180E, 0x180E),
            (0x200B, 0x200B), (0x200E, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F), (0xD800, 0xDFFF), (0xFEFF, 0xFEFF),
            (0xFFF9, 0xFFFB), (0x13430, 0x1343F), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
            (0xE0000, 0xE0FFF))  # fmt: skip


def _names() -> dict[int, str]:
    """What is shown instead of each of them."""
    codes = (code for first, last in _UNSHOWN for code in range(first, last + 1))
    names = {code: f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}" for code in codes}
    names.update({code: chr(0x2400 + code) for code in range(0x20)})  # Unicode has pictures of these
    names[0x7F] = "\u2421"
    return names


_LINE = _names()
_TEXT = {code: name for code, name in _LINE.items() if chr(code) not in "\n\t"}


def shorten(text: str, limit: int) -> str:
    """`text` in at most `limit` characters: of a longer one the head, and "..."."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def cut_middle(text: str, limit: int) -> str:
    """`text`, or `limit` characters of it, head and tail, and between them how many are left out."""
    if len(text) <= limit:
        return text
    head, tail = text[: limit - limit // 2], text[len(text) - limit // 2 :]
    return f"{head}\n... [{len(text) - limit:,} characters left out] ...\n{tail}"


def shorten_list(words: Sequence[str], most: int, joint: str = ", ") -> str:
    """The first `most` words, and how many more there are."""
    more = [f"{len(words) - most:,} more"] if len(words) > most else []
    return joint.join([*words[:most], *more])


def printable(text: str, limit: int | None = _TEXT_CHARS) -> str:
    """`text` with every character that could steer a terminal made visible instead; newlines and tabs stay.

    Lone surrogates, which no stream can encode, are spelled out too.

    Args:
        limit: how many characters of it are kept, head and tail; None: all.
    """
    return (text if limit is None else cut_middle(text, limit)).replace("\r\n", "\n").translate(_TEXT)


def printable_line(text: str, limit: int = _LINE_CHARS) -> str:
    """The same in one line, shortened."""
    return shorten(text, limit).translate(_LINE)


def error_text(error: BaseException, limit: int | None = None) -> str:
    """The text of an exception, which its class makes; one longer than `limit` loses its middle."""
    try:
        text = str(error)
    except Exception as unreadable:  # noqa: BLE001 - foreign code
        return f"(its message cannot be read: {type(unreadable).__name__})"
    return text if limit is None else cut_middle(text, limit)


def traceback_shown(error: BaseException) -> str:
    """The traceback of an exception, made safe for a log; `exc_info=True` would show its texts as they are."""
    return printable("".join(traceback.format_exception(error)).rstrip("\n"))


def make_showable(error: BaseException) -> None:
    """Make the texts of an exception, of its notes and of what it came from safe to print, in place.

    Python prints the text of an uncaught exception as it is. Class, traceback and attributes stay, except `message` and
    `msg`, from which some classes make their text.
    """
    pending: list[BaseException] = [error]
    seen: set[int] = set()
    while pending and len(seen) < _CONTEXT_KEPT:
        one = pending.pop(0)
        if id(one) not in seen:
            seen.add(id(one))
            _mend(one)
            pending += [other for other in (one.__cause__, one.__context__) if other is not None]
            pending += getattr(one, "exceptions", ())


def _mend(error: BaseException) -> None:
    notes: Any = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        notes[:] = [printable(note, None) if isinstance(note, str) else note for note in cast("list[object]", notes)]
    if _is_safe(error):
        return
    error.args = tuple(printable(part, None) if isinstance(part, str) else part for part in error.args)
    for name in ("message", "msg", "text"):
        value = getattr(error, name, None)
        if isinstance(value, str):
            try:
                setattr(error, name, printable(value, None))
            except (AttributeError, TypeError):
                continue  # a property, perhaps of what is mended by now


def _is_safe(error: BaseException) -> bool:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - foreign code; Python shows that it failed instead of a text
        return True
    return printable(text, None) == text
