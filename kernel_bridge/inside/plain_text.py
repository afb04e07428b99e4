"""The text that IPython shows for small plain values, made without IPython: their repr."""

# Lists and dictionaries of any values are looked into.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from typing import Any

__all__ = ["LARGEST", "plain_text"]

LARGEST = 10**18
"""Beyond every integer whose text is always its repr; Python refuses that of very large ones."""

_LONGEST = 60  # characters of a text that IPython would write into one line of its 79
_DEEPEST = 4
_MOST = 20  # items at each depth


def plain_text(value: Any) -> str | None:
    """The text of a value. None: IPython may show something else than the repr, or it would take long to find out.

    A string is its own text, as in DSPy's interpreters.
    """
    if type(value) is str:
        return value
    if not _is_plain(value, _DEEPEST):
        return None
    text = repr(value)
    return text if len(text) <= _LONGEST else None


def _is_plain(value: Any, depth: int) -> bool:
    """Whether it is, exactly, of types of which IPython shows the repr where that is short."""
    kind = type(value)
    if kind is int:
        return -LARGEST < value < LARGEST
    if kind is bool or kind is float or value is None:
        return True
    if kind is str:
        return len(value) <= _LONGEST
    if depth == 0 or kind not in (list, tuple, dict) or len(value) > _MOST:
        return False
    if kind is dict:
        return all(_is_plain(part, depth - 1) for pair in value.items() for part in pair)
    return all(_is_plain(part, depth - 1) for part in value)
