"""Where modules that the kernel itself needs are looked for, whatever the agent's code has put in their way."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator

__all__ = ["own_path"]

_AT_START = [place for place in sys.path if place]  # without the working directory


@contextlib.contextmanager
def own_path() -> Generator[None]:
    """A block in which modules are looked for first where they were when the kernel started.

    Other threads go on to import what they find elsewhere, and what they add to the path meanwhile stays.
    """
    before = sys.path[:]
    found = [*_AT_START, *(place for place in before if place not in _AT_START)]
    sys.path[:] = found
    try:
        yield
    finally:
        sys.path[:] = before + [place for place in sys.path if place not in found]
