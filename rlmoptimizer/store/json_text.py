"""Plain values as text for the run store, and back.

JSON, with three additions that `schema.sql` describes: bytes, integers too long to print, and dicts that look like one
of the additions.
"""

from __future__ import annotations

import base64
import json
from typing import Any, Final, cast

__all__ = ["decode", "encode"]

_BYTES: Final = "$bytes"
_INT: Final = "$int"
_DICT: Final = "$dict"
_ADDITIONS: Final = frozenset({_BYTES, _INT, _DICT})
_MARK: Final = '"$'
_PRINTABLE_BITS: Final = 2048  # Python prints no integer of more than 4300 digits, or fewer where it is set so
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False)  # `json.dumps` would make one for each value


def encode(value: Any) -> str:
    """The text for a plain value; `decode` gives an equal one. May hold lone surrogates if the value does."""
    try:
        text = _ENCODER.encode(value)
        if _MARK not in text:
            return text
    except (TypeError, ValueError):  # bytes, or an integer too long to print
        pass
    return _ENCODER.encode(_mark(value))


def decode(text: str) -> Any:
    """The value that `encode` made `text` from. Raises ValueError for any other text."""
    return json.loads(text, object_hook=_unmark) if _MARK in text else json.loads(text)


def _mark(value: Any) -> Any:
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        marked = {key: _mark(item) for key, item in fields.items()}
        return {_DICT: [[key, item] for key, item in marked.items()]} if _looks_marked(fields) else marked
    if isinstance(value, list | tuple):
        return [_mark(item) for item in cast("list[Any]", value)]
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode("ascii")}
    if isinstance(value, int) and value.bit_length() > _PRINTABLE_BITS:
        return {_INT: hex(value)}
    return value


def _unmark(fields: dict[str, Any]) -> Any:
    if not _looks_marked(fields):
        return fields
    ((kind, content),) = fields.items()
    if kind == _BYTES:
        return base64.b64decode(content)
    if kind == _INT:
        return int(content, 16)
    return dict(content)


def _looks_marked(fields: dict[str, Any]) -> bool:
    return len(fields) == 1 and not _ADDITIONS.isdisjoint(fields)
