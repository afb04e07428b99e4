"""Values as a few words of a message: what the agent sent, dollars, counts. Numbers as the agent wrote them. The length
of a text in tokens."""

from __future__ import annotations

import re
from typing import Any, Final, cast

from kernel_bridge.text import shorten

__all__ = ["PLAIN_HTML", "brief", "count_text", "media_named", "token_estimate", "usd_text", "whole_number"]

# The classes of HTML in which notebooks look for no formulas: "$5 or $10" is a text as any other.
PLAIN_HTML: Final = "tex2jax_ignore mathjax_ignore"

_LONGEST_NUMBER: Final = 100  # characters
_LARGEST_NUMBER: Final = 2**128  # no number of the agent's is larger
_PRINTABLE_BITS: Final = 2048  # Python prints no integer of more than 4300 digits, or fewer where it is set so
_MEDIUM = re.compile(
    r"""(\{\s*["']url["']:\s*["'])?data:([\w.+-]{1,40}/[\w.+-]{1,80});base64,[A-Za-z0-9+/=]{64,}(?(1)(?:["']\s*\})?)""",
    re.ASCII,
)


def whole_number(value: object) -> int | None:
    """The whole number that a value stands for, also as a short text or a float; None: it stands for none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip() if len(value) <= _LONGEST_NUMBER else ""
        return int(re.sub(r"\.0*$", "", text)) if re.fullmatch(r"[+-]?\d{1,18}(\.0*)?", text, re.ASCII) else None
    try:
        number = int(cast("Any", value))
        return number if number == value and abs(number) < _LARGEST_NUMBER else None
    except (TypeError, ValueError, OverflowError):
        return None


def brief(value: object, limit: int = 80) -> str:
    """`value` about as Python writes it, in at most `limit` characters; for objects and huge integers their type.

    Takes no longer for a large value than for a small one.
    """
    words: list[str] = []
    _write(value, words, limit)
    text = "".join(words)
    return shorten(text, limit)


def media_named(text: str) -> str:
    """The text with `<image/png>` in the place of a picture's content, or another medium's.

    That is a base64 data URL, alone or in a map of its own as DSPy writes it: `{"url": "data:image/png;base64,..."}`.
    """
    return _MEDIUM.sub(r"<\2>", text)


def usd_text(usd: float) -> str:
    """Dollars to read: to the cent, and below a dollar with three significant digits."""
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}" if usd >= 0 else f"-${-usd:,.2f}"
    decimals = 2
    while decimals < 12 and abs(usd) * 10**decimals < 100:
        decimals += 1
    return f"{'-' if usd < 0 else ''}${abs(usd):.{decimals}f}"


def count_text(count: int, noun: str) -> str:
    """Such as "1 unit" or "1,200 units"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def token_estimate(text: str) -> int:
    """About how many tokens a model reads in `text`: one for every four bytes of its UTF-8, rounded up.

    No model's tokenizer: it is the same for every model and Python, and needs nothing to be loaded.
    """
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)


def _write(value: object, words: list[str], room: int) -> int:
    """Write the beginning of a value, hardly more than `room` characters; gives the room that is left."""
    if isinstance(value, dict):
        room = _add(words, "{", room)
        for number, (key, item) in enumerate(cast("dict[Any, Any]", value).items()):
            if room < 0:
                return room
            room = _write(key, words, _add(words, ", ", room) if number else room)
            room = _write(item, words, _add(words, ": ", room))
        return _add(words, "}", room)
    if isinstance(value, list | tuple):
        first, last = "[]" if isinstance(value, list) else "()"
        room = _add(words, first, room)
        for number, item in enumerate(cast("list[Any]", value)):
            if room < 0:
                return room
            room = _write(item, words, _add(words, ", ", room) if number else room)
        return _add(words, last, room)
    return _add(words, _atom(value, room), room)


def _add(words: list[str], word: str, room: int) -> int:
    words.append(word)
    return room - len(word)


def _atom(value: object, room: int) -> str:
    if isinstance(value, str | bytes):
        return repr(value[: max(room, 0) + 1])
    if isinstance(value, int) and value.bit_length() > _PRINTABLE_BITS:
        return f"<{type(value).__name__} too long to print>"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    return f"<{type(value).__name__}>"
