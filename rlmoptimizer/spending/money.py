"""Money: US dollars as people write them, and whole picodollars as sums are kept. Knows nothing that costs any."""

from __future__ import annotations

from typing import Final

__all__ = ["dollars", "picodollars", "usd_text"]

_PICO: Final = 10**12
_MOST_USD: Final = 1e6  # a figure beyond it is no amount that is meant


def picodollars(usd: object) -> int | None:
    """A figure in dollars as a whole number of picodollars (1e-12 dollars); None for what is no amount."""
    if isinstance(usd, bool) or not isinstance(usd, (int, float)) or not 0 <= usd < _MOST_USD:
        return None
    return round(usd * _PICO)


def dollars(amount: int) -> float:
    """Picodollars as dollars."""
    return amount / _PICO


def usd_text(usd: float) -> str:
    """Dollars to read: cents, and for less than a dollar as many digits as it takes to see three that count."""
    if usd == 0 or abs(usd) >= 1:
        return f"${usd:,.2f}" if usd >= 0 else f"-${-usd:,.2f}"
    decimals = 2
    while decimals < 12 and abs(usd) * 10**decimals < 100:
        decimals += 1
    return f"{'-' if usd < 0 else ''}${abs(usd):.{decimals}f}"
