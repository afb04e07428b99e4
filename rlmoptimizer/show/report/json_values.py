"""Values of examples and scores as JSON that a browser reads, and JSON as bytes."""

from __future__ import annotations

import json
import math
from typing import Any, Final, cast

__all__ = ["as_json", "json_bytes", "points"]

_EXACT: Final = 2**53  # a browser's numbers are exact up to it
_PRINTABLE_BITS: Final = 2048  # Python prints no integer of more than 4300 digits, or fewer where it is set so


def as_json(value: Any) -> Any:
    """A plain value with nothing in it that is not JSON: of bytes their number, and what is no number there as text."""
    if isinstance(value, dict):
        return {str(key): as_json(one) for key, one in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [as_json(one) for one in cast("list[Any]", value)]
    if isinstance(value, bytes):
        return f"<{len(value):,} bytes>"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and abs(value) > _EXACT:
        bits = value.bit_length()
        return str(value) if bits <= _PRINTABLE_BITS else f"<a whole number of {bits:,} bits>"
    return value


def points(score: float | None) -> float | None:
    """A fraction as the page has scores: 0 to 100, and not rounded; None stays None."""
    return None if score is None else 100.0 * score


def json_bytes(value: Any) -> bytes:
    """What `as_json` gives, as the UTF-8 of its JSON. Raises ValueError for numbers that JSON has not."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # lone surrogates
        return json.dumps(value, allow_nan=False, separators=(",", ":")).encode("ascii")
