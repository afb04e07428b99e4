"""What a restore came to, as the kernel tells its host: within bounds, however many names there are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kernel_bridge.inside.transcript import sendable

__all__ = ["MOST_BYTES", "told_names"]

MOST_BYTES = 2**18  # of all of it as JSON: small texts take some twenty times their size as objects
_PART_BYTES = MOST_BYTES // 2 - 2048  # for the names that were restored, and for those that were not


def told_names(restored: Sequence[str], lost: Mapping[str, str]) -> dict[str, Any]:
    """As many of the names as may be told, and how many more there are: `{"restored": [...], "lost": {...}}`."""
    names: list[str] = []
    room = _PART_BYTES
    for name in map(sendable, restored):
        room -= _size(name)
        if room < 0:
            names.append(f"({len(restored) - len(names):,} more)")
            break
        names.append(name)
    reasons: dict[str, str] = {}
    room = _PART_BYTES
    for name, reason in lost.items():
        said, why = sendable(name), sendable(reason)
        room -= _size(said) + _size(why)
        if room < 0:
            reasons[f"({len(lost) - len(reasons):,} more)"] = "they are too many to be told one by one"
            break
        reasons[said] = why
    return {"restored": names, "lost": reasons}


def _size(text: str) -> int:
    return len(json.dumps(text)) + 2  # with what stands between two texts
