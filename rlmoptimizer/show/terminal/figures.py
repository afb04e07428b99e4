"""Figures as people read them: percent and times. And who says them."""

from __future__ import annotations

from typing import Final

__all__ = ["WHO", "clock_text", "percent_text"]

WHO: Final = "RLMDocstringOptimizer"  # what every line of a compile begins with that is no progress


def percent_text(score: float | None) -> str:
    """Of a fraction 0..1; None: there is none."""
    return "-" if score is None else f"{100 * score:.1f}%"


def clock_text(seconds: float) -> str:
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
