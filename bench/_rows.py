"""Rows of a benchmark from rounds that took turns: figures are medians, a ratio is the median of the rounds' ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

SCALES = {"s": 1.0, "ms": 1e3, "us": 1e6, "MB": 1e-6}  # from seconds or bytes


def seconds(action: Callable[[], object]) -> float:
    """How long one call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def compared(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float] | None = None,
    *,
    whose: str = "",
    unit: str = "ms",
    target: float | None = None,
    limit: float | None = None,
    key: bool = False,
    note: str = "",
) -> dict[str, Any]:
    """The row of `ours` against `theirs`, one figure a round each, in seconds or bytes; see `run.py` for the rest."""
    scale = SCALES[unit]
    beside = theirs is not None
    return {
        "name": name,
        "unit": unit,
        "ours": statistics.median(ours) * scale,
        "theirs": statistics.median(theirs) * scale if theirs is not None else None,
        "whose": whose,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs is not None else None,
        "target": target if beside else None,
        "limit": limit,
        "key": key,
        "note": note,
    }


def not_measured(name: str, why: str) -> dict[str, Any]:
    """The row of what could not be measured here."""
    return {"name": name, "ours": None, "theirs": None, "ratio": None, "target": None, "note": why}
