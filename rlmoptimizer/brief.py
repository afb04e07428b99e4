"""A value of the agent's as a few words of a message. Knows nothing of what it was meant for."""

from __future__ import annotations

__all__ = ["brief"]


def brief(value: object, limit: int = 80) -> str:
    """`value` as Python writes it, cut to so many characters; its type where Python refuses to write it."""
    try:
        text = repr(value)
    except ValueError:  # somewhere in it is an integer of more than 4300 digits
        return f"<{type(value).__name__} too long to print>"
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
