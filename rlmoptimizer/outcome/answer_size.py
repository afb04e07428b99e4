"""Cuts long texts in an answer, so that it can be sent: an answer that is paid and then refused would be lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, cast

from kernel_bridge.text import cut_middle

__all__ = ["MOST_CHARS", "cut_to_size"]

MOST_CHARS: Final = 48_000_000  # of all texts together; at most 192 MB encoded, where the tool channel takes 256 MiB
_LEAST_CHARS: Final = 100  # of one text


def cut_to_size(rows: list[dict[str, Any]], most: int = MOST_CHARS) -> tuple[list[dict[str, Any]], int | None]:
    """Plain rows whose texts have at most `most` characters together, and the length to which texts were cut.

    The longest texts are cut first, all to one length, and keep their head and tail. None: nothing had to be cut, and
    the rows are the ones that came. Bytes count as texts; those too long are left out, with a note in their place.
    """
    lengths = sorted(_lengths(rows))
    if sum(lengths) <= most:
        return rows, None
    longest = max(_common_length(lengths, most), _LEAST_CHARS)
    return _cut(rows, longest), longest


def _lengths(value: Any) -> Iterator[int]:
    if isinstance(value, str | bytes):
        yield len(value)
    elif isinstance(value, dict | list):
        for item in cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value):
            yield from _lengths(item)


def _common_length(ascending: list[int], most: int) -> int:
    left = most
    for index, length in enumerate(ascending):
        share = left // (len(ascending) - index)
        if length > share:
            return share
        left -= length
    return most


def _cut(value: Any, longest: int) -> Any:
    if isinstance(value, dict):
        return {key: _cut(item, longest) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_cut(item, longest) for item in cast("list[Any]", value)]
    if not isinstance(value, str | bytes) or len(value) <= longest:
        return value
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes left out>"
    return cut_middle(value, longest)
