"""A frame as it arrives: what the value in it would be, counted before anything of it is built."""

from __future__ import annotations

__all__ = ["Frame", "WireError", "count_parts"]

Frame = bytes | bytearray | memoryview


class WireError(ValueError):
    """What arrived is not one of the six messages, or not a value."""


def _steps() -> tuple[int, ...]:
    """How far each first byte of a part is from the next part's; 0: it depends on a length that follows."""
    found = [1] * 256
    found[0xA0:0xC0] = range(1, 33)  # short text
    found[0xC4:0xCA] = [0] * 6  # bytes, extensions
    found[0xCA:0xD4] = [5, 9, 2, 3, 5, 9, 2, 3, 5, 9]  # floats and whole numbers
    found[0xD4:0xD9] = [3, 4, 6, 10, 18]  # extensions of a fixed size
    found[0xD9:0xDC] = [0] * 3  # text
    found[0xDC:0xE0] = [3, 5, 3, 5]  # lists and dicts: what they hold follows as parts of its own
    return tuple(found)


_STEPS = _steps()
# Where a length follows: its width, and the bytes between it and the data.
_LENGTHS = {
    **{0xD9: (1, 0), 0xDA: (2, 0), 0xDB: (4, 0), 0xC4: (1, 0), 0xC5: (2, 0), 0xC6: (4, 0)},
    **{0xC7: (1, 1), 0xC8: (2, 1), 0xC9: (4, 1)},
}
_CONTAINERS = frozenset([*range(0x80, 0xA0), *range(0xDC, 0xE0)])


def count_parts(data: Frame, most: int, most_containers: int) -> tuple[int, int]:
    """How many parts a frame has, and how many of them are lists and dicts; it stops at one more than the most.

    Nothing of the value is built. A malformed frame is left for the decoder to refuse.
    """
    steps = _STEPS
    at = parts = containers = 0
    end = len(data)
    while at < end and parts <= most:
        code = data[at]
        parts += 1
        step = steps[code]
        if step:
            at += step
            if code in _CONTAINERS:
                containers += 1
                if containers > most_containers:
                    break
        else:
            width, extra = _LENGTHS[code]
            at += 1 + width + extra + int.from_bytes(data[at + 1 : at + 1 + width], "big")
    return parts, containers
